"""Ctrl-C while a kernel runs on several threads."""

import gc
import random
import signal

import pytest
import torch as th

from sb3_shm.memory.backends import cpu_threads
from sb3_shm.memory.backends.cpu_numba import Floats, Kernel

UNITS = 40


def interrupts_count(out: Floats, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] += 1


@pytest.mark.skipif(cpu_threads._gomp is None, reason="Python's executor is not made for interrupts")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interrupts", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_interrupt_is_lost(interrupts):
    """At random moments: each is seen by the caller, and what is returned is complete."""
    th.set_num_threads(2)
    count, handled = Kernel(interrupts_count), 0
    cpu_threads.run(count, 0, 0, [th.zeros(UNITS)])  # compiled

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
                    out = th.zeros(UNITS)
                    cpu_threads.run(count, UNITS, 2**30, [out])
                    assert (out == 1).all()
            except KeyboardInterrupt:
                seen += 1
            assert handled == i + 1 == seen
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.enable()
