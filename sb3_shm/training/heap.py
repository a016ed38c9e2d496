"""What a minibatch frees is kept for the next one."""

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 2**28
LARGEST = 2**25  # the most that the library takes of itself


@cache
def keep_freed_memory() -> bool:
    """
    Let the process keep up to 256 MiB that it has freed, for each arena of its allocator, where GNU's C library would give
    them back to the system at once.

    A minibatch frees what the one before has freed, and each page of it that is asked for anew is cleared by the system, one
    fault at a time: with a GRU a third of an update's time. Whoever has set a threshold by an environment variable is not
    contradicted. Does nothing with another library.

    :return: whether it was set
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in names):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # not GNU's; TypeError on Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
