"""
The loops of :mod:`sb3_shm.memory.backends.cpu`, compiled by numba. Imported at the first use, because numba takes its time.

How they become fast (look at ``inspect_asm``, not only at the clock, after a change):

* Everything innermost is a function over contiguous rows of M. Its arrays are declared not to overlap, otherwise LLVM emits an
  overlap check per pair of arrays and gives up vectorising when there are many; and it is inlined into the loop over rows.
* H is a constant of the compiled kernel, a multiple of 8: no remainder loops, small rows are unrolled completely.
* C is computed by a polynomial and one division, all of which vectorises, while numba's own tanh does not.

The flags allow fused multiply-adds and, in the row functions, sums in another order, but keep NaN and inf as they are.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from sb3_shm.memory.backends.cpu import CHUNK
from sb3_shm.memory.backends.cpu_cache import KernelCache

ROWS = 64  # rows of M in a unit of work
BLOCK = 4  # rows that walk through a chunk together: the scratch they need in the backward pass fits in the cache

f4 = np.float32
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]

ZERO, HALF, ONE, TWO, EPSILON = f4(0), f4(0.5), f4(1), f4(2), f4(1e-6)
SCALE, LIMIT = f4(-2 * np.log2(np.e)), f4(124)
# Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
ROUND, EXPONENT_SHIFT, EXPONENT_BIAS = f4(1.5 * 2**23), np.int32(23), np.int32(127 << 23)
E1, E2, E3, E4, E5, E6 = (f4(x) for x in (0.6931471805, 0.2402265069, 0.0555041086, 0.0096181291, 0.0013333558, 0.0001540353))


class _NoAlias(Compiler):
    """numba's compiler, with array arguments declared not to overlap, for which ``njit`` has no option."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)  # type: ignore[no-untyped-call]
        self.state.flags.noalias = True


def _inline(*fastmath: str) -> Callable[..., Any]:
    return njit(fastmath=set(fastmath), error_model="numpy", forceinline=True, pipeline_class=_NoAlias)


def _bitcast(source: Any, target: Any, llvm_type: Any) -> Any:
    @intrinsic
    def bitcast(typing_context: Any, x: Any) -> Any:
        return target(source), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_type)

    return bitcast


_bits = _bitcast(types.float32, types.int32, ir.IntType(32))
_from_bits = _bitcast(types.int32, types.float32, ir.FloatType())


@_inline("contract")
def calibration(z: f4) -> f4:
    """
    1 + tanh(z) = 2 / (1 + 2^y), y = -2 z log2(e), to about 2e-7 of its value, which 1 + tanh(z) itself misses for z < 0.

    2^y is a polynomial on [-1/2, 1/2] times a power of two made from its bits. 1 at z = 0, never inf, NaN for NaN.
    """
    y = z * SCALE
    y = LIMIT if y > LIMIT else y
    y = -LIMIT if y < -LIMIT else y
    rounded = y + ROUND
    x = y - (rounded - ROUND)
    power: f4 = _from_bits(np.int32(np.int32(_bits(rounded) << EXPONENT_SHIFT) + EXPONENT_BIAS))
    return TWO / (ONE + power * (ONE + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * (E5 + x * E6)))))))


@_inline("contract")
def clamp(x: f4, clip: f4) -> f4:
    x = clip if x > clip else x
    return -clip if x < -clip else x


@_inline("contract", "reassoc", "nsz")
def step(h: int, memory: Floats, theta: f4, vc: Floats, v: f4, k: Floats, q: Floats, clip: f4) -> f4:
    """One step of one row of M, in place: returns the row's entry of h."""
    out = ZERO
    for j in range(h):
        m = clamp(memory[j] * calibration(theta * vc[j]) + v * k[j], clip)
        memory[j] = m
        out += m * q[j]
    return out


