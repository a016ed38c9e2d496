"""
Does the product of the calibrations stay bounded? The paper's Proposition 4 says E[∏C] = 1 if z_t = θ_t ⊗ vc(x_t) is
independent over time, and proves it for Gaussian inputs. Here: other inputs, correlated inputs, and all of ∏C instead of its
mean alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from torch.nn import functional as F

from experiments.base import Experiment, Rows, Run
from experiments.figures import make_plots, save, style, table
from sb3_shm.memory import PaperSHM
from sb3_shm.memory.inside import look_inside
from sb3_shm.memory.shm import THETAS
from sb3_shm.policies.trunk import MemoryTrunk

if TYPE_CHECKING:
    from pandas import DataFrame

INPUTS = ("gaussian", "bernoulli", "uniform", "student_t", "cards", "ar1", "constant")
INPUT_SIZE = 64
CORRELATION = 0.99  # of the "ar1" inputs from step to step
_CHUNK = 64  # steps at once
_N_BOOTSTRAP = 1000


def draw_inputs(kind: str, n: int, t: int, generator: th.Generator) -> th.Tensor:
    """
    :param kind: independent over time: "gaussian"; "bernoulli", 0 or 1; "uniform", with mean 0; "student_t", with 3 degrees of
        freedom; "cards", what a new policy's encoder makes of the suits of POPGym's cards. Correlated: "ar1", Gaussian with
        correlation 0.99 from step to step; "constant", Gaussian and the same at each step. All but "bernoulli" and "cards"
        have mean 0 and variance 1.
    :param n: number of trajectories
    :param t: number of steps
    :param generator: source of random numbers
    :return: inputs, (n, t, INPUT_SIZE) float64
    :raises ValueError: unknown kind
    """
    shape = (n, t, INPUT_SIZE)
    normal = th.randn(shape, generator=generator, dtype=th.float64)
    if kind == "gaussian":
        return normal
    if kind == "bernoulli":
        return (normal > 0).double()
    if kind == "uniform":
        return (2 * th.rand(shape, generator=generator, dtype=th.float64) - 1) * math.sqrt(3)
    if kind == "student_t":
        # A normal divided by the root of a chi-square of 3 degrees over 3; the variance of the quotient is 3
        chi_square = th.randn(3, *shape, generator=generator, dtype=th.float64).square().sum(dim=0)
        return normal / (chi_square / 3).sqrt() / math.sqrt(3)
    if kind == "cards":
        encoder = MemoryTrunk(4, "mlp", encoder_arch=(128, INPUT_SIZE)).double()
        suits = th.randint(4, shape[:2], generator=generator)
        with th.no_grad():
            cards: th.Tensor = encoder.rest(encoder.first(F.one_hot(suits, 4).double()))
        return cards
    if kind == "ar1":
        for i in range(1, t):
            normal[:, i] = CORRELATION * normal[:, i - 1] + math.sqrt(1 - CORRELATION**2) * normal[:, i]
        return normal
    if kind == "constant":
        return normal[:, :1].expand(shape)
    raise ValueError(f"Unknown inputs {kind!r}, choose one of {', '.join(map(repr, INPUTS))}")


def log_mean(log_values: th.Tensor) -> th.Tensor:
    """
    :param log_values: natural logarithms, (..., K)
    :return: log10 of the mean of exp of them over the last dimension, (...)
    """
    mean = th.logsumexp(log_values, dim=-1) - math.log(log_values.shape[-1])
    return mean / math.log(10)


def products(inputs: str, layer_norm: bool, n: int, t: int, memory_size: int, seed: int) -> Rows:
    """
    Products of C from the first to the t-th step, in logarithms and float64, of the published SHM as it is initialised, where
    C does not depend on the state. (Today's form has a tenth of the exponents, ``calibration_scale=0.1``.)

    :param inputs: one of ``INPUTS``
    :param layer_norm: whether the memory normalises its inputs
    :param n: number of trajectories
    :param t: number of steps
    :param memory_size: H
    :param seed: seed of weights and inputs
    :return: a row for each θ and some steps: log10 of the greatest, least and typical entry (the geometric mean) of ∏C, of
        their mean with its bootstrap interval over trajectories (95%), and the shares of entries that are below 0.001, above
        1000, and beyond float32
    """
    generator = th.Generator().manual_seed(seed)
    th.manual_seed(seed)
    x = draw_inputs(inputs, n, t, generator)
    starts = th.zeros(n, t, dtype=th.bool)
    checkpoints = sorted({round(10 ** (i / 4)) for i in range(4 * 6)} & set(range(t)) | {t})
    rows: Rows = []
    for theta in THETAS:
        th.manual_seed(seed)
        memory = PaperSHM(INPUT_SIZE, memory_size, theta=theta, layer_norm=layer_norm).double()
        context = memory.draw_context(memory.initial_state(n), starts)
        product = th.zeros(n, memory_size, memory_size, dtype=th.float64)  # its logarithm
        done = 0
        for checkpoint in checkpoints:
            with th.no_grad():
                for begin in range(done, checkpoint, _CHUNK):
                    part = slice(begin, min(begin + _CHUNK, checkpoint))
                    rows_drawn = None if context is None else context[:, part]
                    inside = look_inside(memory, x[:, part], memory.initial_state(n), starts[:, part], rows_drawn)
                    product += inside.log_calibration().sum(dim=1)
            done = checkpoint
            flat = product.flatten(1)
            log10 = flat / math.log(10)
            of_trajectory = log_mean(flat)
            drawn = th.randint(n, (_N_BOOTSTRAP, n), generator=generator)
            means = log_mean(of_trajectory[drawn] * math.log(10))
            low, high = means.quantile(th.tensor([0.025, 0.975], dtype=th.float64)).tolist()
            rows.append(
                dict(
                    inputs=inputs,
                    layer_norm=layer_norm,
                    theta=theta,
                    seed=seed,
                    step=checkpoint,
                    log10_max=log10.max().item(),
                    log10_min=log10.min().item(),
                    log10_typical=log10.mean().item(),
                    log10_mean=log_mean(flat.flatten()).item(),
                    log10_mean_low=low,
                    log10_mean_high=high,
                    below_0_001=(log10 < -3).double().mean().item(),
                    above_1000=(log10 > 3).double().mean().item(),
                    overflow=(log10 > math.log10(th.finfo(th.float32).max)).double().mean().item(),
                )
            )
    return rows


def _runs(budget: str, seeds: int) -> list[Run]:
    sizes: dict[str, dict[str, int]] = {
        "smoke": dict(n=2, t=100, memory_size=8),
        "small": dict(n=16, t=10_000, memory_size=32),
        "paper": dict(n=64, t=10_000, memory_size=128),
    }
    return [
        Run(
            f"{inputs}{'' if layer_norm else '-raw'}-{seed}",
            "experiments.stability:products",
            dict(inputs=inputs, layer_norm=layer_norm, seed=seed, **sizes[budget]),
        )
        for layer_norm in (True, False)
        for inputs in INPUTS
        for seed in range(seeds)
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    normed = rows[rows.layer_norm]
    figure, axes = make_plots(len(THETAS), width=4.2, height=4.2, sharex=True, sharey=True)
    for ax, theta in zip(axes, THETAS, strict=True):
        for i, inputs in enumerate(INPUTS):
            of = normed[(normed.theta == theta) & (normed.inputs == inputs)].groupby("step")
            mean = of[["log10_max", "log10_typical", "log10_min"]].mean()
            ax.plot(mean.index, mean.log10_max, label=inputs, **style(i))
            ax.plot(mean.index, mean.log10_min, **{**style(i), "linestyle": "--"})
            ax.plot(mean.index, mean.log10_typical, **{**style(i), "linestyle": ":", "marker": ""})
        ax.axhline(math.log10(th.finfo(th.float32).max), color="grey", linewidth=1)
        ax.set(title=f"θ {theta}", xlabel="steps", xscale="log")
        ax.set_yscale("symlog", linthresh=1)
    axes[0].set_ylabel("log10 of an entry of ∏C")
    axes[0].legend(fontsize=8, title="inputs")
    axes[1].plot([], [], color="black", label="greatest entry")
    axes[1].plot([], [], color="black", linestyle="--", label="least entry")
    axes[1].plot([], [], color="black", linestyle=":", label="typical (geometric mean)")
    axes[1].plot([], [], color="grey", label="float32 ends")
    axes[1].legend(handles=axes[1].lines[-4:], fontsize=8)
    picture = save(figure, folder, "products")

    cells: list[list[Any]] = []
    for (layer_norm, inputs, theta), group in rows.groupby(["layer_norm", "inputs", "theta"], sort=False):
        line: list[Any] = [inputs, "yes" if layer_norm else "no", theta]
        for step in [step for step in (100, 1000, 10_000) if (group.step == step).any()]:
            at = group[group.step == step].mean(numeric_only=True)
            of_seed = group[group.step == step].log10_mean
            mean = f"{at.log10_mean:+.2f} ({of_seed.min():+.2f} to {of_seed.max():+.2f})"
            line += [f"{at.log10_max:+.1f} / {at.log10_typical:+.1f} / {at.log10_min:+.1f}", mean, f"{at.overflow:.1%}"]
        cells.append(line)
    header = ["inputs", "LayerNorm", "θ"]
    for step in [step for step in (100, 1000, 10_000) if (rows.step == step).any()]:
        header += [f"{step:,} steps: greatest / typical / least", "mean (least and greatest seed)", "beyond float32"]
    title = f"log10 of the entries of ∏C and of their mean, means over {rows.seed.nunique()} seeds."
    return f"{title}\n\n{picture}\n\n{table(header, cells)}\n"


EXPERIMENT = Experiment("stability", "Does ∏C stay bounded if inputs are not Gaussian or not independent?", _runs, _report)
