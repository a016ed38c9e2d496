"""
The loops of :mod:`sb3_shm.memory.backends.cpu_cells`, compiled by numba; imported at the first use.

A GRU and an LSTM spend their time in the product of the hidden states with the recurrent weights. For few sequences the states
are a matrix of few rows, step after step: too little for calls into a library, so the product is made here. A tile of its
result, up to 6 rows of one panel, stays in the processor's registers, and the weights are packed into panels, so that they are
read in the order in which they lie. Each entry is the same sum in the same order, whatever other rows there are.

The kernels work on pieces of sequences between two starts of episodes, sorted from the longest to the shortest. Those that
are not over at step s of their own are the first so many. For float32, sigmoid and tanh are polynomials, which vectorise; the
same loops in float64 are there to be tested.
"""

import numpy as np

from sb3_shm.memory.backends.cpu_numba import Kernel, inline
from sb3_shm.memory.backends.cpu_product import Bools, Floats, Ints, add_product, copy, sigmoid, tanh


@inline("contract")
def gru_row(
    h: int, r: Floats, u: Floats, n: Floats, zr: Floats, zu: Floats, zn: Floats, state: Floats, kept_zn: Floats
) -> None:  # fmt: skip
    """
    One step of one row, in place: r, u and n are at first what the input gives to these gates, z what the state gives.

        r = σ(r + zr),  u = σ(u + zu),  n = tanh(n + r zn),  h = n + u (h - n)
    """
    for j in range(h):
        reset, update, z = sigmoid(r[j] + zr[j]), sigmoid(u[j] + zu[j]), zn[j]
        new = tanh(n[j] + reset * z)
        state[j] = new + update * (state[j] - new)
        r[j], u[j], n[j], kept_zn[j] = reset, update, new, z


@inline("contract")
def gru_row_back(
    h: int, r: Floats, u: Floats, n: Floats, zn: Floats, before: Floats, dout: Floats, grad: Floats,
    dzn: Floats, dr: Floats, du: Floats, dn: Floats,
) -> None:  # fmt: skip
    """The gradients of what comes into the gates; ``grad`` turns from dh_t into that part of dh_{t-1} which takes no gate."""
    one = grad.dtype.type(1)
    for j in range(h):
        g = grad[j] + dout[j]
        of_n = g * (one - u[j]) * (one - n[j] * n[j])
        dzn[j] = of_n * r[j]
        dr[j] = of_n * zn[j] * r[j] * (one - r[j])
        du[j] = g * (before[j] - n[j]) * u[j] * (one - u[j])
        dn[j] = of_n
        grad[j] = g * u[j]


@inline("contract")
def lstm_row(
    h: int, i: Floats, f: Floats, g: Floats, o: Floats, zi: Floats, zf: Floats, zg: Floats, zo: Floats,
    state: Floats, cell: Floats,
) -> None:  # fmt: skip
    """
    One step of one row, in place: i, f, g and o are at first what the input gives to these gates, z what the state gives.

        i = σ(i + zi),  f = σ(f + zf),  g = tanh(g + zg),  o = σ(o + zo),  c = f c + i g,  h = o tanh(c)
    """
    for j in range(h):
        enter, forget, new, leave = sigmoid(i[j] + zi[j]), sigmoid(f[j] + zf[j]), tanh(g[j] + zg[j]), sigmoid(o[j] + zo[j])
        c = forget * cell[j] + enter * new
        cell[j] = c
        state[j] = leave * tanh(c)
        i[j], f[j], g[j], o[j] = enter, forget, new, leave


@inline("contract")
def lstm_row_back(
    h: int, i: Floats, f: Floats, g: Floats, o: Floats, before: Floats, dout: Floats, grad: Floats, grad_cell: Floats,
    di: Floats, df: Floats, dg: Floats, do: Floats,
) -> None:  # fmt: skip
    """The gradients of what comes into the gates; ``grad_cell`` turns from dc_t into dc_{t-1}, ``grad`` from dh_t into 0."""
    zero, one = grad.dtype.type(0), grad.dtype.type(1)
    for j in range(h):
        dh = grad[j] + dout[j]
        out = tanh(f[j] * before[j] + i[j] * g[j])
        dc = grad_cell[j] + dh * o[j] * (one - out * out)
        di[j] = dc * g[j] * i[j] * (one - i[j])
        df[j] = dc * before[j] * f[j] * (one - f[j])
        dg[j] = dc * i[j] * (one - g[j] * g[j])
        do[j] = dh * out * o[j] * (one - o[j])
        grad_cell[j] = dc * f[j]
        grad[j] = zero


