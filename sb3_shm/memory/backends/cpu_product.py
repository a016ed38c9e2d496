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
