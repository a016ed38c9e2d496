"""
How far back do gradients reach? The Jacobian of a memory's last output by the input of each earlier step, at initialisation:
SHM with each θ and without calibration, against GRU and LSTM.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th

from experiments.base import Experiment, Rows, Run
from experiments.figures import make_plots, save, style, table
from experiments.stability import INPUT_SIZE, draw_inputs
from sb3_shm.memory import make_memory

if TYPE_CHECKING:
    from pandas import DataFrame

INPUTS = ("gaussian", "cards")  # independent with mean 0; what a new policy's encoder makes of POPGym's cards
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SHM, θ random": ("shm", dict(theta="random")),
    "SHM, θ fixed": ("shm", dict(theta="fixed")),
    "SHM, θ neural": ("shm", dict(theta="neural")),
    "SHM, C = 1": ("shm", dict(calibration="none")),
    "SHM published, θ random": ("shm_paper", dict(theta="random")),
    "GRU": ("gru", {}),
    "LSTM": ("lstm", {}),
}
_N_PROBES = 8
# Norms in the picture: beyond them GRU and LSTM fall below, and some SHM explode above, everything that float32 can hold
_SHOWN = (1e-12, 1e12)


def norms(model: str, inputs: str, n: int, t: int, memory_size: int, seed: int) -> Rows:
    """
    The Frobenius norm of ∂y_T / ∂x_{T - lag}, as a root mean square over sequences, in float64 and without a bound of |M|.
    Estimated by products with random signs e: E |eᵀ J|² = |J|².

    :param model: one of ``MODELS``
    :param inputs: see :func:`~experiments.stability.draw_inputs`
    :param n: number of sequences
    :param t: T, number of steps
    :param memory_size: H of SHM, and hidden size of the others
    :param seed: seed of weights and inputs
    :return: a row per lag, about a dozen for each factor of ten
    """
    th.manual_seed(seed)
    name, kwargs = MODELS[model]
    size: dict[str, Any] = dict(memory_size=memory_size, clip=None) if "shm" in name else dict(hidden_size=memory_size)
    memory = make_memory(name, INPUT_SIZE, {**kwargs, **size}).double()
    x = draw_inputs(inputs, n, t, th.Generator().manual_seed(seed)).requires_grad_()
    y, _ = memory(x, memory.initial_state(n), th.zeros(n, t, dtype=th.bool))
    last = y[:, -1]
    gradients = []
    for _ in range(_N_PROBES):
        signs = th.randint(2, last.shape) * 2.0 - 1
        (gradient,) = th.autograd.grad(last, x, signs.double(), retain_graph=True)
        gradients.append(gradient)
    # By logarithms: the squares of what float64 just holds would overflow
    log_square = th.logsumexp(2 * th.stack(gradients).abs().log(), dim=(0, 1, 3)) - math.log(_N_PROBES * n)
    of_lag = (log_square / 2).exp().flip(0)
    lags = sorted({0} | {round(10 ** (i / 12)) for i in range(12 * 6)} & set(range(t)) | {t - 1})
    return [dict(model=model, inputs=inputs, seed=seed, lag=lag, norm=of_lag[lag].item()) for lag in lags]


def _runs(budget: str, seeds: int) -> list[Run]:
    sizes: dict[str, dict[str, int]] = {
        "smoke": dict(n=2, t=50, memory_size=8),
        "small": dict(n=4, t=1024, memory_size=32),
        "paper": dict(n=4, t=4096, memory_size=64),
    }
    return [
        Run(
            f"{''.join(c for c in model.replace('θ', '').replace(' = ', '') if c.isalnum())}-{inputs}-{seed}",
            "experiments.gradient_norms:norms",
            dict(model=model, inputs=inputs, seed=seed, **sizes[budget]),
        )
        for model in MODELS
        for inputs in INPUTS
        for seed in range(seeds)
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    figure, axes = make_plots(len(INPUTS), width=5.2, height=4.4, sharey=True)
    low, high = _SHOWN
    for ax, inputs in zip(axes, INPUTS, strict=True):
        off = []
        for i, model in enumerate(MODELS):
            of_lag = rows[(rows.model == model) & (rows.inputs == inputs) & (rows.lag > 0)].groupby("lag").norm
            if (median := of_lag.median()).empty:
                continue
            ax.plot(median, label=model, **{**style(i), "markersize": 3})
            ax.fill_between(of_lag.min().index, of_lag.min(), of_lag.max(), color=style(i)["color"], alpha=0.15)
            if median.min() > high:
                off.append((median.median(), model, style(i)["color"]))
        for line, (norm, model, colour) in enumerate(sorted(off, reverse=True)):
            text = f"▲ {model}: about $10^{{{math.log10(norm):.0f}}}$"
            ax.annotate(text, (0.03, 0.97 - 0.07 * line), xycoords="axes fraction", va="top", color=colour, fontsize=9)
        ax.set(title=f"inputs: {inputs}", xscale="log", yscale="log", xlabel="lag in steps", ylim=(low, high))
    axes[0].set_ylabel(r"norm of $\partial y_T / \partial x_{T - lag}$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    picture = save(figure, folder, "gradient_norms")

    last = rows.lag.max()
    lags = [lag for lag in (1, 10, 100, 1000) if lag < last] + [last]
    cells = []
    for (inputs, model), group in rows.groupby(["inputs", "model"], sort=False):
        of_model = group.groupby("lag").norm
        median, least, greatest = of_model.median(), of_model.min(), of_model.max()
        cells.append([inputs, model, *(f"{median[lag]:.1e} ({least[lag]:.0e} to {greatest[lag]:.0e})" for lag in lags)])
    header = ["inputs", "memory", *(f"lag {lag:,}" for lag in lags)]
    title = f"Norm of ∂y_T / ∂x by lag at initialisation: median and range of {rows.seed.nunique()} seeds."
    return f"{title}\n\n{picture}\n\n{table(header, cells)}\n"


EXPERIMENT = Experiment("gradient_norms", "How far back do gradients reach, with each θ, and in GRU and LSTM?", _runs, _report)
