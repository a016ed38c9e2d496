"""The recurrence: the fused CPU kernel against its definition, and what it promises beyond the numbers."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba.core.caching import FunctionCache
from recurrences import NAMES, assert_close_to_reference, assert_equal, make_inputs, recurrence, run

from sb3_shm.memory.backends import cpu_kernels, cpu_threads
from sb3_shm.memory.backends.cpu_cache import KernelCache


@pytest.fixture(params=["torch's threads", "plain threads"])
def split_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Share even the small work of a test between three threads."""
    monkeypatch.setattr(cpu_threads, "INLINE", 0)
    monkeypatch.setattr(cpu_threads, "_pool", None)
    if request.param == "plain threads":
        monkeypatch.setattr(cpu_threads, "_gomp", None)
    elif cpu_threads._gomp is None:
        pytest.skip("torch does not run on GNU's OpenMP library")
    threads = th.get_num_threads()
    th.set_num_threads(3)
    yield
    th.set_num_threads(threads)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    t=st.sampled_from((1, 5, 32, 33)),
    h=st.sampled_from((1, 3, 16, 24, 33)),
    clip=st.sampled_from((None, 0.7)),
    resets=st.sampled_from((0.0, 0.1, 1.0)),
    size=st.sampled_from((0.1, 0.5, 3.0)),  # by which C is a polynomial in all blocks, in some, or in none
    seed=st.integers(0, 1000),
)
@example(n=2, t=70, h=130, clip=None, resets=0.1, size=1, seed=0)  # three chunks, and sums over three units of work
@example(n=1, t=65, h=33, clip=0.3, resets=0.02, size=0.1, seed=1)
def test_matches_reference(n: int, t: int, h: int, clip: float | None, resets: float, size: float, seed: int) -> None:
    tensors, episode_start = make_inputs(n, t, h, seed, resets)
    tensors[0] *= size
    result = run(tensors, episode_start, clip)
    assert_close_to_reference(result, tensors, episode_start, clip)
    single = run(tensors, episode_start, clip, "reference")
    for name in NAMES:
        th.testing.assert_close(
            result[name], single[name], rtol=0, atol=1e-4 * single[name].abs().max().item() + 1e-12, msg=name
        )


def test_reference_gradients() -> None:
    tensors, episode_start = make_inputs(2, 4, 3, resets=0.3)
    double = [x.double().requires_grad_() for x in tensors]
    assert th.autograd.gradcheck(lambda *x: recurrence(*x, episode_start, 0.9, "reference"), double)


def test_clip_is_exact() -> None:
    """Multiples of 1/8 with C = 1 have no rounding: entries exactly at the bound, and an M_0 beyond it, as in clamp."""
    generator = th.Generator().manual_seed(0)
    tensors = [th.randint(-4, 5, shape, generator=generator) / 8 for shape in [(2, 40, 16)] * 5 + [(2, 16, 16)]]
    tensors[0].zero_()
    tensors[5] *= 8
    episode_start = th.zeros(2, 40, dtype=th.bool)
    result, expected = run(tensors, episode_start, 0.5), run(tensors, episode_start, 0.5, "reference")
    for name in NAMES:
        th.testing.assert_close(result[name], expected[name], rtol=1e-5, atol=1e-4, msg=name)


def test_calibration_is_accurate() -> None:
    """In one step, down to small C, and in a product of 4000: an error of 1e-6 in each would show as 4e-3."""
    z, ones, start = th.linspace(-5, 5, 4096).view(256, 1, 16), th.ones(256, 16, 16), th.zeros(256, 1, dtype=th.bool)
    c = recurrence(z, ones[:, :1], *[th.zeros(256, 1, 16)] * 3, ones, start)[1]
    th.testing.assert_close(c.double()[:, :, :1], 1 + z.double().mT.tanh(), rtol=8e-7, atol=0)

    theta, vc = make_inputs(1, 4000, 16)[0][:2]
    zeros, start = th.zeros(1, 4000, 16), th.zeros(1, 4000, dtype=th.bool)
    # Each gate is followed by the opposite one, else the product would vanish
    theta[:, 1::2] = -theta[:, ::2]
    vc[:, 1::2] = vc[:, ::2]
    arguments = (theta * 0.1, vc, zeros, zeros, zeros, th.ones(1, 16, 16))
    expected = recurrence(*(x.double() for x in arguments), start, backend="reference")[1]
    assert expected.min() > 1e-6
    th.testing.assert_close(recurrence(*arguments, start)[1].double(), expected, rtol=2e-4, atol=0)
    open_gate = recurrence(zeros, vc, zeros, zeros, zeros, th.full((1, 16, 16), 0.1), start)[1]
    assert (open_gate == 0.1).all(), "C must be exactly 1 at z = 0"


