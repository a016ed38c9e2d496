"""
The loops of :mod:`sb3_shm.memory.backends.cpu`, compiled by numba. Imported at the first use, because numba takes its time.

How they become fast (look at ``inspect_asm``, not only at the clock, after a change):

* Everything innermost is a function over four rows of M, one after the other in memory. LLVM unrolls the loop over them and
  vectorises that over columns, so what all rows read, and the sums over rows, stay in registers. Its arrays are declared
  not to overlap, otherwise LLVM emits an overlap check per pair of arrays and gives up vectorising when there are many.
* H is a constant of the compiled kernel, a multiple of 8: no remainder loops, small rows are unrolled completely.
* C is computed by a polynomial, or two and a division, all of which vectorises, while numba's own tanh does not.

The flags allow fused multiply-adds and, in the functions of blocks, sums in another order, but keep NaN and inf as they are.
"""

from functools import cache

import numpy as np

from sb3_shm.memory.backends.cpu_numba import (
    SMALL,
    TWO,
    ZERO,
    Bools,
    Floats,
    Kernel,
    calibration,
    calibration_of_small,
    clamp,
    f4,
    inline,
)
from sb3_shm.memory.backends.inputs import BLOCK, LARGEST_GRADIENT, SMALLEST_GRADIENT

BLOCKS = 16  # of rows in a unit of work


@inline("contract", "reassoc", "nsz")
def largest(n: int, x: Floats) -> f4:
    most = ZERO
    for j in range(n):
        most = max(most, abs(x[j]))
    return most


@inline("contract", "reassoc", "nsz")
def step(
    h: int, are_small: bool, memory: Floats, theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, clip: f4, out: Floats
) -> None:
    """One step of a block of M, in place, and its entries of h; ``are_small``: no theta times vc is beyond ``SMALL``."""
    for b in range(BLOCK):
        out[b] = ZERO
    for j in range(h):
        for b in range(BLOCK):
            i = b * h + j
            z = theta[b] * vc[j]
            c = calibration_of_small(z) if are_small else calibration(z)
            m = clamp(memory[i] * c + v[b] * k[j], clip)
            memory[i] = m
            out[b] += m * q[j]


@inline("contract", "reassoc", "nsz")
def step_again(
    h: int, are_small: bool, before: Floats, after: Floats, c: Floats,
    theta: Floats, vc: Floats, v: Floats, k: Floats, clip_before: f4,
) -> None:  # fmt: skip
    """The same step for the backward pass: keeps C, and M before it is clipped."""
    for j in range(h):
        for b in range(BLOCK):
            i = b * h + j
            z = theta[b] * vc[j]
            c[i] = calibration_of_small(z) if are_small else calibration(z)
            after[i] = clamp(before[i], clip_before) * c[i] + v[b] * k[j]


@inline("contract")
def bound(n: int, grad: Floats, largest: f4, smallest: f4) -> None:
    """Hold the gradient of M where infinity times 0 cannot come of it, nor denormals, see ``inputs``."""
    for j in range(n):
        g = clamp(grad[j], largest)
        grad[j] = ZERO if abs(g) < smallest else g


@inline("contract")
def of_clamp(grad: f4, x: f4, clip: f4) -> f4:
    """The gradient of x, given that of clamp(x). By itself, as some versions of LLVM make a branch of it elsewhere."""
    return ZERO if abs(x) > clip else grad


@inline("contract", "reassoc", "nsz")
def step_back(
    h: int, grad: Floats, before: Floats, after: Floats, c: Floats,
    theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, dout: Floats,
    dtheta: Floats, dvc: Floats, dv: Floats, dk: Floats, dq: Floats, clip_before: f4, clip: f4,
) -> None:  # fmt: skip
    """The step's gradients: ``grad`` turns from dM_t into dM_{t-1}, dvc, dk and dq are added to, dtheta and dv set."""
    for b in range(BLOCK):
        dtheta[b] = dv[b] = ZERO
    for j in range(h):
        dvc_j, dk_j, dq_j = dvc[j], dk[j], dq[j]
        for b in range(BLOCK):
            i = b * h + j
            g = of_clamp(grad[i] + dout[b] * q[j], after[i], clip)
            dq_j += dout[b] * clamp(after[i], clip)
            dk_j += g * v[b]
            dv[b] += g * k[j]
            g *= c[i]
            dz = g * clamp(before[i], clip_before) * (TWO - c[i])  # dC/dz = C (2 - C)
            dvc_j += dz * theta[b]
            dtheta[b] += dz * vc[j]
            grad[i] = g
        dvc[j], dk[j], dq[j] = dvc_j, dk_j, dq_j


