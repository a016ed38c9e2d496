"""How threads share a compiled loop, and what of its arguments reaches it."""

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_shm.memory import SHM
from sb3_shm.memory.backends import cpu_threads
from sb3_shm.memory.backends.cpu_numba import Bools, Floats, Kernel


def kernels_fill(
    out: Floats, floats: Floats, doubles: npt.NDArray[np.float64], whole: npt.NDArray[np.int64], flags: Bools,
    factor: float, number: int, start: int, stop: int,
) -> None:  # fmt: skip
    for i in range(start, stop):
        x = floats[i, 0, 0, 1] + doubles[i, 2] + whole[i] if flags[i, 1, 0] else 0.0
        out[i] += factor * x + number
    out[-1] += len(out) + floats.size + 10 * doubles.size + 100 * whole.size + 1000 * flags.size


FILL = Kernel(kernels_fill)


@pytest.fixture(params=["torch's threads", "plain threads"], scope="module")
def threads(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain threads":
            patch.setattr(cpu_threads, "_gomp", None)
        elif cpu_threads._gomp is None:
            pytest.skip("torch does not run on GNU's OpenMP library")
        yield request.param


@settings(max_examples=60, deadline=None, derandomize=True)
@given(units=st.integers(1, 70), n_threads=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_unit_is_made_once(threads, units, n_threads, seed):
    """With arguments of each kind, against what numpy makes of them."""
    rng = np.random.default_rng(seed)
    floats, doubles = rng.normal(size=(units, 1, 3, 2)).astype(np.float32), rng.normal(size=(units, 3))
    whole, flags = rng.integers(-(2**40), 2**40, units), rng.random((units, 2, 1)) < 0.5
    out, factor, number = th.zeros(units + 1, dtype=th.float64), rng.normal(), int(rng.integers(-(2**50), 2**50))
    th.set_num_threads(n_threads)
    cpu_threads.run(FILL, units, 2**30, [out, *map(th.from_numpy, (floats, doubles, whole, flags)), factor, number])
    x = np.where(flags[:, 1, 0], floats[:, 0, 0, 1].astype(float) + doubles[:, 2] + whole, 0.0)
    np.testing.assert_allclose(out[:-1].numpy(), factor * x + number, rtol=1e-15)
    sizes = len(out) + floats.size + 10 * doubles.size + 100 * whole.size + 1000 * flags.size
    calls = out[-1].item() / sizes  # a race of threads in the last entry may lose some
    assert calls == int(calls) and 1 <= calls <= 4 * n_threads


def test_no_units():
    out = th.zeros(3)
    cpu_threads.run(
        FILL,
        0,
        2**30,
        [out, th.zeros(0, 1, 1, 2), th.zeros(0, 3).double(), th.zeros(0).long(), th.zeros(0, 2, 1).bool(), 1.0, 1],
    )
    assert out.tolist() == [0, 0, 0]


def test_what_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match=r"must be contiguous on the CPU, got one on cpu of strides \(1, 2\)"):
        cpu_threads.run(FILL, 1, 0, [th.zeros(3, 2).t()])


def test_what_no_kernel_knows_is_refused():
    with pytest.raises(KeyError, match="float16"):
        cpu_threads.run(FILL, 1, 0, [th.zeros(3).half()])


@pytest.mark.parametrize("x", [th.zeros(3, device="meta"), th._neg_view(th.ones(3))])
def test_what_an_address_does_not_say_is_refused(x):
    with pytest.raises(ValueError, match="must be contiguous on the CPU, got one on"):
        cpu_threads.run(FILL, 1, 0, [x])


def kernels_fail(out: Floats, start: int, stop: int) -> None:
    for i in range(start, stop):
        if i == 2:
            raise MemoryError
        out[i] += 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is printed
@pytest.mark.parametrize("work", [0, 2**30])
def test_a_kernel_that_fails_is_an_error(threads, work):
    th.set_num_threads(2)
    with pytest.raises(RuntimeError, match="A kernel failed"):
        cpu_threads.run(Kernel(kernels_fail), 8, work, [th.zeros(8)])


def test_forgotten_device_is_an_error():
    memory = SHM(3, 8)
    with pytest.raises(ValueError, match="on meta"):
        memory(th.randn(2, 5, 3), memory.initial_state(2), th.zeros(2, 5, dtype=th.bool, device="meta"))
