"""The Hadamard recurrence on a GPU, as one fused operation: triton kernels."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch as th

from sb3_shm.memory.backends.fused import fuse
from sb3_shm.memory.backends.inputs import HadamardInputs

CHUNK = 16  # steps between two kept M: the backward pass recomputes so many in the cache
MAX_SIZE = 256  # of H


@cache
def _missing() -> str | None:
    try:
        import triton
    except ImportError:
        return "triton, which is not installed (torch for CUDA brings it; else: pip install triton)"
    if not (th.cuda.is_available() or triton.knobs.runtime.interpret):
        return "a CUDA device, which torch does not find here"
    return None


def missing() -> str | None:
    """:return: what this machine lacks to run the kernels on any tensors; None if nothing"""
    if th.compiler.is_compiling():  # which cannot look into triton, and on a GPU needs it, too
        return None
    return _missing()


def can_run(theta: th.Tensor) -> bool:
    """:return: whether the kernels run on such tensors"""
    return theta.is_cuda and theta.shape[2] <= MAX_SIZE and theta.dtype != th.float64 and missing() is None


def _tiles(h: int) -> tuple[int, dict[str, int]]:
    """:return: number of groups of rows of M, and the kernels' constants; about 8 numbers of a tile for each thread"""
    cols = max(16, 1 << (h - 1).bit_length())
    rows = 8 if cols <= 64 else 16
    return -(-h // rows), {"ROWS": rows, "COLS": cols, "CHUNK": CHUNK, "num_warps": max(1, rows * cols // 256)}


def _device(x: th.Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device."""
    return th.cuda.device(x.device) if x.is_cuda else nullcontext()


def forward(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float, keep: bool
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """As :func:`sb3_shm.memory.backends.cpu.forward`."""
    from sb3_shm.memory.backends import cuda_kernels

    n, t, h = inputs.theta.shape
    groups, constants = _tiles(h)
    out, memory = th.empty_like(inputs.theta), th.empty_like(state)
    kept = state.new_empty((n, -(-t // CHUNK), h, h) if keep else (0, 0, 0, 0))
    with _device(state):
        cuda_kernels.forward[(n, groups)](
            *inputs, episode_start.view(th.uint8), state, clip, out, memory, kept, t, h, KEEP=keep, **constants
        )
    return out, memory, kept


def backward(
    inputs: HadamardInputs, episode_start: th.Tensor, kept: th.Tensor, dout: th.Tensor, dmemory: th.Tensor, clip: float
) -> tuple[HadamardInputs, th.Tensor]:
    """
    The equations of :func:`sb3_shm.memory.backends.cpu.backward`, with M kept at every 16th step. Sums over rows are added up
    over groups of rows at the end: gradients do not depend on timing.
    """
    from sb3_shm.memory.backends import cuda_kernels

    n, t, h = inputs.theta.shape
    groups, constants = _tiles(h)
    dtheta, dv, dstate = th.empty_like(inputs.theta), th.empty_like(inputs.v), th.empty_like(dmemory)
    dvc, dk, dq = (kept.new_empty(groups, n, t, h) for _ in range(3))
    starts, scratch = episode_start.view(th.uint8), kept.new_empty(n, CHUNK, h, h)
    with _device(kept):
        cuda_kernels.backward[(n, groups)](
            *(*inputs, starts, kept, dout.contiguous(), dmemory.contiguous(), clip, scratch),
            *(dtheta, dvc, dv, dk, dq, dstate, t, h),
            **constants,
        )
    dvc, dk, dq = (x.sum(dim=0) for x in (dvc, dk, dq))
    return HadamardInputs(dtheta, dvc, dv, dk, dq), dstate


_recurrence = fuse("cuda", forward, backward, CHUNK)


def hadamard_recurrence(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    The fused recurrence, forward and backward; compiled at the first use of a memory size, for seconds, then cached on disk.

    The result does not depend on the other sequences. See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.

    :raises ValueError: something is missing on this machine, or tensors on another device, not of float32, or with H above 256
    """
    theta = inputs.theta
    lacks = missing()
    if lacks is not None:
        raise ValueError(f"backend 'cuda' needs {lacks}")
    if th.cuda.is_available() and not theta.is_cuda:
        raise ValueError(f"backend 'cuda' needs tensors on a CUDA device, got {theta.device}")
    if theta.dtype != th.float32 or theta.shape[2] > MAX_SIZE:
        raise ValueError(f"backend 'cuda' needs float32 and H up to {MAX_SIZE}, got {theta.dtype} and H = {theta.shape[2]}")
    inputs = HadamardInputs(*(x.contiguous() for x in inputs))
    return _recurrence(inputs, state.contiguous(), episode_start.contiguous(), float("inf") if clip is None else float(clip))