def units(n: int, h: int) -> int:
    """:return: number of units of work, (sequence, up to 64 rows of M). A function of the shape only, as are all the sums."""
    return n * -(-h // (BLOCKS * BLOCK))


@cache
def forward(h: int, chunk_steps: int) -> Kernel:
    """:return: the forward kernel for the memory size h, a multiple of 8"""

    def hadamard_forward(
        theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, episode_start: Bools, clip: float,
        out: Floats, memory: Floats, kept: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        blocks = h // BLOCK
        groups = -(-blocks // BLOCKS)
        limit = f4(clip)
        most = np.empty(vc.shape[1], f4)
        for unit in range(start, stop):
            n, first = unit // groups, unit % groups * BLOCKS
            for t in range(vc.shape[1]):
                most[t] = largest(h, vc[n, t])
            for block in range(first, min(blocks, first + BLOCKS)):
                m = memory[n, block]
                for t in range(vc.shape[1]):
                    if len(kept) and t % chunk_steps == 0:
                        kept[n, t // chunk_steps, block] = m
                    if episode_start[n, t]:
                        m[:] = ZERO
                    rows, vt, o = theta[n, t, block], v[n, t, block], out[n, t, block]
                    if largest(BLOCK, rows) * most[t] <= SMALL:
                        step(h, True, m, rows, vc[n, t], vt, k[n, t], q[n, t], limit, o)
                    else:
                        step(h, False, m, rows, vc[n, t], vt, k[n, t], q[n, t], limit, o)

    return Kernel(hadamard_forward)


@cache
def backward(h: int, chunk_steps: int) -> Kernel:
    """:return: the backward kernel for the memory size h, a multiple of 8; dvc, dk, dq have a leading axis to be summed"""

    def hadamard_backward(
        theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, episode_start: Bools, clip: float,
        kept: Floats, dout: Floats, dmemory: Floats,
        dtheta: Floats, dvc: Floats, dv: Floats, dk: Floats, dq: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        blocks = h // BLOCK
        groups, chunks = -(-blocks // BLOCKS), kept.shape[1]
        limit, most_grad, least_grad = f4(clip), f4(LARGEST_GRADIENT), f4(SMALLEST_GRADIENT)
        ms = np.zeros((2 + chunk_steps, BLOCK * h), f4)  # row 0 stays zero: M before an episode's first step
        cs = np.empty((chunk_steps, BLOCK * h), f4)
        most = np.empty(vc.shape[1], f4)
        for unit in range(start, stop):
            n, group = unit // groups, unit % groups
            first = group * BLOCKS
            for t in range(vc.shape[1]):
                most[t] = largest(h, vc[n, t])
            for chunk in range(chunks - 1, -1, -1):
                begin = chunk * chunk_steps
                end = min(vc.shape[1], begin + chunk_steps)
                dvc[group, n, begin:end] = ZERO
                dk[group, n, begin:end] = ZERO
                dq[group, n, begin:end] = ZERO
                for block in range(first, min(blocks, first + BLOCKS)):
                    dm = dmemory[n, block]
                    ms[1] = kept[n, chunk, block]
                    if chunk < chunks - 1:
                        bound(BLOCK * h, dm, most_grad, least_grad)
                    for t in range(begin, end):
                        # What was kept is what entered the chunk, after clipping, but M_0 may exceed clip.
                        limit_before = limit if t > begin else f4(np.inf)
                        past, now, c = ms[0 if episode_start[n, t] else 1 + t - begin], ms[2 + t - begin], cs[t - begin]
                        rows, vt = theta[n, t, block], v[n, t, block]
                        if largest(BLOCK, rows) * most[t] <= SMALL:
                            step_again(h, True, past, now, c, rows, vc[n, t], vt, k[n, t], limit_before)
                        else:
                            step_again(h, False, past, now, c, rows, vc[n, t], vt, k[n, t], limit_before)
                    for t in range(end - 1, begin - 1, -1):
                        limit_before = limit if t > begin else f4(np.inf)
                        step_back(
                            h, dm, ms[0 if episode_start[n, t] else 1 + t - begin], ms[2 + t - begin], cs[t - begin],
                            theta[n, t, block], vc[n, t], v[n, t, block], k[n, t], q[n, t], dout[n, t, block],
                            dtheta[n, t, block], dvc[group, n, t], dv[n, t, block], dk[group, n, t], dq[group, n, t],
                            limit_before, limit,
                        )  # fmt: skip
                        if episode_start[n, t]:
                            dm[:] = ZERO

    return Kernel(hadamard_backward)