@_inline("contract", "reassoc", "nsz")
def step_again(
    h: int, before: Floats, after: Floats, c: Floats, theta: f4, vc: Floats, v: f4, k: Floats, clip_before: f4
) -> None:
    """The same step for the backward pass: keeps C, and M before it is clipped."""
    for j in range(h):
        c[j] = calibration(theta * vc[j])
        after[j] = clamp(before[j], clip_before) * c[j] + v * k[j]


@_inline("contract", "reassoc", "nsz")
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


def _njit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at the first call; cached on disk if there is a place to write."""
    kernel: Any = njit(nogil=True, error_model="numpy")(function)
    try:
        # As njit(cache=True) does with numba's own
        kernel._cache = KernelCache(function)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, RuntimeError) as error:
        KernelCache.warn(str(Path(__file__).parent), str(error))
    return kernel  # type: ignore[no-any-return]


def units(n: int, h: int) -> int:
    """:return: number of units of work, (sequence, up to 64 rows of M). A function of the shape only, as are all the sums."""
    return n * -(-h // ROWS)


@cache
def forward(h: int) -> Callable[..., None]:
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
                    if len(kept) and t % CHUNK == 0:
                        kept[n, t // CHUNK, block:end] = memory[n, block:end]
                    if episode_start[n, t]:
                        memory[n, block:end] = ZERO
                    for i in range(block, end):
                        out[n, t, i] = step(h, memory[n, i], theta[n, t, i], vc[n, t], v[n, t, i], k[n, t], q[n, t], limit)

    return _njit(hadamard_forward)


@cache
def backward(h: int) -> Callable[..., None]:
    """:return: the backward kernel for the memory size h, a multiple of 8; dvc, dk, dq have a leading axis to be summed"""

    def hadamard_backward(
        theta: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, episode_start: Bools, clip: float,
        kept: Floats, dout: Floats, dmemory: Floats,
        dtheta: Floats, dvc: Floats, dv: Floats, dk: Floats, dq: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        groups = -(-h // ROWS)
        limit = f4(clip)
        after = np.zeros((1 + (CHUNK + 1) * BLOCK, h), f4)  # row 0 stays zero: M before an episode's first step
        c = np.empty((CHUNK * BLOCK, h), f4)
        for unit in range(start, stop):
            n, group = unit // groups, unit % groups
            first = group * ROWS
            for chunk in range(kept.shape[1] - 1, -1, -1):
                begin = chunk * CHUNK
                end = min(theta.shape[1], begin + CHUNK)
                dvc[group, n, begin:end] = ZERO
                dk[group, n, begin:end] = ZERO
                dq[group, n, begin:end] = ZERO
                for block in range(first, min(h, first + ROWS), BLOCK):
                    after[1 : 1 + BLOCK] = kept[n, chunk, block : block + BLOCK]
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

    return _njit(hadamard_backward)


@_inline("contract")
def sigmoid(z: f4) -> f4:
    """σ(z) = (1 + tanh(z / 2)) / 2."""
    s: f4 = HALF * calibration(HALF * z)
    return s


@_inline("contract", "reassoc", "nsz")
def unit(h: int, z: Floats, out: Floats) -> None:
    """out = silu(z) at Euclidean length 1."""
    square = ZERO
    for j in range(h):
        a = z[j] * sigmoid(z[j])
        out[j] = a
        square += a * a
    scale = ONE / np.sqrt(square + EPSILON)
    for j in range(h):
        out[j] *= scale


@_inline("contract", "reassoc", "nsz")
def unit_back(h: int, z: Floats, out: Floats, grad: Floats, dz: Floats) -> None:
    """From the gradient of :func:`unit`'s result, ``out``, to that of z."""
    square = along = ZERO
    for j in range(h):
        a = z[j] * sigmoid(z[j])
        square += a * a
        along += grad[j] * out[j]
    scale = ONE / np.sqrt(square + EPSILON)
    for j in range(h):
        s = sigmoid(z[j])
        dz[j] = scale * (grad[j] - out[j] * along) * s * (ONE + z[j] * (ONE - s))


