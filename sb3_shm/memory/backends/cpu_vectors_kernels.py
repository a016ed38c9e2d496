"""The loops of :mod:`sb3_shm.memory.backends.cpu_vectors`, compiled by numba. Imported at the first use."""

from functools import cache

import numpy as np

from sb3_shm.memory.backends.cpu_numba import EPSILON, HALF, ONE, ZERO, Bools, Floats, Kernel, calibration, f4, inline

UNROLLED = 64
"""Below it LLVM unrolls the loops over a size that it knows, and makes no vectors of them."""


@inline("contract")
def sigmoid(z: f4) -> f4:
    """σ(z) = (1 + tanh(z / 2)) / 2."""
    s: f4 = HALF * calibration(HALF * z)
    return s


@inline("contract", "reassoc", "nsz")
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


@inline("contract", "reassoc", "nsz")
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


@inline("contract", "reassoc", "nsz")
def gate_back(h: int, gate: f4, z: Floats, grad: Floats, dz: Floats) -> f4:
    """From the gradient of gate * z to that of z, and of the gate, which is returned."""
    total = ZERO
    for j in range(h):
        total += grad[j] * z[j]
        dz[j] = gate * grad[j]
    return total


@cache
def vectors_forward(h: int) -> Kernel:
    """:return: the forward kernel of :mod:`sb3_shm.memory.backends.cpu_vectors` for the memory size h, over steps"""

    def shm_vectors_forward(
        z: Floats, vc: Floats, v: Floats, k: Floats, q: Floats, past: Floats, start: int, stop: int
    ) -> None:  # fmt: skip
        size = k.shape[1] if h < UNROLLED else h
        for i in range(start, stop):
            unit(size, z[i, :h], k[i])
            unit(size, z[i, h : 2 * h], q[i])
            gate = sigmoid(z[i, 3 * h])
            for j in range(size):
                v[i, j] = gate * z[i, 2 * h + j]
                vc[i, j] = z[i, 3 * h + 1 + j]
                past[i, j] = z[i, 4 * h + 1 + j]

    return Kernel(shm_vectors_forward)


@cache
def vectors_backward(h: int) -> Kernel:
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

    return Kernel(shm_vectors_backward)


@inline()
def repeat(d: int, x: Floats, row: Floats) -> None:
    """row = (x, x)."""
    for j in range(d):
        row[j] = x[j]
    for j in range(d):
        row[d + j] = x[j]


@inline()
def change(d: int, x: Floats, before: Floats, row: Floats) -> None:
    """row = (x, x - before)."""
    for j in range(d):
        row[j] = x[j]
    for j in range(d):
        row[d + j] = x[j] - before[j]


@cache
def change_forward(d: int) -> Kernel:
    """:return: the forward kernel of ``cpu_vectors.with_change`` for inputs of size d, over sequences"""

    def shm_change_forward(x: Floats, before: Floats, episode_start: Bools, both: Floats, start: int, stop: int) -> None:
        for n in range(start, stop):
            for t in range(x.shape[1]):
                row = both[n, t]
                if episode_start[n, t]:
                    repeat(d, x[n, t], row)
                else:
                    change(d, x[n, t], before[n] if t == 0 else x[n, t - 1], row)

    return Kernel(shm_change_forward)


@cache
def change_backward(d: int) -> Kernel:
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

    return Kernel(shm_change_backward)
