"""Threads for kernels on the CPU: torch's own where it has them, otherwise plain ones."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch as th

from sb3_shm.memory.backends.cpu_openmp import ShortWaits, callback, find_gomp

_pool: ThreadPoolExecutor | None = None
# torch's threads go on spinning for milliseconds after they have worked. Other threads would wait for them to leave the cores.
_gomp = find_gomp()
_waits = None if _gomp is None else ShortWaits(_gomp)
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


def run(kernel: Callable[..., None], units: int, work: int, tensors: list[Any]) -> None:
    """
    Run the kernel on all units of work, with up to ``torch.get_num_threads()`` threads.

    On torch's own OpenMP threads where it has them, otherwise on plain threads; not by numba's ``parallel=True``, whose pools
    die when two Python threads enter or after a fork.
    """
    global _pool
    adapt_waits()
    arrays = [(x.detach() if x.requires_grad else x).numpy() if isinstance(x, th.Tensor) else x for x in tensors]
    threads = 1 if work < INLINE else min(th.get_num_threads(), units)
    if threads == 1:
        return kernel(*arrays, 0, units)
    size = -(-units // (4 * threads))
    starts = iter(range(0, units, size))  # shared: a thread that is late takes less

    caller, is_complete = threading.get_ident(), False
    errors: list[BaseException] = []

    def share(_: int | None = None) -> None:
        nonlocal is_complete
        try:
            is_caller = threading.get_ident() == caller
            for start in starts:
                kernel(*arrays, start, min(start + size, units))
            if is_caller:
                is_complete = True
        except BaseException as error:  # KeyboardInterrupt, too: C, the caller of the callback, would drop it
            errors.append(error)

    if _gomp is not None:
        _gomp.GOMP_parallel(callback(share), None, threads, 0)
    else:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="hadamard")
        try:
            helpers = [_pool.submit(share) for _ in range(threads - 1)]
            share()
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        except BaseException:
            _pool = None  # an interrupt within it may have left its locks taken
            raise
    if errors:
        raise errors[0]
    if not is_complete:  # an interrupt came before "try", or while another was dealt with: C has dropped it
        raise KeyboardInterrupt
