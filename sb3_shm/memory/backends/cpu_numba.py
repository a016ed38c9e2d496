"""How numba compiles the kernels of this folder, and what these have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from sb3_shm.memory.backends.cpu_cache import KernelCache

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


def cached_njit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at the first call; cached on disk if there is a place to write."""
    kernel: Any = njit(nogil=True, error_model="numpy")(function)
    try:
        # As njit(cache=True) does with numba's own
        kernel._cache = KernelCache(function)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, RuntimeError) as error:
        KernelCache.warn(str(Path(__file__).parent), str(error))
    return kernel  # type: ignore[no-any-return]