@pytest.mark.parametrize("z", [1e4, -1e4, 20.0, -20.0])
def test_saturated_gates_stay_finite(z: float) -> None:
    tensors, episode_start = make_inputs(1, 2000, 16, resets=0.01)
    tensors[0].fill_(z)
    tensors[1].fill_(1.0)
    result = run(tensors, episode_start, clip=100.0)
    expected = run(tensors, episode_start, 100.0, "reference")
    for name in NAMES:
        assert result[name].isfinite().all(), name
        # 1e-6: for z < -9, C is 0 in the reference, but not in the kernel
        tolerance = 1e-3 * expected[name].abs().max().item() + 1e-6
        th.testing.assert_close(result[name], expected[name], rtol=0, atol=tolerance, msg=name)


def test_overflow_gives_inf_not_nan() -> None:
    tensors, _ = make_inputs(1, 200, 16)
    tensors = [x.abs() for x in tensors]
    tensors[0].fill_(1e4)
    out, memory = recurrence(*tensors, th.zeros(1, 200, dtype=th.bool))
    assert memory.isinf().all()
    assert not out.isnan().any()
    # C is small but never 0, so that an infinite M stays what it is
    tensors, start = make_inputs(1, 1, 16, resets=0)
    tensors[5].fill_(float("inf"))
    for z in (-42.7, -42.9, -1e4, -float("inf")):
        tensors[0].fill_(z)
        tensors[1].fill_(1.0)
        assert recurrence(*tensors, start)[1].isinf().all(), z


def test_reset_forgets_inf_and_nan() -> None:
    tensors, _ = make_inputs(2, 40, 16)
    episode_start = th.zeros(2, 40, dtype=th.bool)
    episode_start[:, 0] = episode_start[:, 35] = True
    tensors[5][0], tensors[5][1] = float("inf"), float("nan")
    result = run(tensors, episode_start)
    for name in NAMES:
        assert result[name].isfinite().all(), name
    assert (result["dstate"] == 0).all()


@pytest.mark.parametrize("which", range(6))
def test_nan_reaches_the_output(which: int) -> None:
    tensors, _ = make_inputs(2, 3, 16)
    tensors[which][0, 0] = float("nan")
    out, _ = recurrence(*tensors, th.zeros(2, 3, dtype=th.bool), 1.0)
    assert out[0, 0].isnan().any()
    assert out[1].isfinite().all()


def test_steps_equal_one_sequence() -> None:
    tensors, episode_start = make_inputs(3, 40, 24)
    out, memory = recurrence(*tensors, episode_start, 1.0)
    state = tensors[5]
    for t in range(40):
        step, state = recurrence(*(x[:, t : t + 1] for x in tensors[:5]), state, episode_start[:, t : t + 1], 1.0)
        assert th.equal(step[:, 0], out[:, t]), t
    assert th.equal(state, memory)


@pytest.mark.parametrize("h", [16, 130])
def test_rows_do_not_depend_on_the_batch(h: int) -> None:
    tensors, episode_start = make_inputs(3, 35, h)
    batch = run(tensors, episode_start)
    alone = run([x[1:2] for x in tensors], episode_start[1:2])
    assert_equal({name: x[1:2] for name, x in batch.items()}, alone)


def test_result_does_not_depend_on_threads(split_up: None) -> None:
    inputs = make_inputs(5, 35, 130)
    shared = run(*inputs)
    assert (cpu_threads._pool is None) == (cpu_threads._gomp is not None)
    th.set_num_threads(1)
    assert_equal(shared, run(*inputs))


def test_two_python_threads_at_once(split_up: None) -> None:
    inputs = [make_inputs(4, 35, 16, seed) for seed in range(2)]
    expected = [run(*x) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: run(*inputs[seed]), [0, 1] * 50))
    for i, result in enumerate(results):
        assert_equal(result, expected[i % 2])