# ------------------------------------------------------------------------------------------------------------------ the loops
# start, length: each piece's first step, counted row after row, and its number of steps; fresh: whether it begins at zero and
# not at its row's state. A unit of work is every units-th piece.
def _gru_forward(
    gates: Floats, weights: Floats, bias: Floats, state: Floats, start: Ints, length: Ints, fresh: Bools, units: int,
    out: Floats, kept_zn: Floats, before: Floats, first_unit: int, last_unit: int,
) -> None:  # fmt: skip
    h = out.shape[1]
    steps = len(out) // len(state)
    keeps = len(before) > 0
    for unit in range(first_unit, last_unit):
        begin, size = start[unit::units], length[unit::units]
        rows = len(begin)
        now = np.zeros((rows, h), out.dtype)
        for i in range(rows):
            if not fresh[unit + i * units]:
                now[i] = state[begin[i] // steps]
        z = np.empty((rows, weights.shape[0] * weights.shape[2]), out.dtype)
        unkept = np.empty(h, out.dtype)
        for s in range(size[0]):
            while size[rows - 1] <= s:
                rows -= 1
            for i in range(rows):
                copy(bias, z[i])
                if keeps:
                    copy(now[i], before[begin[i] + s])
            add_product(now, rows, weights, z)
            for i in range(rows):
                t = begin[i] + s
                gru_row(
                    h, gates[t, :h], gates[t, h : 2 * h], gates[t, 2 * h :], z[i, h : 2 * h], z[i, 2 * h : 3 * h], z[i, :h],
                    now[i], kept_zn[t] if keeps else unkept,
                )  # fmt: skip
                copy(now[i], out[t])


def _gru_backward(
    gates: Floats, weights: Floats, kept_zn: Floats, before: Floats, start: Ints, length: Ints, fresh: Bools, units: int,
    dout: Floats, dgates: Floats, dstate: Floats, first_unit: int, last_unit: int,
) -> None:  # fmt: skip
    h = dout.shape[1]
    steps = len(dout) // len(dstate)
    for unit in range(first_unit, last_unit):
        begin, size = start[unit::units], length[unit::units]
        grad = np.zeros((len(begin), weights.shape[0] * weights.shape[2]), dout.dtype)
        dz = np.empty((len(begin), 3 * h), dout.dtype)
        rows = 0
        for s in range(size[0] - 1, -1, -1):
            while rows < len(begin) and size[rows] > s:
                rows += 1
            for i in range(rows):
                t = begin[i] + s
                gru_row_back(
                    h, gates[t, :h], gates[t, h : 2 * h], gates[t, 2 * h :], kept_zn[t], before[t], dout[t], grad[i],
                    dz[i, :h], dz[i, h : 2 * h], dz[i, 2 * h :], dgates[t, 3 * h :],
                )  # fmt: skip
                copy(dz[i], dgates[t])
            add_product(dz, rows, weights, grad)
        for i in range(rows):
            if not fresh[unit + i * units]:
                dstate[begin[i] // steps] = grad[i, :h]


def _lstm_forward(
    gates: Floats, weights: Floats, bias: Floats, state: Floats, cell: Floats, start: Ints, length: Ints, fresh: Bools,
    units: int, out: Floats, last_cell: Floats, before: Floats, cell_before: Floats, first_unit: int, last_unit: int,
) -> None:  # fmt: skip
    h = out.shape[1]
    steps = len(out) // len(state)
    keeps = len(before) > 0
    for unit in range(first_unit, last_unit):
        begin, size = start[unit::units], length[unit::units]
        rows = len(begin)
        now, cell_now = np.zeros((rows, h), out.dtype), np.zeros((rows, h), out.dtype)
        for i in range(rows):
            if not fresh[unit + i * units]:
                now[i] = state[begin[i] // steps]
                cell_now[i] = cell[begin[i] // steps]
        z = np.empty((rows, weights.shape[0] * weights.shape[2]), out.dtype)
        for s in range(size[0]):
            while size[rows - 1] <= s:
                rows -= 1
            for i in range(rows):
                copy(bias, z[i])
                if keeps:
                    copy(now[i], before[begin[i] + s])
                    copy(cell_now[i], cell_before[begin[i] + s])
            add_product(now, rows, weights, z)
            for i in range(rows):
                t = begin[i] + s
                lstm_row(
                    h, gates[t, :h], gates[t, h : 2 * h], gates[t, 2 * h : 3 * h], gates[t, 3 * h :],
                    z[i, :h], z[i, h : 2 * h], z[i, 2 * h : 3 * h], z[i, 3 * h : 4 * h], now[i], cell_now[i],
                )  # fmt: skip
                copy(now[i], out[t])
        for i in range(len(begin)):
            if (begin[i] + size[i]) % steps == 0:
                last_cell[begin[i] // steps] = cell_now[i]


def _lstm_backward(
    gates: Floats, weights: Floats, cell_before: Floats, start: Ints, length: Ints, fresh: Bools, units: int,
    dout: Floats, dlast_cell: Floats, dgates: Floats, dstate: Floats, dcell: Floats, first_unit: int, last_unit: int,
) -> None:  # fmt: skip
    h = dout.shape[1]
    steps = len(dout) // len(dstate)
    for unit in range(first_unit, last_unit):
        begin, size = start[unit::units], length[unit::units]
        grad = np.zeros((len(begin), weights.shape[0] * weights.shape[2]), dout.dtype)
        grad_cell = np.zeros((len(begin), h), dout.dtype)
        for i in range(len(begin)):
            if (begin[i] + size[i]) % steps == 0:
                grad_cell[i] = dlast_cell[begin[i] // steps]
        dz = np.empty((len(begin), 4 * h), dout.dtype)
        rows = 0
        for s in range(size[0] - 1, -1, -1):
            while rows < len(begin) and size[rows] > s:
                rows += 1
            for i in range(rows):
                t = begin[i] + s
                lstm_row_back(
                    h, gates[t, :h], gates[t, h : 2 * h], gates[t, 2 * h : 3 * h], gates[t, 3 * h :],
                    cell_before[t], dout[t], grad[i], grad_cell[i],
                    dz[i, :h], dz[i, h : 2 * h], dz[i, 2 * h : 3 * h], dz[i, 3 * h :],
                )  # fmt: skip
                copy(dz[i], dgates[t])
            add_product(dz, rows, weights, grad)
        for i in range(rows):
            if not fresh[unit + i * units]:
                dstate[begin[i] // steps] = grad[i, :h]
                dcell[begin[i] // steps] = grad_cell[i]


def _gru_step(gates: Floats, z: Floats, state: Floats, start: int, stop: int) -> None:
    h = state.shape[1]
    unkept = np.empty(h, state.dtype)
    for i in range(start, stop):
        gru_row(
            h, gates[i, :h], gates[i, h : 2 * h], gates[i, 2 * h :], z[i, :h], z[i, h : 2 * h], z[i, 2 * h :], state[i], unkept
        )


def _lstm_step(gates: Floats, z: Floats, state: Floats, cell: Floats, start: int, stop: int) -> None:
    h = state.shape[1]
    for i in range(start, stop):
        lstm_row(
            h, gates[i, :h], gates[i, h : 2 * h], gates[i, 2 * h : 3 * h], gates[i, 3 * h :],
            z[i, :h], z[i, h : 2 * h], z[i, 2 * h : 3 * h], z[i, 3 * h :], state[i], cell[i],
        )  # fmt: skip


gru_forward, gru_backward, gru_step = Kernel(_gru_forward), Kernel(_gru_backward), Kernel(_gru_step)
lstm_forward, lstm_backward, lstm_step = Kernel(_lstm_forward), Kernel(_lstm_backward), Kernel(_lstm_step)
