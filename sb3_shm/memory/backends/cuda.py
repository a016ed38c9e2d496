"""The Hadamard recurrence on a GPU, as one fused operation: triton kernels."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch as th

from sb3_shm.memory.backends.fused import fuse

CHUNK = 16  # steps between two kept M: the backward pass recomputes so many in the cache
MAX_SIZE = 256  # of H
# Long segments, and programs for each of the GPU's processors, below which a sequence is not divided: dividing it takes
# about as much work again. Reasoned, not measured
SEGMENT_STEPS = 256
PROGRAMS = 2
SEGMENTS = 4


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


def _segment_steps(n: int, groups: int, t: int, device: th.device) -> int:
    """:return: steps of a segment, a multiple of CHUNK: all T, or less if the GPU would have little to do otherwise"""
    segments = 1
    if device.type == "cuda" and t >= SEGMENTS * SEGMENT_STEPS:
        programs = PROGRAMS * th.cuda.get_device_properties(device).multi_processor_count
        segments = min(programs // max(1, n * groups), t // SEGMENT_STEPS)
    steps = -(-t // segments) if segments >= SEGMENTS else t
    return -(-steps // CHUNK) * CHUNK


def _device(x: th.Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device."""
    return th.cuda.device(x.device) if x.is_cuda else nullcontext()


def _entries(carried: th.Tensor, summary: list[th.Tensor], reverse: bool) -> th.Tensor:
    """
    :param carried: M_0, or the gradient of M_T, (N, H, H)
    :param summary: product, end, low, high of each segment, (N, segments, H, H); without the bounds if reverse
    :param reverse: from the last segment to the first
    :return: what enters each segment, (N, segments, H, H)
    """
    from sb3_shm.memory.backends import cuda_kernels

    product, end = summary[:2]
    low, high = (None, None) if reverse else summary[2:]
    n, segments, h, _ = end.shape
    entries = th.empty_like(end)
    block = 256
    cuda_kernels.carry[(n, -(-h * h // block))](
        carried, product, end, low, high, entries, segments, h * h, BLOCK=block, REVERSE=reverse
    )
    return entries


def forward(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    state: th.Tensor,
    episode_start: th.Tensor,
    clip: float,
    keep: bool,
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    As :func:`sb3_shm.memory.backends.cpu.forward`. Few long sequences are divided into segments: first each segment's effect
    on any M, all at once, then M at the start of each, then all segments' steps at once.
    """
    from sb3_shm.memory.backends import cuda_kernels

    n, t, h = theta.shape
    groups, constants = _tiles(h)
    steps = _segment_steps(n, groups, t, theta.device)
    grid = (n, groups, -(-t // steps))
    out, kept = th.empty_like(theta), state.new_empty((n, -(-t // CHUNK), h, h) if keep else (0, 0, 0, 0))
    inputs = (theta, vc, v, k, q, episode_start.view(th.uint8))
    with _device(theta):
        entries = state.unsqueeze(1)
        end, *summary = (state.new_empty(n, grid[2], h, h) for _ in range(4 if grid[2] > 1 else 1))
        if summary:
            cuda_kernels.forward[grid](
                *inputs, None, clip, None, end, None, *summary, t, h, steps, KEEP=False, SUMMARY=True, **constants
            )
            product, low, high = summary
            entries = _entries(state, [product, end, low, high], reverse=False)
        cuda_kernels.forward[grid](
            *inputs, entries, clip, out, end, kept, None, None, None, t, h, steps, KEEP=keep, SUMMARY=False, **constants
        )
    return out, end[:, -1].contiguous(), kept


def backward(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    episode_start: th.Tensor,
    kept: th.Tensor,
    dout: th.Tensor,
    dmemory: th.Tensor,
    clip: float,
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    The equations of :func:`sb3_shm.memory.backends.cpu.backward`, with M kept at every 16th step, and the same segments as the
    forward pass. Sums over rows are added up over groups of rows at the end: gradients do not depend on timing.
    """
    from sb3_shm.memory.backends import cuda_kernels

    n, t, h = theta.shape
    groups, constants = _tiles(h)
    steps = _segment_steps(n, groups, t, theta.device)
    grid = (n, groups, -(-t // steps))
    dtheta, dv = th.empty_like(theta), th.empty_like(v)
    dvc, dk, dq = (kept.new_empty(groups, n, t, h) for _ in range(3))
    inputs = (theta, vc, v, k, q, episode_start.view(th.uint8), kept, dout.contiguous())
    sizes = (t, h, steps)
    with _device(theta):
        dmemory = dmemory.contiguous()
        entries = dmemory.unsqueeze(1)
        end, scratch = kept.new_empty(n, grid[2], h, h), kept.new_empty(n, grid[2], CHUNK, h, h)
        if grid[2] > 1:
            product = th.empty_like(end)
            cuda_kernels.backward[grid](
                *inputs, None, clip, scratch, None, None, None, None, None, end, product, *sizes, SUMMARY=True, **constants
            )
            entries = _entries(dmemory, [product, end], reverse=True)
        cuda_kernels.backward[grid](
            *inputs, entries, clip, scratch, dtheta, dvc, dv, dk, dq, end, None, *sizes, SUMMARY=False, **constants
        )
    dvc, dk, dq = (x.sum(dim=0) for x in (dvc, dk, dq))
    return dtheta, dvc, dv, dk, dq, end[:, 0].contiguous()


_recurrence = fuse("cuda", forward, backward, CHUNK)


def hadamard_recurrence(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    state: th.Tensor,
    episode_start: th.Tensor,
    clip: float | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    The fused recurrence, forward and backward; compiled at the first use of a memory size, for seconds, then cached on disk.

    The result does not depend on the other sequences, except that many of them
    are not divided over time, which rounds otherwise. See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.

    :raises ValueError: something is missing on this machine, or tensors on another device, not of float32, or with H above 256
    """
    lacks = missing()
    if lacks is not None:
        raise ValueError(f"backend 'cuda' needs {lacks}")
    if th.cuda.is_available() and not theta.is_cuda:
        raise ValueError(f"backend 'cuda' needs tensors on a CUDA device, got {theta.device}")
    if theta.dtype != th.float32 or theta.shape[2] > MAX_SIZE:
        raise ValueError(f"backend 'cuda' needs float32 and H up to {MAX_SIZE}, got {theta.dtype} and H = {theta.shape[2]}")
    arguments = [x.contiguous() for x in (theta, vc, v, k, q, state, episode_start)]
    return _recurrence(float("inf") if clip is None else float(clip), *arguments)
