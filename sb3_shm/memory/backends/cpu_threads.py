"""Threads for kernels on the CPU: torch's own where it has them, otherwise plain ones."""

import ctypes
import os
import struct
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th

from sb3_shm.memory.backends.cpu_openmp import ShortWaits, find_gomp

_pool: ThreadPoolExecutor | None = None
# torch's threads go on spinning for milliseconds after they have worked. Other threads would wait for them to leave the cores.
_gomp = find_gomp()
_waits = None if _gomp is None else ShortWaits(_gomp)
_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Work, in entries of C, that the caller does alone: about 0.1 ms, or 1 ms where helpers may have to wait for a core.
INLINE = 2**21 if _gomp is None else 2**18


def _forget_threads() -> None:
    """A forked child has none of its parent's threads, and OpenMP would wait for them."""
    global _gomp, _pool, _waits
    _gomp = _pool = _waits = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def adapt_waits() -> None:
    """Let torch's threads wait for each other as the load of the machine wants it, see :class:`ShortWaits`."""
    if _waits is not None:
        _waits.adapt()


def alone() -> AbstractContextManager[None]:
    """
    :return: within it torch's many small operations, whose results do not depend on threads, do without them where threads
        sleep, see :meth:`ShortWaits.alone`
    """
    return nullcontext() if _waits is None else _waits.alone()


def run(kernel: Any, units: int, work: int, arguments: Sequence[Any]) -> None:
    """
    Run the kernel on all units of work, with up to ``torch.get_num_threads()`` threads.

    On torch's own OpenMP threads where it has them, otherwise on plain threads; not by numba's ``parallel=True``, whose pools
    die when two Python threads enter or after a fork. The threads call the kernel's function of C and no Python: to take the
    interpreter's lock takes as long as a small kernel, and an exception would have nobody to go to.

    :param kernel: a :class:`sb3_shm.memory.backends.cpu_numba.Kernel`
    :param units: that it loops over
    :param work: in entries of C
    :param arguments: its arguments, contiguous tensors, whole numbers and floats
    :raises ValueError: a tensor is not contiguous, not on the CPU, or to be negated
    :raises RuntimeError: the kernel failed, as where no memory is left; what it wrote is not complete
    """
    global _pool
    adapt_waits()
    threads = 1 if work < INLINE else max(1, min(th.get_num_threads(), units))
    kinds: list[Any] = []
    words = array("q", (0, units, units if threads == 1 else -(-units // (4 * threads)), 0, 0))
    for x in arguments:
        if isinstance(x, th.Tensor):
            if not (x.is_cpu and x.is_contiguous()) or x.is_neg():  # their address alone says nothing of it
                raise ValueError(
                    f"arguments must be contiguous on the CPU, got one on {x.device} of strides {x.stride()}"
                    f"{', to be negated' if x.is_neg() else ''}"
                )
            kinds.append((x.dtype, x.ndim))
            words.append(x.data_ptr())
            words.extend(x.shape)
        else:
            kinds.append(type(x))
            words.frombytes(struct.pack("d" if isinstance(x, float) else "q", x))
    address, words[4] = kernel.addresses(tuple(kinds))
    share, table = _function(address), words.buffer_info()[0]
    if threads == 1:
        share(table)
    elif _gomp is not None:
        _gomp.GOMP_parallel(share, table, threads, 0)
    else:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="hadamard")
        try:
            # What they write to must outlive an interrupt of the caller
            helpers = [_pool.submit(lambda _: share(table), (words, arguments)) for _ in range(threads - 1)]
            share(table)
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        except BaseException:
            _pool = None  # an interrupt within it may have left its locks taken
            raise
    if words[3] != units:
        raise RuntimeError("A kernel failed, see what is printed above: probably there was no memory left")
