"""SHM's step as one operation, by which it acts on the CPU: the same as torch's operations in float64."""

import copy

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_shm.memory import SHM
from sb3_shm.memory.backends import cpu_step, cpu_threads
from sb3_shm.memory.base import state_tensors


def learned(input_size: int, memory_size: int, output_size: int, **kwargs) -> SHM:
    """A memory in which no weight is 0, nor 1."""
    memory = SHM(input_size, memory_size, output_size, **kwargs)
    with th.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.2 * th.randn_like(parameter))
    return memory


@pytest.fixture
def counted(monkeypatch):
    """How often the operation was used."""
    calls = []
    monkeypatch.setattr("sb3_shm.memory.shm.shm_step", lambda *args: calls.append(args) or cpu_step.shm_step(*args))
    return calls


def play(memory: SHM, n: int, steps: int, starts: th.Tensor, inputs: th.Tensor, rows: th.Tensor):
    state, outputs = memory.initial_state(n), []
    for t in range(steps):
        y, state = memory(inputs[:, t : t + 1].to(memory.output.weight.dtype), state, starts[:, t : t + 1], rows[:, t : t + 1])
        outputs.append(y)
    return th.cat(outputs, dim=1), state


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(1, 8, 1), (5, 8, 3), (64, 32, 32)]),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from([None, 0.5, 100.0]),
)
def test_equals_torch_in_float64(sizes, n, probability, clip):
    memory = learned(*sizes, clip=clip)
    exact = copy.deepcopy(memory).double()
    starts, inputs = th.rand(n, 12) < probability, 3 * th.randn(n, 12, sizes[0])
    rows = th.randint(memory.n_theta, (n, 12, 1), dtype=th.uint8)
    with th.no_grad():
        y, state = play(memory, n, 12, starts, inputs, rows)
        y_exact, state_exact = play(exact, n, 12, starts, inputs, rows)
        y_once, _ = memory(inputs, memory.initial_state(n), starts, rows)
    for ours, theirs in zip([y, y_once, *state_tensors(state)], [y_exact, y_exact, *state_tensors(state_exact)], strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert (ours.double() - theirs.double()).abs().max() <= 2e-5 * scale


def test_rows_and_threads_change_no_bit(counted, monkeypatch):
    """Nor are the arguments changed."""
    memory, n = learned(64, 32, 32), 50
    x, starts = th.randn(n, 1, 64), th.rand(n, 1) < 0.3
    with th.no_grad():
        _, state = memory(th.randn(n, 7, 64), memory.initial_state(n), th.zeros(n, 7, dtype=th.bool), rows_of(memory, n, 7))
        rows, kept = rows_of(memory, n, 1), [tensor.clone() for tensor in state_tensors(state)]
        y, after = memory(x, state, starts, rows)
        assert all(th.equal(a, b) for a, b in zip(state_tensors(state), kept, strict=True))
        for i in range(n):
            alone = tuple(tensor[i : i + 1] for tensor in state)
            y_alone, after_alone = memory(x[i : i + 1], alone, starts[i : i + 1], rows[i : i + 1])
            assert th.equal(y_alone[0], y[i]) and all(th.equal(a[0], b[i]) for a, b in zip(after_alone, after, strict=True))
        monkeypatch.setattr(cpu_threads, "INLINE", 0)
        monkeypatch.setattr(th, "get_num_threads", lambda: 2)
        y_two, after_two = memory(x, state, starts, rows)
    assert th.equal(y_two, y) and all(th.equal(a, b) for a, b in zip(after_two, after, strict=True))
    assert len(counted) == n + 2


def rows_of(memory: SHM, n: int, t: int) -> th.Tensor:
    return th.randint(memory.n_theta, (n, t, 1), dtype=th.uint8)


def test_what_is_not_finite_stays_so(counted):
    memory = learned(5, 8, 3)
    x = th.randn(3, 1, 5)
    x[1, 0, 2] = float("nan")
    with th.no_grad():
        y, state = memory(x, memory.initial_state(3), th.zeros(3, 1, dtype=th.bool), rows_of(memory, 3, 1))
    assert counted and y[1].isnan().all() and not y[0].isnan().any() and not y[2].isnan().any()
    assert all(tensor[1].isnan().any() for tensor in state if tensor.is_floating_point() and tensor.dim() > 1)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(theta="neural"),
        dict(calibration="none"),
        dict(keys="softmax"),
        dict(read_gain=None),
        dict(previous_input=False),
        dict(layer_norm=False),
        dict(shortcut=False),
        dict(backend="reference"),
        dict(memory_size=12),
    ],
    ids=str,
)
def test_other_forms_and_gradients_take_torchs_operations(counted, kwargs):
    memory = SHM(5, **{"memory_size": 8, **kwargs})
    state, starts = memory.initial_state(2), th.zeros(2, 1, dtype=th.bool)
    with th.no_grad():
        memory(th.randn(2, 1, 5), state, starts, memory.draw_context(state, starts))
    memory = SHM(5, 8)
    x, context = th.randn(2, 1, 5, requires_grad=True), memory.draw_context(memory.initial_state(2), starts)
    memory(x, memory.initial_state(2), starts, context)[0].sum().backward()
    many = th.zeros(cpu_step.FEW + 1, 1, dtype=th.bool)
    with th.no_grad():
        memory(th.randn(len(many), 1, 5), memory.initial_state(len(many)), many, rows_of(memory, len(many), 1))
    assert x.grad is not None and not counted


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("wrong", ["narrow", "wide", "double", "matrix", "matrix of doubles"])
def test_states_that_the_kernels_would_read_beyond(t, wrong):
    memory = SHM(64, 8)
    matrix, step, before = memory.initial_state(1)
    before = {"narrow": before[:, :1], "wide": before.repeat(1, 2), "double": before.double()}.get(wrong, before)
    matrix = {"matrix": matrix[:, :4], "matrix of doubles": matrix.double()}.get(wrong, matrix)
    for grad in (th.no_grad(), th.enable_grad()):
        with grad, pytest.raises(ValueError, match=r"state|M_0|matrix|dtype"):
            memory(th.randn(1, t, 64), (matrix, step, before))


def test_weights_of_another_type():
    memory = SHM(5, 8).double()
    with th.no_grad(), pytest.raises(ValueError, match="so must state and weights be"):
        memory(th.randn(1, 1, 5), SHM(5, 8).initial_state(1))
