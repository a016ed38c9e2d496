"""How numba compiles the kernels of this folder, and what these have in common."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch as th
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from sb3_shm.memory.backends.cpu_cache import KernelCache

f4 = np.float32
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Kinds: TypeAlias = tuple[tuple[th.dtype, int] | type, ...]

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


def inline(*fastmath: str) -> Callable[..., Any]:
    return njit(fastmath=set(fastmath), error_model="numpy", forceinline=True, pipeline_class=_NoAlias)


def bitcast_of(source: Any, target: Any, llvm_type: Any) -> Any:
    @intrinsic
    def bitcast(typing_context: Any, x: Any) -> Any:
        return target(source), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_type)

    return bitcast


_bits = bitcast_of(types.float32, types.int32, ir.IntType(32))
_from_bits = bitcast_of(types.int32, types.float32, ir.FloatType())


@inline("contract")
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


@inline("contract")
def clamp(x: f4, clip: f4) -> f4:
    x = clip if x > clip else x
    return -clip if x < -clip else x


_TYPES: dict[Any, Any] = {
    **{int: types.int64, float: types.float64},
    **{th.float32: types.float32, th.float64: types.float64, th.int64: types.int64, th.bool: types.boolean},
}


class Kernel:
    """
    A loop over units of work, as a function of C that each of the threads that share them calls. It is compiled at the first
    use for the types of its arguments and cached on disk if there is a place to write.

    :param loop: takes arguments, and the first unit and that behind the last
    """

    def __init__(self, loop: Callable[..., None]) -> None:
        # Symbols are named after it, also on the disk. Of two with one name, compiled by two processes, a third would call one
        sizes = [cell.cell_contents for cell in loop.__closure__ or ()]
        if not all(isinstance(size, int | np.integer) for size in sizes):
            raise TypeError(f"a loop may close over whole numbers only, got {sizes}")
        loop.__name__ = loop.__qualname__ = "_".join([loop.__name__, *map(str, sizes)])
        self._loop = loop
        # With the functions that numba compiled, whose code ends with them
        self._shares: dict[Kinds, tuple[int, Any]] = {}

    def address(self, kinds: Kinds) -> int:
        """
        :param kinds: dtype and number of dimensions of a contiguous tensor, or the type of a number, for each argument
        :return: of the function, to which a table's address is given, see :func:`sb3_shm.memory.backends.cpu_threads.run`
        """
        if kinds not in self._shares:
            arguments = [
                _TYPES[kind] if isinstance(kind, type) else types.Array(_TYPES[kind[0]], kind[1], "C") for kind in kinds
            ]
            share = _share(self._loop, arguments)
            [result] = share.overloads.values()
            self._shares[kinds] = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name), share
        return self._shares[kinds][0]


def _share(loop: Callable[..., None], kinds: list[Any]) -> Any:
    """
    :return: compiled: what a thread does, given the address of a table of 64-bit words: the next unit, behind the last unit,
        how many to take at once, how many are done; and of each argument the number, or an array's address and shape
    """
    word = ir.IntType(64)

    def at(builder: Any, table: Any, index: int) -> Any:
        return builder.gep(builder.inttoptr(table, word.as_pointer()), [word(index)])

    def of_table(result: Any, generate: Callable[[Any, Any, Any], Any]) -> Any:
        @intrinsic
        def read(typing_context: Any, table: Any) -> Any:
            return result(types.int64), lambda context, builder, signature, values: generate(context, builder, values[0])

        return read

    def take(context: Any, builder: Any, table: Any) -> Any:
        return builder.atomic_rmw("add", at(builder, table, 0), builder.load(at(builder, table, 2)), "monotonic")

    def add_to_done() -> Any:
        @intrinsic
        def add(typing_context: Any, table: Any, units: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                return builder.atomic_rmw("add", at(builder, values[0], 3), values[1], "monotonic")

            return types.int64(types.int64, types.int64), generate

        return add

    def load_arguments(context: Any, builder: Any, table: Any) -> Any:
        index, loaded = 4, []
        for kind in kinds:
            value = builder.load(at(builder, table, index))
            index += 1
            if isinstance(kind, types.Array):
                shape = [builder.load(at(builder, table, index + i)) for i in range(kind.ndim)]
                index += kind.ndim
                itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
                strides = [itemsize]
                for length in shape[:0:-1]:
                    strides.insert(0, builder.mul(strides[0], length))
                array = context.make_array(kind)(context, builder)
                populate_array(array, builder.inttoptr(value, array.data.type), shape, strides[: kind.ndim], itemsize, None)
                value = array._getvalue()
            elif kind == types.float64:
                value = builder.bitcast(value, ir.DoubleType())
            loaded.append(value)
        return context.make_tuple(builder, types.Tuple(kinds), loaded)

    next_units, arguments = of_table(types.int64, take), of_table(types.Tuple(kinds), load_arguments)
    last = of_table(types.int64, lambda context, builder, table: builder.load(at(builder, table, 1)))
    size = of_table(types.int64, lambda context, builder, table: builder.load(at(builder, table, 2)))
    add_done = add_to_done()
    kernel = njit(nogil=True, error_model="numpy")(loop)

    def share(table: int) -> None:
        start = next_units(table)
        while start < last(table):
            stop = min(start + size(table), last(table))
            kernel(*arguments(table), start, stop)
            add_done(table, stop - start)  # an error in the kernel ends here, and C has nobody to raise it to
            start = next_units(table)

    share.__qualname__ = f"share_{loop.__qualname__}_{sha256(str(kinds).encode()).hexdigest()[:16]}"
    compiled: Any = njit(nogil=True, error_model="numpy")(share)
    try:
        # As njit(cache=True) does with numba's own
        compiled._cache = KernelCache(loop, kinds)
    except (OSError, RuntimeError) as error:
        KernelCache.warn(str(Path(__file__).parent), str(error))
    compiled.compile((types.int64,))
    return compiled
