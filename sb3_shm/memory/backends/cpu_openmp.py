"""GNU's OpenMP library, on which torch's wheels for Linux run: where it is, and how its threads wait for each other."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import threadpoolctl
import torch as th

callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_nothing = callback(lambda _: None)


def find_gomp() -> ctypes.CDLL | None:
    """
    :return: GNU's OpenMP library, by whatever name it lies there, if torch runs on it
    """
    loaded = [Path(library["filepath"]) for library in threadpoolctl.threadpool_info() if library["user_api"] == "openmp"]
    # A process may hold several, that of scikit-learn for example, whose threads know nothing of each other. torch's wheels
    # bring one along, otherwise it is the system's, and no other is known to be torch's
    torch_folder = Path(th.__file__).resolve().parent
    own = [path for path in loaded if path.parent in (torch_folder / "lib", torch_folder.parent / "torch.libs")]
    candidates = own or loaded
    if len(candidates) != 1 or not candidates[0].name.startswith("libgomp"):
        return None
    gomp = ctypes.CDLL(str(candidates[0]))
    gomp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    gomp.GOMP_parallel.restype = None
    return gomp


def available_cores() -> int:
    """
    :return: cores that this process may use, by its affinity and, in a container, by its share of time (cgroup v2)
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, -(-int(quota) // int(period))))


class ShortWaits:
    """
    Lets torch's threads sleep rather than spin while they wait for each other, as long as others want the cores, too.

    A thread of GNU's OpenMP that waits spins for milliseconds. On a core that another program wants it spins away the time
    which the thread it waits for is not given: two threads were then 10 times slower than one. ``OMP_WAIT_POLICY=passive``
    ends that, but is read when torch is loaded, and slows down a machine with nothing else to do. The library itself spins a
    thousand times shorter while it has more threads than there are cores. So here it gets some more, which sleep. What torch
    computes stays the same to the bit, which another number of threads would not leave it.

    :param gomp: the library
    """

    def __init__(self, gomp: ctypes.CDLL) -> None:
        self.gomp = gomp
        # Who has said how to wait is not contradicted
        self.is_on = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        self.cores = available_cores()
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._holder: threading.Thread | None = None
        self._end = threading.Event()

    def adapt(self) -> None:
        """Look at the machine, once a second, and let threads sleep or spin accordingly."""
        now = time.monotonic()
        if not self.is_on or now < self._next_look or not self._lock.acquire(blocking=False):
            return
        try:
            self._next_look = now + 1
            # torch's own threads are in the load, as many as there are cores unless a container is given less than them
            threads = th.get_num_threads()
            short = threads > 1 and (os.getloadavg()[0] > self.cores + 0.5 or threads > self.cores)
            if short != self.are_short:
                self.set(short)
        finally:
            self._lock.release()

    @property
    def are_short(self) -> bool:
        """Whether threads sleep while they wait."""
        return self._holder is not None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it torch computes on this thread alone while threads sleep: to wake one takes as long as small operations."""
        if not self.are_short:
            yield
            return
        threads = self.gomp.omp_get_max_threads()
        self.gomp.omp_set_num_threads(1)
        try:
            yield
        finally:
            self.gomp.omp_set_num_threads(threads)

    def set(self, short: bool) -> None:
        """
        :param short: whether threads shall sleep while they wait
        """
        if self._holder is not None:
            self._end.set()
            self._holder.join()  # whose threads end with it
            self._holder = None
        if short:
            self._end.clear()
            self._holder = threading.Thread(target=self._hold, name="sb3_shm: short waits", daemon=True)
            self._holder.start()

    def _hold(self) -> None:
        # Of this thread's own; the library keeps them until it ends
        self.gomp.GOMP_parallel(_nothing, None, self.cores + 1, 0)
        self._end.wait()
