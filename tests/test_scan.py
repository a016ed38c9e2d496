"""linear_scan against a plain loop, in float64 and complex128."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_shm.memory import linear_scan as scan
from sb3_shm.memory.linear_scan import linear_scan


def loop(a: th.Tensor, b: th.Tensor, state: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
    """The definition, one number at a time for each row."""
    rows = []
    for i in range(len(b)):
        h, steps = state[i], []
        for t in range(b.shape[1]):
            if episode_start[i, t]:
                h = th.zeros_like(h)
            h = a[i % len(a), t % a.shape[1]] * h + b[i, t]
            steps.append(h)
        rows.append(th.stack(steps))
    return th.stack(rows)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    t=st.integers(1, 70),
    rest=st.sampled_from([(), (1,), (3,), (2, 3)]),
    is_constant=st.booleans(),
    is_complex=st.booleans(),
    p_start=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_scan_is_the_loop(n, t, rest, is_constant, is_complex, p_start, seed):
    """Values and every gradient."""
    th.manual_seed(seed)
    dtype = th.complex128 if is_complex else th.float64
    a = (th.randn(*((1, 1) if is_constant else (n, t)), *rest, dtype=dtype) * 0.7).requires_grad_()
    b = th.randn(n, t, *rest, dtype=dtype, requires_grad=True)
    state = th.randn(n, *rest, dtype=dtype, requires_grad=True)
    starts = th.rand(n, t) < p_start
    weights = th.randn(n, t, *rest, dtype=dtype)
    h, expected = linear_scan(a, b, state, starts), loop(a, b, state, starts)
    th.testing.assert_close(h, expected, atol=1e-10, rtol=1e-10)
    for one, other in zip(
        th.autograd.grad((h * weights).real.sum(), [a, b, state]),
        th.autograd.grad((expected * weights).real.sum(), [a, b, state], allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        th.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_gradients_numerically():
    starts = th.tensor([[False, False, True, False, False, False, False], [True, False, False, False, True, True, False]])
    for shape in ((1, 1, 2), (2, 7, 2)):
        tensors = [th.rand(shape), th.randn(2, 7, 2), th.randn(2, 2)]
        tensors = [tensor.to(th.complex128).requires_grad_() for tensor in tensors]
        assert th.autograd.gradcheck(lambda a, b, h: linear_scan(a, b, h, starts), tensors)


def test_start_forgets_an_infinite_state():
    """Values and gradients from the start on are those of a fresh beginning."""
    a, b = th.full((1, 40, 1), 0.5, requires_grad=True), th.ones(1, 40, 1, requires_grad=True)
    state = th.full((1, 1), float("inf"), requires_grad=True)
    starts = th.zeros(1, 40, dtype=th.bool)
    starts[0, 30] = True
    h = linear_scan(a, b, state, starts)
    assert th.isinf(h[0, :30]).all()
    th.testing.assert_close(h[0, 30:, 0], 2 - 0.5 ** th.arange(10.0))
    grad_a, grad_b, grad_state = th.autograd.grad(h[0, 30:].sum(), [a, b, state])
    assert not grad_b[0, :30].any() and not grad_state.any()
    assert th.isfinite(grad_a[0, 30:]).all() and th.isfinite(grad_b).all() and grad_b[0, 30:].all()


def test_no_loop_over_time(monkeypatch):
    """The number of operations grows with the logarithm of T, forward and backward."""
    calls, step = [], scan._step
    monkeypatch.setattr(scan, "_step", lambda *args: calls.append(1) or step(*args))
    counts = {}
    for t in (16, 128, 1024, 1023):
        calls.clear()
        a = th.rand(2, t, 3, requires_grad=True)
        linear_scan(a, th.randn(2, t, 3), th.zeros(2, 3), th.rand(2, t) < 0.1).sum().backward()
        counts[t] = len(calls)
    assert counts[128] - counts[16] == counts[1024] - counts[128] == 12 and counts[1023] <= counts[1024] < 60


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(2, 5, 3), (2, 5, 4), (2, 4), (2, 5)], "a must have the shape of b"),
        ([(2, 1, 4), (2, 5, 4), (2, 4), (2, 5)], r"or \(1, 1, 4\)"),
        ([(2, 0, 4), (2, 0, 4), (2, 4), (2, 0)], "T >= 1"),
        ([(2, 5, 4), (2, 5, 4), (1, 4), (2, 5)], r"shapes \(2, 4\) and \(2, 5\)"),
        ([(2, 5, 4), (2, 5, 4), (2, 4), (2, 4)], r"got \(2, 4\) and \(2, 4\)"),
    ],
)
def test_bad_shapes(shapes, message):
    a, b, state = (th.ones(shape) for shape in shapes[:3])
    with pytest.raises(ValueError, match=message):
        linear_scan(a, b, state, th.zeros(shapes[3], dtype=th.bool))


def test_bad_dtypes():
    a, starts = th.ones(1, 2, 3), th.zeros(1, 2, dtype=th.bool)
    for bad in ((a.double(), a, a[:, 0], starts), (a, a, a[:, 0].double(), starts), (a, a, a[:, 0], starts.float())):
        with pytest.raises(ValueError, match="one dtype"):
            linear_scan(*bad)