def _child(connection: multiprocessing.connection.Connection, inputs: tuple[list[th.Tensor], th.Tensor]) -> None:
    result = {name: x.tolist() for name, x in run(*inputs).items()}
    connection.send((result, any(x.name.startswith("hadamard") for x in threading.enumerate())))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child(split_up: None) -> None:
    inputs = make_inputs(4, 35, 16)
    expected = {name: x.tolist() for name, x in run(*inputs).items()}
    assert (cpu_threads._pool is None) == (cpu_threads._gomp is not None)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, inputs))
    process.start()
    try:
        assert receiver.poll(30), "the child hangs"
        result, has_helpers = receiver.recv()
        assert result == expected
        assert has_helpers, "the child must start threads of its own"
    finally:
        process.kill()
        process.join()


def test_any_memory_layout() -> None:
    tensors, episode_start = make_inputs(3, 33, 16)
    tensors[0] = tensors[0][:, :1]  # as with one theta for all steps: expanded below, so its gradient is a sum
    tensors[5] = tensors[5][:1]

    def strided(
        theta: th.Tensor, vc: th.Tensor, v: th.Tensor, k: th.Tensor, q: th.Tensor, state: th.Tensor
    ) -> list[th.Tensor]:
        double = th.stack([q, q], dim=-1)[..., 0]
        return [theta.expand(3, 33, 16), vc.mT.contiguous().mT, v, k, double, state.expand(3, 16, 16).mT]

    starts = episode_start.T.contiguous().T
    results = []
    for prepare in (lambda x: x, lambda x: x.contiguous()):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out, memory = recurrence(*map(prepare, strided(*leaves)), prepare(starts), backend="cpu")
        gradients = th.autograd.grad(out.mT.cumsum(1)[:, ::2].sum() + memory.sum(), leaves)
        results.append(dict(zip(NAMES, (out, memory, *gradients), strict=True)))
    assert_equal(*results)


def test_inputs_are_left_alone() -> None:
    tensors, episode_start = make_inputs(2, 33, 16)
    copies = [x.clone() for x in tensors]
    run(tensors, episode_start)
    with th.no_grad():
        recurrence(*tensors, episode_start, backend="cpu")
    assert all(map(th.equal, tensors, copies))


def test_works_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(1, 3, 16)
    expected = run(*inputs)
    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    monkeypatch.setattr(KernelCache, "has_warned", False)
    monkeypatch.setattr(cpu_kernels, "forward", cpu_kernels.forward.__wrapped__)
    monkeypatch.setattr(cpu_kernels, "backward", cpu_kernels.backward.__wrapped__)
    with pytest.warns(UserWarning, match="compile cache in .*backends does not work .*NUMBA_CACHE_DIR"):
        assert_equal(run(*inputs), expected)


def test_auto_takes_the_reference_for_doubles() -> None:
    tensors, episode_start = make_inputs(2, 3, 4)
    out, memory = recurrence(*(x.double() for x in tensors), episode_start)
    assert out.dtype == memory.dtype == th.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": th.zeros(2, 3)}, r"theta must have the shape \(N, T, H\)"),
        ({name: th.zeros(2, 0, 4) for name in ("theta", "vc", "v", "k", "q")}, "T must be at least 1"),
        ({"q": th.zeros(2, 3, 5)}, r"q must have the shape \(2, 3, 4\)"),
        ({"state": th.zeros(1, 4, 4)}, r"state must have the shape \(2, 4, 4\)"),
        ({"episode_start": th.zeros(3, 2, dtype=th.bool)}, r"episode_start must have the shape \(2, 3\)"),
        ({"k": th.zeros(2, 3, 4, dtype=th.float64)}, "k must be torch.float32 on cpu"),
        ({"state": th.zeros(2, 4, 4, device="meta")}, "state must be torch.float32 on cpu"),
        ({"episode_start": th.zeros(2, 3)}, "episode_start must be torch.bool on cpu"),
        ({"clip": 0.0}, "clip must be positive or None"),
        ({"clip": float("nan")}, "clip must be positive or None"),
        ({"backend": "gpu"}, "'auto', 'reference', 'scan', 'cpu', 'cuda'"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    tensors, episode_start = make_inputs(2, 3, 4)
    arguments = dict(zip(("theta", "vc", "v", "k", "q", "state"), tensors, strict=True))
    with pytest.raises(ValueError, match=message):
        recurrence(**{**arguments, "episode_start": episode_start, **change})


def test_cpu_backend_needs_float32() -> None:
    tensors, episode_start = make_inputs(2, 3, 4)
    with pytest.raises(ValueError, match="needs float32 tensors on the CPU"):
        recurrence(*(x.double() for x in tensors), episode_start, backend="cpu")
