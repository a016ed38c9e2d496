"""
What does the parallel form gain in practice? The time of the recurrence against the length of the sequence, forward and
backward, for each backend that runs on this machine. The paper gives O(log T) for its parallel form and measured none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th

from experiments.base import Experiment, Rows, Run
from experiments.figures import make_plots, save, style, table
from sb3_shm.memory import HadamardInputs
from sb3_shm.memory.hadamard import BACKENDS, hadamard_recurrence

if TYPE_CHECKING:
    from pandas import DataFrame

_N_BEST = 3
_MOST_BYTES = 2**31
_COPIES = {"reference": 6, "scan": 16}  # H × H matrices per step that a backend keeps for its backward pass, about


def best_time(function: Callable[[], object], device: str) -> float:
    """
    :param function: what to time
    :param device: device on which it works
    :return: seconds, the least of three calls
    """
    times = []
    for _ in range(_N_BEST):
        start = time.perf_counter()
        function()
        if device == "cuda":
            th.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def times(backend: str, device: str, n: int, memory_size: int, longest: int, seed: int) -> Rows:
    """
    :param backend: one of ``sb3_shm.memory.hadamard.BACKENDS``
    :param device: "cpu" or "cuda"
    :param n: number of sequences
    :param memory_size: H
    :param longest: greatest length; the lengths are powers of 4 from 16 on
    :param seed: seed of the inputs
    :return: a row per length: seconds of the forward pass without gradients, and of forward and backward pass. None if the
        backend does not work on this device; the lengths end where a pass would take more than about 2 GiB
    """
    th.manual_seed(seed)
    rows: Rows = []
    lengths = [4**i for i in range(2, 16) if 4**i <= longest]
    for t in lengths[:1] + lengths:  # the first one twice: it compiles
        if n * t * memory_size**2 * 4 * _COPIES.get(backend, 0) > _MOST_BYTES:
            break
        tensors = [0.5 * th.randn(n, t, memory_size, device=device) for _ in range(5)]
        tensors[3:] = [x.abs() / memory_size for x in tensors[3:]]  # k and q are positive and sum to about 1
        tensors.append(th.zeros(n, memory_size, memory_size, device=device))
        starts = th.zeros(n, t, dtype=th.bool, device=device)
        with_gradient = [x.clone().requires_grad_() for x in tensors]

        def forward(inputs: list[th.Tensor], starts: th.Tensor = starts) -> tuple[th.Tensor, th.Tensor]:
            theta, vc, v, k, q, state = inputs
            return hadamard_recurrence(HadamardInputs(theta, vc, v, k, q), state, starts, clip=None, backend=backend)

        def both(inputs: list[th.Tensor] = with_gradient) -> None:
            th.autograd.grad(forward(inputs)[0].sum(), inputs)

        try:
            with th.no_grad():
                seconds = best_time(partial(forward, tensors), device)
            seconds_both = best_time(both, device)
        except ValueError:  # says that the backend is for another device
            return []
        rows.append(
            dict(
                backend=backend,
                device=device,
                n=n,
                memory_size=memory_size,
                length=t,
                forward=seconds,
                forward_backward=seconds_both,
            )
        )
    return rows[1:]


def _runs(budget: str, seeds: int) -> list[Run]:
    longest, sizes = {"smoke": (64, (16,)), "small": (16_384, (32, 128)), "paper": (65_536, (32, 128))}[budget]
    return [
        Run(
            f"{backend}-{device}-H{size}",
            "experiments.parallel_vs_recurrent:times",
            dict(backend=backend, device=device, n=1, memory_size=size, longest=longest, seed=0),
        )
        for device in ("cpu", *["cuda"] * th.cuda.is_available())
        for backend in BACKENDS
        for size in sizes
        if (backend == "cuda") == (device == "cuda") or backend in _COPIES
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    sizes = sorted(rows.memory_size.unique())
    figure, axes = make_plots(len(sizes), sharey=True)
    lines = list(rows.groupby(["backend", "device"], sort=False).groups)
    for ax, size in zip(axes, sizes, strict=True):
        for i, (backend, device) in enumerate(lines):
            of = rows[(rows.backend == backend) & (rows.device == device) & (rows.memory_size == size)]
            ax.plot(of.length, of.forward_backward * 1e3, label=f"{backend} ({device}), forward + backward", **style(i))
            ax.plot(of.length, of.forward * 1e3, label="  forward", **{**style(i), "linestyle": ":"})
        ax.set(title=f"H = {size}, one sequence", xlabel="steps T", xscale="log", yscale="log")
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(fontsize=8)
    picture = save(figure, folder, "times")

    cells: list[list[Any]] = []
    for (size, t), group in rows.groupby(["memory_size", "length"]):
        cells.append([size, f"{t:,}"])
        for backend, device in lines:
            of = group[(group.backend == backend) & (group.device == device)]
            cells[-1].append("" if of.empty else f"{of.forward.item() * 1e3:.3g} / {of.forward_backward.item() * 1e3:.3g}")
    header = ["H", "T", *(f"{backend} ({device})" for backend, device in lines)]
    return f"Milliseconds, forward / forward and backward, one sequence.\n\n{picture}\n\n{table(header, cells)}\n"


EXPERIMENT = Experiment(
    "parallel_vs_recurrent",
    "What does the parallel form gain over a walk through time?",
    _runs,
    _report,
)