@_inline("contract", "reassoc", "nsz")
def gate_back(h: int, gate: f4, z: Floats, grad: Floats, dz: Floats) -> f4:
    """From the gradient of gate * z to that of z, and of the gate, which is returned."""
    total = ZERO
    for j in range(h):
        total += grad[j] * z[j]
        dz[j] = gate * grad[j]
    return total


@cache
def vectors_forward(h: int) -> Callable[..., None]:
    """:return: the forward kernel of :mod:`sb3_shm.memory.backends.cpu_vectors` for the memory size h, over steps"""

    def shm_vectors_forward(
        z: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, past: Floats, start: int, stop: int
    ) -> None:  # fmt: skip
        for i in range(start, stop):
            unit(h, z[i, :h], k[i])
            unit(h, z[i, h : 2 * h], q[i])
            gate = sigmoid(z[i, 3 * h])
            for j in range(h):
                v[i, j] = gate * z[i, 2 * h + j]
                vc[i, j] = z[i, 3 * h + 1 + j]
                past[i, j] = z[i, 4 * h + 1 + j]

    return _njit(shm_vectors_forward)


@cache
def vectors_backward(h: int) -> Callable[..., None]:
    """:return: the backward kernel for the memory size h, over steps"""

    def shm_vectors_backward(
        z: Floats, k: Floats, q: Floats, dvc: Floats, dv: Floats, dk: Floats, dq: Floats, dpast: Floats, dz: Floats,
        start: int, stop: int,
    ) -> None:  # fmt: skip
        for i in range(start, stop):
            unit_back(h, z[i, :h], k[i], dk[i], dz[i, :h])
            unit_back(h, z[i, h : 2 * h], q[i], dq[i], dz[i, h : 2 * h])
            gate = sigmoid(z[i, 3 * h])
            dgate = gate_back(h, gate, z[i, 2 * h : 3 * h], dv[i], dz[i, 2 * h : 3 * h])
            dz[i, 3 * h] = dgate * gate * (ONE - gate)
            for j in range(h):
                dz[i, 3 * h + 1 + j] = dvc[i, j]
                dz[i, 4 * h + 1 + j] = dpast[i, j]

    return _njit(shm_vectors_backward)


@cache
def change_forward(d: int) -> Callable[..., None]:
    """:return: the forward kernel of ``cpu_vectors.with_change`` for inputs of size d, over sequences"""

    def shm_change_forward(x: Floats, before: Floats, episode_start: Bools, both: Floats, start: int, stop: int) -> None:
        for n in range(start, stop):
            for t in range(x.shape[1]):
                both[n, t, :d] = x[n, t]
                if episode_start[n, t]:
                    both[n, t, d:] = x[n, t]
                elif t == 0:
                    for j in range(d):
                        both[n, t, d + j] = x[n, t, j] - before[n, j]
                else:
                    for j in range(d):
                        both[n, t, d + j] = x[n, t, j] - x[n, t - 1, j]

    return _njit(shm_change_forward)


@cache
def change_backward(d: int) -> Callable[..., None]:
    """:return: the backward kernel for inputs of size d, over sequences"""

    def shm_change_backward(
        episode_start: Bools, grad: Floats, dx: Floats, dbefore: Floats, start: int, stop: int
    ) -> None:  # fmt: skip
        steps = grad.shape[1]
        for n in range(start, stop):
            dbefore[n] = ZERO
            if not episode_start[n, 0]:
                dbefore[n] = -grad[n, 0, d:]
            for t in range(steps):
                if t + 1 < steps and not episode_start[n, t + 1]:
                    for j in range(d):
                        dx[n, t, j] = grad[n, t, j] + grad[n, t, d + j] - grad[n, t + 1, d + j]
                else:
                    for j in range(d):
                        dx[n, t, j] = grad[n, t, j] + grad[n, t, d + j]

    return _njit(shm_change_backward)
