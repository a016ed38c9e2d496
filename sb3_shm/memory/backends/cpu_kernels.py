"""
The loops of :mod:`sb3_shm.memory.backends.cpu`, compiled by numba. Imported at the first use, because numba takes its time.

How they become fast (look at ``inspect_asm``, not only at the clock, after a change):

* Everything innermost is a function over contiguous rows of M. Its arrays are declared not to overlap, otherwise LLVM emits an
  overlap check per pair of arrays and gives up vectorising when there are many; and it is inlined into the loop over rows.
* H is a constant of the compiled kernel, a multiple of 8: no remainder loops, small rows are unrolled completely.
* C is computed by a polynomial and one division, all of which vectorises, while numba's own tanh does not.

The flags allow fused multiply-adds and, in the row functions, sums in another order, but keep NaN and inf as they are.
"""

from functools import cache

import numpy as np

from sb3_shm.memory.backends.cpu_numba import TWO, ZERO, Bools, Floats, Kernel, calibration, clamp, f4, inline
from sb3_shm.memory.backends.inputs import LARGEST_GRADIENT, SMALLEST_GRADIENT

ROWS = 64  # rows of M in a unit of work
BLOCK = 4  # rows that walk through a chunk together: the scratch they need in the backward pass fits in the cache


@inline("contract", "reassoc", "nsz")
def step(h: int, memory: Floats, theta: f4, vc: Floats, v: f4, k: Floats, q: Floats, clip: f4) -> f4:
    """One step of one row of M, in place: returns the row's entry of h."""
    out = ZERO
    for j in range(h):
        m = clamp(memory[j] * calibration(theta * vc[j]) + v * k[j], clip)
        memory[j] = m
        out += m * q[j]
    return out


@inline("contract", "reassoc", "nsz")
def step_again(
    h: int, before: Floats, after: Floats, c: Floats, theta: f4, vc: Floats, v: f4, k: Floats, clip_before: f4
) -> None:
    """The same step for the backward pass: keeps C, and M before it is clipped."""
    for j in range(h):
        c[j] = calibration(theta * vc[j])
        after[j] = clamp(before[j], clip_before) * c[j] + v * k[j]


@inline("contract")
def bound(h: int, grad: Floats, largest: f4, smallest: f4) -> None:
    """Hold the gradient of a row of M where infinity times 0 cannot come of it, nor denormals, see ``inputs``."""
    for j in range(h):
        g = clamp(grad[j], largest)
        grad[j] = ZERO if abs(g) < smallest else g


@inline("contract", "reassoc", "nsz")
def step_back(
    h: int, grad: Floats, before: Floats, after: Floats, c: Floats,
    theta: f4, vc: Floats, v: f4, k: Floats, q: Floats, dout: f4,
    dvc: Floats, dk: Floats, dq: Floats, clip_before: f4, clip: f4,
) -> tuple[f4, f4]:  # fmt: skip
    """The step's gradients: ``grad`` turns from dM_t into dM_{t-1}, dvc, dk, dq are added to, returns dtheta and dv."""
    dtheta = dv = ZERO
    for j in range(h):
        g = grad[j] + dout * q[j]
        g = ZERO if abs(after[j]) > clip else g
        dq[j] += dout * clamp(after[j], clip)
        dk[j] += g * v
        dv += g * k[j]
        g *= c[j]
        dz = g * clamp(before[j], clip_before) * (TWO - c[j])  # dC/dz = C (2 - C)
        dvc[j] += dz * theta
        dtheta += dz * vc[j]
        grad[j] = g
    return dtheta, dv


def units(n: int, h: int) -> int:
    """:return: number of units of work, (sequence, up to 64 rows of M). A function of the shape only, as are all the sums."""
    return n * -(-h // ROWS)


@cache
def forward(h: int, chunk_steps: int) -> Kernel:
    """:return: the forward kernel for the memory size h, a multiple of 8"""

    def hadamard_forward(
        theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, episode_start: Bools, clip: float,
        out: Floats, memory: Floats, kept: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        groups = -(-h // ROWS)
        limit = f4(clip)
        for unit in range(start, stop):
            n, first = unit // groups, unit % groups * ROWS
            for block in range(first, min(h, first + ROWS), BLOCK):
                end = block + BLOCK
                for t in range(theta.shape[1]):
                    if len(kept) and t % chunk_steps == 0:
                        kept[n, t // chunk_steps, block:end] = memory[n, block:end]
                    if episode_start[n, t]:
                        memory[n, block:end] = ZERO
                    for i in range(block, end):
                        out[n, t, i] = step(h, memory[n, i], theta[n, t, i], vc[n, t], v[n, t, i], k[n, t], q[n, t], limit)

    return Kernel(hadamard_forward)


@cache
def backward(h: int, chunk_steps: int) -> Kernel:
    """:return: the backward kernel for the memory size h, a multiple of 8; dvc, dk, dq have a leading axis to be summed"""

    def hadamard_backward(
        theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, episode_start: Bools, clip: float,
        kept: Floats, dout: Floats, dmemory: Floats,
        dtheta: Floats, dvc: Floats, dv: Floats, dk: Floats, dq: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        groups = -(-h // ROWS)
        limit, largest, smallest, chunks = f4(clip), f4(LARGEST_GRADIENT), f4(SMALLEST_GRADIENT), kept.shape[1]
        after = np.zeros((1 + (chunk_steps + 1) * BLOCK, h), f4)  # row 0 stays zero: M before an episode's first step
        c = np.empty((chunk_steps * BLOCK, h), f4)
        for unit in range(start, stop):
            n, group = unit // groups, unit % groups
            first = group * ROWS
            for chunk in range(chunks - 1, -1, -1):
                begin = chunk * chunk_steps
                end = min(theta.shape[1], begin + chunk_steps)
                dvc[group, n, begin:end] = ZERO
                dk[group, n, begin:end] = ZERO
                dq[group, n, begin:end] = ZERO
                for block in range(first, min(h, first + ROWS), BLOCK):
                    after[1 : 1 + BLOCK] = kept[n, chunk, block : block + BLOCK]
                    if chunk < chunks - 1:
                        for b in range(BLOCK):
                            bound(h, dmemory[n, block + b], largest, smallest)
                    for t in range(begin, end):
                        # What was kept is what entered the chunk, after clipping, but M_0 may exceed clip.
                        limit_before = limit if t > begin else f4(np.inf)
                        for b in range(BLOCK):
                            i, s = block + b, (t - begin) * BLOCK + b
                            past, now = 0 if episode_start[n, t] else 1 + s, 1 + s + BLOCK
                            step_again(
                                h, after[past], after[now], c[s],
                                theta[n, t, i], vc[n, t], v[n, t, i], k[n, t], limit_before,
                            )  # fmt: skip
                    for t in range(end - 1, begin - 1, -1):
                        limit_before = limit if t > begin else f4(np.inf)
                        for b in range(BLOCK):
                            i, s = block + b, (t - begin) * BLOCK + b
                            past, now = 0 if episode_start[n, t] else 1 + s, 1 + s + BLOCK
                            dtheta[n, t, i], dv[n, t, i] = step_back(
                                h, dmemory[n, i], after[past], after[now], c[s],
                                theta[n, t, i], vc[n, t], v[n, t, i], k[n, t], q[n, t], dout[n, t, i],
                                dvc[group, n, t], dk[group, n, t], dq[group, n, t], limit_before, limit,
                            )  # fmt: skip
                        if episode_start[n, t]:
                            dmemory[n, block : block + BLOCK] = ZERO

    return Kernel(hadamard_backward)
