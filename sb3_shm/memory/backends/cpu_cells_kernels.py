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

from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from sb3_shm.memory.backends.cpu_numba import cached_njit, calibration, inline

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

_features = llvmlite.binding.get_host_cpu_features()
# Bytes of a vector register, and vectors in a row of a tile: 6 rows take 24 of 32 registers, or 12 of 16
BYTES, VECTORS = (64, 4) if _features.get("avx512f") else (32, 2) if _features.get("avx") else (16, 2)
ROWS = 6


def panel_size(itemsize: int) -> int:
    """:return: columns of a panel of packed weights, for numbers of so many bytes"""
    return VECTORS * BYTES // itemsize


# ----------------------------------------------------------------------------------------------------------------- the product
def _make_tile(rows: int) -> Any:
    """:return: c[i, j] += Σ_k a[i, k] b[k, j] for so many rows i and the columns j of a panel, k < size"""

    @intrinsic
    def tile(
        typing_context: Any, a: Any, a_at: Any, b: Any, b_at: Any, size: Any, c: Any, c_at: Any, c_stride: Any
    ) -> Any:  # ``*_at`` are the indices of the first entries
        bits = a.dtype.bitwidth

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size, stride = arguments[4], arguments[7]
            first = []
            for i in (0, 2, 5):  # a, b, c, and their positions behind them
                data = context.make_array(signature.args[i])(context, builder, arguments[i]).data
                first.append(builder.gep(data, [arguments[i + 1]]))
            width = BYTES * 8 // bits
            vector = ir.VectorType(context.get_value_type(a.dtype), width)
            index = context.get_value_type(types.intp)
            undefined = ir.Constant(vector, ir.Undefined)
            zero, zeros = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.VectorType(ir.IntType(32), width), None)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{width}f{bits}"
            )

            def at(pointer: Any, row: Any, row_size: Any, column: int) -> Any:
                entry = builder.add(builder.mul(row, row_size), ir.Constant(index, column))
                return builder.bitcast(builder.gep(pointer, [entry]), vector.as_pointer())

            targets = [[at(first[2], ir.Constant(index, i), stride, j * width) for j in range(VECTORS)] for i in range(rows)]
            sums = [
                [cgutils.alloca_once_value(builder, builder.load(x, align=bits // 8)) for x in of_row] for of_row in targets
            ]
            with cgutils.for_range(builder, size) as loop:
                row_size = ir.Constant(index, VECTORS * width)
                row = [builder.load(at(first[1], loop.index, row_size, j * width), align=bits // 8) for j in range(VECTORS)]
                for i in range(rows):
                    entry = builder.load(builder.gep(first[0], [builder.add(builder.mul(size, index(i)), loop.index)]))
                    spread = builder.shuffle_vector(builder.insert_element(undefined, entry, zero), undefined, zeros)
                    for total, part in zip(sums[i], row, strict=True):
                        builder.store(builder.call(multiply_add, [spread, part, builder.load(total)]), total)
            for of_row, totals in zip(targets, sums, strict=True):
                for target, total in zip(of_row, totals, strict=True):
                    builder.store(builder.load(total), target, align=bits // 8)
            return context.get_dummy_value()

        return types.void(a, types.intp, b, types.intp, types.intp, c, types.intp, types.intp), generate

    return tile


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_make_tile(rows) for rows in range(1, ROWS + 1))


@njit(nogil=True, error_model="numpy")
def add_product(a: Floats, rows: int, b: Floats, c: Floats) -> None:
    """c[i] += a[i] b for the first rows; a is (..., K), b the packed weights (panels, K, panel), c (..., panels * panel)."""
    panels, size, panel = b.shape
    stride = panels * panel
    for p in range(panels):
        i = 0
        while i < rows:
            height = -(-(rows - i) // -(-(rows - i) // ROWS))  # tiles of about the same height
            a_at, b_at, c_at = i * size, p * size * panel, i * stride + p * panel
            if height == 6:
                _tile_6(a, a_at, b, b_at, size, c, c_at, stride)
            elif height == 5:
                _tile_5(a, a_at, b, b_at, size, c, c_at, stride)
            elif height == 4:
                _tile_4(a, a_at, b, b_at, size, c, c_at, stride)
            elif height == 3:
                _tile_3(a, a_at, b, b_at, size, c, c_at, stride)
            elif height == 2:
                _tile_2(a, a_at, b, b_at, size, c, c_at, stride)
            else:
                _tile_1(a, a_at, b, b_at, size, c, c_at, stride)
            i += height


@inline()
def copy(source: Floats, target: Floats) -> None:
    """Where numba's own assignment is slow."""
    for j in range(len(source)):
        target[j] = source[j]


# ------------------------------------------------------------------------------------------------------------------- the gates
def sigmoid(z: Any) -> Any:
    """σ(z), in compiled code."""
    raise NotImplementedError


def tanh(z: Any) -> Any:
    """tanh(z), in compiled code."""
    raise NotImplementedError


f4 = np.float32
HALF, ONE, LIMIT = f4(0.5), f4(1), f4(7.99881172180175781)  # where the quotient below is exactly 1
# tanh(z) = z P(z²) / Q(z²) with a relative error of some 1e-7: the coefficients of Eigen's ptanh
P0, P1, P2, P3 = f4(4.89352455891786e-03), f4(6.37261928875436e-04), f4(1.48572235717979e-05), f4(5.12229709037114e-08)
P4, P5, P6 = f4(-8.60467152213735e-11), f4(2.00018790482477e-13), f4(-2.76076847742355e-16)
Q0, Q1, Q2, Q3 = f4(4.89352518554385e-03), f4(2.26843463243900e-03), f4(1.18534705686654e-04), f4(1.19825839466702e-06)
_OPTIONS = dict(error_model="numpy", forceinline=True, fastmath={"contract"})


@overload(sigmoid, jit_options=_OPTIONS)
def _sigmoid(z: Any) -> Callable[[Any], Any]:
    def single(z: Any) -> Any:
        return HALF * calibration(HALF * z)

    def double(z: Any) -> Any:
        return 1 / (1 + np.exp(-z))

    return single if z == types.float32 else double


@overload(tanh, jit_options=_OPTIONS)
def _tanh(z: Any) -> Callable[[Any], Any]:
    def single(z: Any) -> Any:
        z = LIMIT if z > LIMIT else z
        z = -LIMIT if z < -LIMIT else z
        s = z * z
        p = P0 + s * (P1 + s * (P2 + s * (P3 + s * (P4 + s * (P5 + s * P6)))))
        return z * p / (Q0 + s * (Q1 + s * (Q2 + s * Q3)))

    def double(z: Any) -> Any:
        return np.tanh(z)

    return single if z == types.float32 else double


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


gru_forward, gru_backward, gru_step = cached_njit(_gru_forward), cached_njit(_gru_backward), cached_njit(_gru_step)
lstm_forward, lstm_backward, lstm_step = cached_njit(_lstm_forward), cached_njit(_lstm_backward), cached_njit(_lstm_step)
