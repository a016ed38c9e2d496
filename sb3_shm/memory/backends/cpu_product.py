"""A small matrix product and the functions of gates, within numba's kernels: to call BLAS at each step would cost too much."""

from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from sb3_shm.memory.backends.cpu_numba import calibration, f4, inline

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
    """
    :return: c[i, j] += Σ_k a[i, k] b[k, j] for so many rows i and the columns j of a panel, k < size; ``*_at`` are the indices
        of the first entries, those of a[i, k], b[k, 0] and c[i, 0] are i a_row + k a_step, k b_step and i c_row behind them
    """

    @intrinsic
    def tile(
        typing_context: Any, size: Any, a: Any, a_at: Any, a_row: Any, a_step: Any, b: Any, b_at: Any, b_step: Any,
        c: Any, c_at: Any, c_row: Any,
    ) -> Any:  # fmt: skip
        bits = a.dtype.bitwidth

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size, _, _, a_row, a_step, _, _, b_step, _, _, c_row = arguments
            first = []
            for i in (1, 5, 8):  # a, b, c, and their positions behind them
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

            targets = [[at(first[2], ir.Constant(index, i), c_row, j * width) for j in range(VECTORS)] for i in range(rows)]
            # From zero, as the sum of a part has smaller errors than one that goes on from all parts before
            sums = [[cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in of_row] for of_row in targets]
            with cgutils.for_range(builder, size) as loop:
                row = [builder.load(at(first[1], loop.index, b_step, j * width), align=bits // 8) for j in range(VECTORS)]
                for i in range(rows):
                    position = builder.add(builder.mul(a_row, index(i)), builder.mul(a_step, loop.index))
                    entry = builder.load(builder.gep(first[0], [position]))
                    spread = builder.shuffle_vector(builder.insert_element(undefined, entry, zero), undefined, zeros)
                    for total, part in zip(sums[i], row, strict=True):
                        builder.store(builder.call(multiply_add, [spread, part, builder.load(total)]), total)
            for of_row, totals in zip(targets, sums, strict=True):
                for target, total in zip(of_row, totals, strict=True):
                    added = builder.fadd(builder.load(target, align=bits // 8), builder.load(total))
                    builder.store(added, target, align=bits // 8)
            return context.get_dummy_value()

        i = types.intp
        return types.void(i, a, i, i, i, b, i, i, c, i, i), generate

    return tile


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_make_tile(rows) for rows in range(1, ROWS + 1))


@njit(nogil=True, error_model="numpy")
def add_tile(
    rows: int, size: int, a: Floats, a_at: int, a_row: int, a_step: int, b: Floats, b_at: int, b_step: int,
    c: Floats, c_at: int, c_row: int,
) -> None:  # fmt: skip
    """The tile of so many rows, 1 to 6."""
    if rows == 6:
        _tile_6(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)
    elif rows == 5:
        _tile_5(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)
    elif rows == 4:
        _tile_4(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)
    elif rows == 3:
        _tile_3(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)
    elif rows == 2:
        _tile_2(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)
    else:
        _tile_1(size, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row)


@njit(nogil=True, error_model="numpy")
def add_product(a: Floats, rows: int, b: Floats, c: Floats) -> None:
    """c[i] += a[i] b for the first rows; a is (..., K), b the packed weights (panels, K, panel), c (..., panels * panel)."""
    panels, size, panel = b.shape
    for p in range(panels):
        i = 0
        while i < rows:
            height = -(-(rows - i) // -(-(rows - i) // ROWS))  # tiles of about the same height
            c_row = panels * panel
            add_tile(height, size, a, i * size, size, 1, b, p * size * panel, panel, c, i * c_row + p * panel, c_row)
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


HALF, ONE, LIMIT = f4(0.5), f4(1), f4(7.99881172180175781)  # where the quotient below is exactly 1
# tanh(z) = z P(z²) / Q(z²) with a relative error of some 1e-7: the coefficients of Eigen's ptanh
P0, P1, P2, P3 = f4(4.89352455891786e-03), f4(6.37261928875436e-04), f4(1.48572235717979e-05), f4(5.12229709037114e-08)
P4, P5, P6 = f4(-8.60467152213735e-11), f4(2.00018790482477e-13), f4(-2.76076847742355e-16)
Q0, Q1, Q2, Q3 = f4(4.89352518554385e-03), f4(2.26843463243900e-03), f4(1.18534705686654e-04), f4(1.19825839466702e-06)
_OPTIONS: Any = dict(error_model="numpy", forceinline=True, fastmath={"contract"})


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
