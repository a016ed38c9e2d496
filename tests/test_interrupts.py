"""Ctrl-C while a kernel runs on several threads, called back from C, which drops exceptions."""

import gc
import random
import signal
import threading

import numpy as np
import pytest
import torch as th

from sb3_shm.memory.backends import cpu_threads

UNITS = 40


@pytest.fixture(params=["OpenMP", "Python's threads"])
def two_threads(request, monkeypatch):
    if request.param == "OpenMP" and cpu_threads._gomp is None:
        pytest.skip("torch does not run on GNU's OpenMP")
    if request.param != "OpenMP":
        monkeypatch.setattr(cpu_threads, "_gomp", None)
    th.set_num_threads(2)
    return request.param


def count(out: np.ndarray, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] += 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_exception_in_the_callback_is_raised(two_threads, error):
    raised = threading.Event()

    def kernel(out: np.ndarray, start: int, stop: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raised.set()
            raise error
        raised.wait(10)

    with pytest.raises(error):
        cpu_threads.run(kernel, UNITS, 2**30, [np.zeros(UNITS)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interrupts", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_interrupt_is_lost(two_threads, interrupts):
    """
    At random moments: each is seen by the caller, and what is returned is complete. (Not so with Python's threads: their
    executor's locks and weak references are not made for interrupts.)
    """
    if two_threads != "OpenMP":
        pytest.skip("only where kernels are called back from C")
    handled = 0

    def handler(*_) -> None:
        nonlocal handled
        handled += 1
        raise KeyboardInterrupt

    rng = random.Random(0)
    gc.disable()  # in whose callbacks, of which hypothesis has one, Python drops exceptions itself
    before = signal.signal(signal.SIGALRM, handler)
    seen = 0
    try:
        for i in range(interrupts):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 5e-4))
                while handled == i:
                    out = np.zeros(UNITS)
                    cpu_threads.run(count, UNITS, 2**30, [out])
                    assert (out == 1).all()
            except KeyboardInterrupt:
                seen += 1
            assert handled == i + 1 == seen
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.enable()
