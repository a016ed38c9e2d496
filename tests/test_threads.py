"""Where torch's OpenMP is, and how its threads wait for each other."""

import ctypes
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import threadpoolctl
import torch as th

from sb3_shm.memory.backends import cpu_openmp, cpu_threads
from sb3_shm.memory.backends.cpu_openmp import ShortWaits, available_cores, find_gomp
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.zoo import __main__ as command_line

TORCH = Path(th.__file__).resolve().parent
has_gomp = pytest.mark.skipif(cpu_threads._gomp is None, reason="torch does not run on GNU's OpenMP here")
has_cores = pytest.mark.skipif(available_cores() < 2, reason="on one core threads never spin")


@pytest.fixture
def waits():
    waits = ShortWaits(find_gomp())
    yield waits
    waits.set(False)


def address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


@has_gomp
def test_the_library_is_the_one_that_torch_calls():
    # The loader looks for a symbol in what torch's library was linked with
    of_torch = ctypes.CDLL(str(TORCH / "lib" / "libtorch_cpu.so"))
    assert address(find_gomp().GOMP_parallel) == address(of_torch.GOMP_parallel)


@has_gomp
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["torch/lib/libgomp-a34b3233.so.1", "scikit_learn.libs/libgomp-d22c30c5.so.1"], 0),
        (["scikit_learn.libs/libgomp-d22c30c5.so.1", "torch.libs/libgomp-a34b3233.so.1"], 1),
        (["lib/libgomp.so.1"], 0),
        (["lib/libgomp.so.1", "scikit_learn.libs/libgomp-d22c30c5.so.1"], None),
        (["torch/lib/libiomp5.so"], None),
        (["torch/lib/libiomp5.so", "lib/libgomp.so.1"], None),
        ([], None),
    ],
)
def test_the_library_of_a_hashed_name_is_found_and_no_other(names, found, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(find_gomp()._name, path)
    listed = [dict(user_api="openmp", filepath=str(path)) for path in paths]
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [dict(user_api="blas", filepath="/libblas.so"), *listed])
    monkeypatch.setattr(cpu_openmp.th, "__file__", str(tmp_path / "torch" / "__init__.py"))
    gomp = find_gomp()
    assert (None if gomp is None else gomp._name) == (None if found is None else str(paths[found]))


@has_gomp
@has_cores
def test_threads_sleep_while_they_wait(waits):
    def spins() -> float:
        """:return: the processor's seconds that the caller burns while it waits for another thread, which sleeps"""
        caller = threading.get_ident()
        sleeps = cpu_openmp.callback(lambda _: None if threading.get_ident() == caller else time.sleep(0.03))
        start = time.thread_time()
        waits.gomp.GOMP_parallel(sleeps, None, 2, 0)
        return time.thread_time() - start

    threads = len(os.listdir("/proc/self/task"))
    for _ in range(2):  # back and forth
        assert max(spins() for _ in range(4)) > 3e-3
        waits.set(True)
        assert waits.are_short
        time.sleep(0.05)  # the other threads start
        assert min(spins() for _ in range(4)) < 1e-3
        waits.set(False)
        assert not waits.are_short
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > threads + 1:  # that of the measurement stays, the others take their time to end
        assert time.monotonic() < deadline
        time.sleep(0.01)


@has_gomp
def test_the_load_decides_at_most_once_a_second(waits, monkeypatch):
    load, now = waits.cores + 1.0, 100.0
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waits.adapt()
    assert not waits.are_short  # one thread waits for nobody
    th.set_num_threads(2)
    now = 101.1
    waits.adapt()
    assert waits.are_short
    load, now = float(waits.cores), 101.9  # torch's own threads make that much
    waits.adapt()
    assert waits.are_short
    now = 102.2
    th.set_num_threads(min(2, waits.cores))
    waits.adapt()
    assert not waits.are_short
    th.set_num_threads(waits.cores + 1)  # as in a container that is given less than the machine has
    now = 103.3
    waits.adapt()
    assert waits.are_short


@has_gomp
def test_alone_while_threads_sleep(waits):
    th.set_num_threads(3)
    with waits.alone():
        assert th.get_num_threads() == 3
    waits.set(True)
    with pytest.raises(ZeroDivisionError), waits.alone():
        assert th.get_num_threads() == 1
        raise ZeroDivisionError
    assert th.get_num_threads() == 3


@has_gomp
@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_who_has_said_how_to_wait_is_not_contradicted(name, monkeypatch):
    monkeypatch.setenv(name, "active")
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0, 0))
    th.set_num_threads(2)
    waits = ShortWaits(find_gomp())
    waits.adapt()
    assert not waits.are_short


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("150000 100000", 2), ("10000 100000", 1), ("99999999 100000", None), ("", None)]
)
def test_a_container_has_its_share(text, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert available_cores() == (8 if cores is None else cores)


@pytest.mark.parametrize(
    ("cores", "variables", "threads"), [(1, {}, 1), (2, {}, 2), (8, {}, 2), (1, dict(OMP_NUM_THREADS="2"), 2)]
)
def test_the_command_line_keeps_to_the_share(cores, variables, threads, monkeypatch, capsys):
    th.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command_line, "available_cores", lambda: cores)
    command_line.keep_to_cores()
    assert th.get_num_threads() == threads
    assert ("may use 1 core" in capsys.readouterr().out) == (threads == 1)


@has_gomp
@pytest.mark.parametrize("memory", ["lru", "gru"])
def test_every_memory_minds_the_load(memory, waits, monkeypatch):
    monkeypatch.setattr(cpu_threads, "_waits", waits)
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0, 0))
    th.set_num_threads(2)
    MemoryTrunk(3, memory)(th.zeros(1, 1, 3), MemoryTrunk(3, memory).initial_state(1), th.zeros(1, 1, dtype=th.bool))
    assert waits.are_short
