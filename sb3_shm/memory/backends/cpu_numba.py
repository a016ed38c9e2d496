"""How numba compiles the kernels of this folder, and what these have in common."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch as th
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from sb3_shm.memory.backends.cpu_cache import KernelCache

f4 = np.float32
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Kinds: TypeAlias = tuple[tuple[th.dtype, int] | type, ...]

ZERO, HALF, ONE, TWO, EPSILON = f4(0), f4(0.5), f4(1), f4(2), f4(1e-6)
# Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits; 127 more make it a float's exponent.
ROUND, EXPONENT_SHIFT = f4(1.5 * 2**23 + 127), np.int32(23)
SCALE, LOWEST, LOWEST_Z = f4(-2 * np.log2(np.e)), f4(-124), f4(-42.8)
P0, T1, T3 = (f4(x) for x in (10 / np.log(2) ** 2, 5 / np.log(2), np.log(2) / 12))
SMALL = f4(0.8)
S3, S5, S7, S9, S11 = (f4(x) for x in (-0.33332384, 0.13316819, -0.052931573, 0.018777542, -0.0041644182))


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
    1 + tanh(z) = 2 / (1 + 2^y), y = -2 z log2(e), to 3e-7 of its value for |z| <= 1, and to 1e-6 for z = -9, where 1 + tanh(z)
    itself would lose it.

    2^y is a power of two made from its bits times 2^x, |x| <= 1/2, which is (p + t) / (p - t) to 1e-8 (Padé). 1 at z = 0,
    never inf, NaN for NaN.
    """
    # Bounded on this side and that apart: LLVM makes worse code of both at once. Beyond -42.8 the quotient's would be infinite
    z = LOWEST_Z if z < LOWEST_Z else z
    y = z * SCALE
    y = LOWEST if y < LOWEST else y
    rounded = y + ROUND
    x = y - (rounded - ROUND)
    power: f4 = _from_bits(np.int32(_bits(rounded) << EXPONENT_SHIFT))
    p, t = P0 + x * x, x * (T1 + T3 * (x * x))
    return ((p - t) + (p - t)) / ((p - t) + power * (p + t))


@inline("contract")
def calibration_of_small(z: f4) -> f4:
    """1 + tanh(z) for z between -``SMALL`` and ``SMALL``, to 2e-7: a polynomial (minimax), in half the time."""
    zz = z * z
    return (ONE + z) + (z * zz) * (S3 + zz * (S5 + zz * (S7 + zz * (S9 + zz * S11))))


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
        # With what numba compiled, whose code ends with it
        self._compiled: dict[Kinds, tuple[int, int, list[Any]]] = {}

    def addresses(self, kinds: Kinds) -> tuple[int, int]:
        """
        :param kinds: dtype and number of dimensions of a contiguous tensor, or the type of a number, for each argument
        :return: of the function that threads call, to which a table's address is given, see :func:`_make_share`, and of the
            loop, which is in the table
        """
        if kinds not in self._compiled:
            arguments = [
                _TYPES[kind] if isinstance(kind, type) else types.Array(_TYPES[kind[0]], kind[1], "C") for kind in kinds
            ]
            signature = (*arguments, types.int64, types.int64)
            loop, share = _compile(self._loop, signature), _compile(_make_share(signature), (types.int64,))
            self._compiled[kinds] = (
                share.library.get_pointer_to_function(share.fndesc.llvm_cfunc_wrapper_name),
                loop.library.get_pointer_to_function(loop.fndesc.llvm_func_name),
                [loop, share],
            )
        return self._compiled[kinds][:2]


def _compile(function: Callable[..., None], signature: tuple[Any, ...]) -> Any:
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    try:
        # As njit(cache=True) does with numba's own
        compiled._cache = KernelCache(function)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, RuntimeError) as error:
        KernelCache.warn(str(Path(__file__).parent), str(error))
    compiled.compile(signature)
    return compiled.overloads[signature]


def _make_share(signature: tuple[Any, ...]) -> Callable[[int], None]:
    """
    :return: what a thread does, given the address of a table of 64-bit words: the next unit, behind the last unit, how many to
        take at once, how many are done, the loop's address; and of each argument the number, or an array's address and shape
    """
    word = ir.IntType(64)

    def at(builder: Any, table: Any, index: Any) -> Any:
        index = word(index) if isinstance(index, int) else index
        return builder.gep(builder.inttoptr(table, word.as_pointer()), [index])

    @intrinsic
    def read(typing_context: Any, table: Any, index: Any) -> Any:
        return types.int64(types.int64, types.int64), lambda context, builder, _, values: builder.load(at(builder, *values))

    @intrinsic
    def add(typing_context: Any, table: Any, index: Any, number: Any) -> Any:
        """:return: what was there before"""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.atomic_rmw("add", at(builder, values[0], values[1]), values[2], "monotonic")

        return types.int64(types.int64, types.int64, types.int64), generate

    def load_arguments(context: Any, builder: Any, table: Any) -> list[Any]:
        index, loaded = 5, []
        for kind in signature[:-2]:
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
        return loaded

    @intrinsic
    def call_loop(typing_context: Any, table: Any, start: Any, stop: Any) -> Any:
        """By its address: compiled into this function its sums would have other last digits than for itself."""

        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
            function_type = context.call_conv.get_function_type(types.none, signature)
            loop = builder.inttoptr(builder.load(at(builder, values[0], 4)), function_type.as_pointer())
            arguments = [*load_arguments(context, builder, values[0]), *values[1:]]
            status, _ = context.call_conv.call_function(builder, loop, types.none, signature, arguments)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    # What mypy takes for functions of Python
    read_word, add_to_word, call = cast(Any, read), cast(Any, add), cast(Any, call_loop)

    def share(table: int) -> None:
        last, size = read_word(table, 1), read_word(table, 2)
        start = add_to_word(table, 0, size)
        while start < last:
            stop = min(start + size, last)
            call(table, start, stop)
            add_to_word(table, 3, stop - start)  # an error in the loop ends here, and C has nobody to raise it to
            start = add_to_word(table, 0, size)

    share.__name__ = share.__qualname__ = f"share_{sha256(str(signature).encode()).hexdigest()[:32]}"
    return share
