"""The loops of :mod:`sb3_shm.memory.backends.cpu_step`, compiled by numba. Imported at the first use."""

from functools import cache

import numpy as np

from sb3_shm.memory.backends.cpu_kernels import largest, step
from sb3_shm.memory.backends.cpu_numba import ONE, SMALL, ZERO, Bools, Floats, Kernel, f4, inline
from sb3_shm.memory.backends.cpu_vectors_kernels import change, repeat, sigmoid, unit
from sb3_shm.memory.backends.inputs import BLOCK


@inline("contract", "reassoc", "nsz")
def mean_and_scale(d: int, x: Floats, eps: f4) -> tuple[f4, f4]:
    """:return: what a LayerNorm subtracts, and what it multiplies by before its weights"""
    total = ZERO
    for j in range(d):
        total += x[j]
    mean = total / f4(d)
    square = ZERO
    for j in range(d):
        square += (x[j] - mean) * (x[j] - mean)
    return mean, ONE / np.sqrt(square / f4(d) + eps)


@inline("contract", "reassoc", "nsz")
def dot(d: int, a: Floats, b: Floats) -> f4:
    total = ZERO
    for j in range(d):
        total += a[j] * b[j]
    return total


@inline("contract", "reassoc", "nsz")
def four_dots(d: int, a: Floats, b: Floats, out: Floats, i: int) -> None:
    """out[0..3, i] = a · b[0..3]: sums that do not wait for each other."""
    one = two = three = four = ZERO
    for j in range(d):
        one += a[j] * b[0, j]
        two += a[j] * b[1, j]
        three += a[j] * b[2, j]
        four += a[j] * b[3, j]
    out[0, i], out[1, i], out[2, i], out[3, i] = one, two, three, four


@cache
def shm_step(d: int, h: int) -> Kernel:
    """:return: the kernel for inputs of size d and the memory size h, a multiple of 8, over rows"""

    def one_shm_step(
        x: Floats, matrix: Floats, before: Floats, episode_start: Bools, theta: Floats, scale: float,
        norm_weight: Floats, norm_bias: Floats, norm_eps: float, projection: Floats, read_gain: Floats, read_eps: float,
        output: Floats, output_bias: Floats, clip: float,
        y: Floats, normed: Floats, start: int, stop: int,
    ) -> None:  # fmt: skip
        s, limit = f4(scale), f4(clip)
        rows = -(-(stop - start) // 4) * 4
        both = np.zeros((rows, 2 * d), f4)
        z = np.empty((rows, 5 * h + 1), f4)
        k, q, v, thetas, out = np.empty(h, f4), np.empty(h, f4), np.empty(h, f4), np.empty(h, f4), np.empty(h, f4)
        for n in range(start, stop):
            mean, inverse = mean_and_scale(d, x[n], f4(norm_eps))
            for j in range(d):
                normed[n, j] = (x[n, j] - mean) * inverse * norm_weight[j] + norm_bias[j]
            if episode_start[n]:
                repeat(d, normed[n], both[n - start])
            else:
                change(d, normed[n], before[n], both[n - start])
        for i in range(5 * h + 1):  # a row of weights is read once for all rows
            for n in range(0, stop - start, 4):
                four_dots(2 * d, projection[i], both[n : n + 4], z[n : n + 4], i)
        for n in range(start, stop):
            zn = z[n - start]
            unit(h, zn[:h], k)
            unit(h, zn[h : 2 * h], q)
            gate = sigmoid(zn[3 * h])
            vc = zn[3 * h + 1 : 4 * h + 1]
            if episode_start[n]:
                matrix[n] = ZERO
            for i in range(h):
                v[i], thetas[i] = gate * zn[2 * h + i], s * theta[n, i]
            most = largest(h, vc)
            for block in range(h // BLOCK):
                i = block * BLOCK
                tb, vb, ob = thetas[i : i + BLOCK], v[i : i + BLOCK], out[i : i + BLOCK]
                if largest(BLOCK, tb) * most <= SMALL:
                    step(h, True, matrix[n, block], tb, vc, vb, k, q, limit, ob)
                else:
                    step(h, False, matrix[n, block], tb, vc, vb, k, q, limit, ob)
            mean, inverse = mean_and_scale(h, out, f4(read_eps))
            for i in range(h):
                out[i] = (out[i] - mean) * inverse * read_gain[i] + zn[4 * h + 1 + i]
            for i in range(output.shape[0]):
                y[n, i] = dot(h, output[i], out) + output_bias[i]

    return Kernel(one_shm_step)
