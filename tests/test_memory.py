"""Every memory keeps the contract of sb3_shm.memory.base.Memory."""

import copy

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from small_envs import Memoryless

from sb3_shm.memory import GRU, LSTM, MEMORIES, SHM, Memory, PaperSHM, make_memory
from sb3_shm.memory.base import map_state, state_tensors, steps_in_episode
from sb3_shm.policies.trunk import MemoryTrunk, SinePosition

D = 5
CASES = {
    "shm": lambda: SHM(D, memory_size=6),
    "shm-reference": lambda: SHM(D, memory_size=6, backend="reference"),
    "shm-fixed": lambda: SHM(D, memory_size=6, theta="fixed"),
    "shm-neural": lambda: SHM(D, memory_size=7, theta="neural", output_size=3),
    "shm-none": lambda: SHM(D, memory_size=6, calibration="none"),
    "shm-random": lambda: SHM(D, memory_size=6, calibration="random", n_theta=5),
    "shm-constant": lambda: SHM(D, memory_size=6, calibration="constant"),
    "shm-plain": lambda: SHM(D, memory_size=4, layer_norm=False, shortcut=False, clip=None),
    "shm-softmax-gain": lambda: SHM(D, memory_size=6, keys="softmax", read_gain=2.0, previous_input=False),
    "shm-paper": lambda: PaperSHM(D, memory_size=6),
    "shm-paper-neural": lambda: PaperSHM(D, memory_size=5, theta="neural"),
    "gru": lambda: GRU(D, hidden_size=6),
    "gru-2-layers": lambda: GRU(D, hidden_size=6, num_layers=2),
    "lstm": lambda: LSTM(D, hidden_size=6, num_layers=2),
    "trunk-shm-sine": lambda: MemoryTrunk(D, "shm", dict(memory_size=6), encoder_arch=(8, 7), position="sine"),
    "trunk-gru": lambda: MemoryTrunk(D, "gru", dict(hidden_size=6), encoder_arch=()),
    "trunk-lstm-sine": lambda: MemoryTrunk(D, "lstm", dict(hidden_size=6), encoder_arch=(9,), position="sine"),
}


def random_state(memory: Memory, n: int) -> tuple:
    """A state in the middle of an episode: floats drawn, counters drawn."""

    def draw(tensor: th.Tensor) -> th.Tensor:
        return th.randn_like(tensor) if tensor.is_floating_point() else th.randint_like(tensor, 0, 50)

    return map_state(draw, memory.initial_state(n))


def assert_state_close(a: tuple, b: tuple, atol: float = 1e-5) -> None:
    tensors_a, tensors_b = state_tensors(a), state_tensors(b)
    assert len(tensors_a) == len(tensors_b)
    for one, other in zip(tensors_a, tensors_b, strict=True):
        th.testing.assert_close(one, other, atol=atol, rtol=1e-5)


def sequences(memory: Memory, n: int, t: int, p_start: float) -> tuple:
    starts = th.rand(n, t) < p_start
    state = random_state(memory, n)
    return th.randn(n, t, D), state, starts, memory.draw_context(state, starts)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 4), t=st.integers(1, 40), p_start=st.sampled_from([0.0, 0.1, 0.6, 1.0]), seed=st.integers(0, 10**6))
def test_steps_equal_sequence(case, n, t, p_start, seed):
    """T one-step calls are one T-step call, wherever episodes start, cut anywhere."""
    th.manual_seed(seed)
    memory = CASES[case]()
    x, state, starts, context = sequences(memory, n, t, p_start)
    with th.no_grad():
        y, final = memory(x, state, starts, context)
        assert y.shape == (n, t, memory.output_size)
        outputs, step_state = [], state
        for i in range(t):
            step = slice(i, i + 1)
            y_i, step_state = memory(x[:, step], step_state, starts[:, step], None if context is None else context[:, step])
            outputs.append(y_i)
        th.testing.assert_close(th.cat(outputs, dim=1), y, atol=1e-5, rtol=1e-5)
        assert_state_close(step_state, final)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_independent(case):
    memory = CASES[case]()
    x, state, starts, context = sequences(memory, 5, 12, 0.2)
    with th.no_grad():
        y, final = memory(x, state, starts, context)
        rows = [3, 1]
        y_rows, final_rows = memory(
            x[rows], map_state(lambda s: s[rows], state), starts[rows], None if context is None else context[rows]
        )
    th.testing.assert_close(y_rows, y[rows], atol=1e-6, rtol=1e-5)
    assert_state_close(final_rows, map_state(lambda s: s[rows], final), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_start_forgets(case):
    """After a start nothing depends on what was before, were it infinite; before it everything does."""
    memory = CASES[case]()
    x, state, starts, context = sequences(memory, 3, 10, 0.0)
    starts[:, 4] = True
    spoiled = map_state(lambda s: th.full_like(s, float("inf")) if s.is_floating_point() else s + 7, state)
    with th.no_grad():
        y, final = memory(x, state, starts, context)
        y_spoiled, final_spoiled = memory(x, spoiled, starts, context)
        fresh = None if context is None else context[:, 4:]
        y_fresh, final_fresh = memory(x[:, 4:], memory.initial_state(3), th.zeros(3, 6, dtype=th.bool), fresh)
    assert not th.allclose(y[:, :4], y_spoiled[:, :4])
    th.testing.assert_close(y_spoiled[:, 4:], y[:, 4:])
    assert_state_close(final_spoiled, final)
    th.testing.assert_close(y_fresh, y[:, 4:], atol=1e-6, rtol=1e-5)
    assert_state_close(final_fresh, final, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case):
    memory = CASES[case]()
    x, state, starts, context = sequences(memory, 4, 300, 0.02)
    y, _ = memory(x, state, starts, context)
    y.square().mean().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None and th.isfinite(parameter.grad).all() and parameter.grad.any(), name


def unit(z):
    z = z / (1 + th.exp(-z))
    return z / z.square().sum().add(1e-6).sqrt()


def over_sum(z):
    z = z.clamp(min=0)
    return z / (1e-5 + z.sum())


def softmax(z):
    return th.exp(z) / th.exp(z).sum()


@pytest.mark.parametrize("is_paper", [False, True])
@pytest.mark.parametrize(
    "keys, normalise, read_gain, previous_input",
    [
        ("unit", unit, 0.1, True),
        ("sum", over_sum, None, False),
        ("softmax", softmax, 3.0, False),
        ("sum", over_sum, 0.5, True),
    ],
)
def test_shm_equals_its_equations(is_paper, keys, normalise, read_gain, previous_input):
    """One row, by hand, from the equations of the class docstring, an episode starting in it."""
    if is_paper:
        if (keys, read_gain, previous_input) != ("sum", None, False):
            pytest.skip("not the paper's")
        shm = PaperSHM(D, memory_size=3).double()
    else:
        shm = SHM(D, memory_size=3, keys=keys, read_gain=read_gain, previous_input=previous_input).double()
    gain = th.ones(3, dtype=th.float64)
    with th.no_grad():
        if read_gain is not None:
            assert shm.read_norm.weight.tolist() == pytest.approx(3 * [read_gain])
            gain = shm.read_norm.weight.add_(th.randn(3)).clone()
        w, w_previous = shm.projection.weight.split(D, dim=1) if previous_input else (shm.projection.weight, None)
        if previous_input:
            assert not w_previous.any()
            w_previous.add_(th.randn_like(w_previous))
        w, w_previous = (shm.split(th.zeros_like(w) if part is None else part, dim=0) for part in (w, w_previous))
    x = th.randn(1, 6, D, dtype=th.float64)
    starts = th.tensor([[False, False, False, True, False, False]])
    rows = th.tensor([[5, 0, 127, 5, 64, 1]], dtype=th.uint8)
    y, state = shm(x, shm.initial_state(1), starts, rows.unsqueeze(-1))

    matrix, previous = th.zeros(3, 3, dtype=th.float64), th.zeros(D, dtype=th.float64)
    for t in range(6):
        if starts[0, t]:
            matrix, previous = th.zeros_like(matrix), th.zeros_like(previous)
        now = (x[0, t] - x[0, t].mean()) / (x[0, t].var(unbiased=False) + 1e-5).sqrt()
        z = {name: w[name] @ now + w_previous[name] @ (now - previous) for name in w}
        k, q = (normalise(part) for part in z["key_query"].split(3))
        eta = 1 / (1 + th.exp(-z["gate"]))
        c = 1 + th.tanh((1.0 if is_paper else 0.1) * th.outer(shm.theta_rows[int(rows[0, t])], z["vc"]))
        matrix = matrix * c + eta * th.outer(z["value"], k)
        h = matrix @ q
        if read_gain is not None:
            h = gain * (h - h.mean()) / (h.var(unbiased=False) + 1).sqrt()
        th.testing.assert_close(y[0, t], shm.output.weight @ (h + z["shortcut"]) + shm.output.bias)
        previous = now
    th.testing.assert_close(state[0][0], matrix)
    assert state[1].item() == 3 and len(state) == 2 + previous_input
    if previous_input:
        th.testing.assert_close(state[2][0], previous)


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(keys="softmax"), dict(theta="neural", clip=0.3), dict(keys="sum", read_gain=1.0)]
)
def test_shm_gradients(kwargs):
    """Every gradient in float64 against differences: of the input, the state and each parameter."""
    memory = SHM(3, memory_size=3, **kwargs).double()
    for parameter in memory.parameters():
        parameter.data += 0.3 * th.randn_like(parameter)
    starts = th.tensor([[False, False, True, False], [True, False, False, False]])
    context = memory.draw_context(memory.initial_state(2), starts)
    names, parameters = zip(*memory.named_parameters(), strict=True)
    step = th.tensor([2, 5])

    def outputs(x, matrix, previous, *parameters):
        arguments = (x, (matrix, step, previous), starts, context)
        y, after = th.func.functional_call(memory, dict(zip(names, parameters, strict=True)), arguments)
        return y, after[0], after[2]

    inputs = (th.randn(2, 4, 3), 0.2 * th.randn(2, 3, 3), th.randn(2, 3))
    inputs = [x.double().requires_grad_() for x in inputs]
    assert th.autograd.gradcheck(outputs, (*inputs, *parameters))


def test_shm_calibrations():
    """C = 1 sums the updates up; the constant one does not depend on the input; the fixed one uses row 0 only."""
    none, constant = SHM(D, memory_size=4, calibration="none"), SHM(D, memory_size=4, calibration="constant")
    x = th.randn(2, 7, D)
    starts = x[..., 0] > 0
    (theta, vc, *_), _ = none.vectors(none.project(x, none.initial_state(2), starts)[0], None, starts)
    assert not theta.any() and not vc.any()
    (theta, vc, *_), _ = constant.vectors(constant.project(x, constant.initial_state(2), starts)[0], None, starts)
    assert (theta == theta[:1, :1]).all() and (vc == vc[:1, :1]).all() and theta.any()
    assert SHM(D, theta="fixed").theta_rows.shape[0] == 1 and SHM(D, theta="random").theta_rows.shape[0] == 128
    assert not any("theta" in name or "vc" in name for name, _ in SHM(D, calibration="random").named_parameters())


def test_what_is_read_first_is_the_present_input():
    """Queries begin as the keys, and learn apart from them; the paper's begin on their own."""
    shm = SHM(D, memory_size=4)
    inputs, _ = shm.vectors(
        shm.project(th.randn(1, 3, D), shm.initial_state(1), th.zeros(1, 3, dtype=th.bool))[0],
        None,
        th.zeros(1, 3, dtype=th.bool),
    )
    assert th.equal(inputs.k, inputs.q)
    for other in (SHM(D, memory_size=4, tied_start=False), PaperSHM(D, memory_size=4)):
        key, query = other.projection.weight[:8].chunk(2)
        assert not th.allclose(key, query)


def test_weights_without_a_calibration_scale_have_1():
    saved = SHM(D, memory_size=4).state_dict()
    assert saved.pop("calibration_scale").item() == pytest.approx(0.1)
    later = SHM(D, memory_size=4)
    later.load_state_dict(saved)
    assert later.calibration_scale == 1


def test_shm_draws_rows_evenly_and_deterministic_rows_by_step():
    shm = SHM(D, n_theta=8)
    state = shm.initial_state(200)
    rows = shm.draw_context(state, th.zeros(200, 100, dtype=th.bool))
    assert rows.dtype == th.uint8
    counts = th.bincount(rows.flatten().long(), minlength=8)
    assert len(counts) == 8 and (counts - 2500).abs().max() < 6 * np.sqrt(2500)
    # Deterministic: the same episode gives the same rows, wherever it begins and whatever shares the batch
    starts = th.zeros(2, 12, dtype=th.bool)
    starts[1, 5] = True
    det = shm.draw_context(shm.initial_state(2), starts, deterministic=True).squeeze(-1)
    assert (det[0] == shm.deterministic_rows[:12]).all() and (det[1, 5:] == shm.deterministic_rows[:7]).all()
    twin = SHM(D, n_theta=8)
    assert not (twin.deterministic_rows == shm.deterministic_rows).all()
    twin.load_state_dict(shm.state_dict())
    assert (twin.deterministic_rows == shm.deterministic_rows).all()


@settings(max_examples=50, deadline=None)
@given(starts=st.lists(st.booleans(), min_size=1, max_size=20), step=st.integers(0, 9))
def test_steps_in_episode(starts, step):
    expected, count = [], step
    for start in starts:
        count = 0 if start else count
        expected.append(count)
        count += 1
    index, after = steps_in_episode(th.tensor([step]), th.tensor([starts]))
    assert index.tolist() == [expected] and after.tolist() == [count]


def test_sine_position():
    position = SinePosition(5)
    x = th.randn(1, 3, 5)
    index = th.tensor([[0, 7, 5000]])  # beyond the first table
    y = position(x, index)
    for i, t in enumerate(index[0].tolist()):
        frequencies = [1024 ** (-j / 5) for j in (0, 2, 4)]
        sines = [f(t * w) for w in frequencies for f in (np.sin, np.cos)][:5]
        np.testing.assert_allclose(y[0, i].detach(), 0.5 * x[0, i] + 0.5 * th.tensor(sines), atol=2e-3 if t > 1000 else 1e-5)
    assert set(position.state_dict()) == {"logit"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_memory("elephant", D), "'shm', 'shm_paper', 'gru', 'lstm'"),
        (lambda: make_memory(3, D), "Memory class"),
        (lambda: make_memory("gru", D, dict(memory_size=3)), "hidden_size, num_layers"),
        (lambda: SHM(D, theta="Random"), "'random', 'fixed', 'neural'"),
        (lambda: SHM(D, calibration="no"), "'hadamard', 'none', 'random', 'constant'"),
        (lambda: SHM(D, backend="gpu"), "'auto', 'reference'|'auto', 'cpu'"),
        (lambda: SHM(D, n_theta=257), "n_theta must be an integer, at least 1 and at most 256"),
        (lambda: SHM(D, memory_size=0), "at least 1"),
        (lambda: SHM(D, clip=0.0), "None for no bound.* above 0"),
        (lambda: SHM(D, memory_size=2.5), "memory_size must be an integer"),
        (lambda: SHM(D, keys="relu"), "Unknown keys 'relu', choose one of 'unit', 'softmax', 'sum'"),
        (lambda: SHM(D, read_gain=0), r"read_gain \(None for no norm\) must be a finite number, above 0; got 0"),
        (lambda: make_memory("shm_paper", D, dict(keys="unit")), "PaperSHM has no argument 'keys'"),
        (lambda: GRU(D, hidden_size=0), "at least 1"),
        (lambda: MemoryTrunk(D, position="cosine"), "None, 'sine'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_own_memory_class():
    class Small(GRU):
        def __init__(self, input_size: int, **kwargs) -> None:
            super().__init__(input_size, **kwargs)

    assert make_memory(Small, D, dict(hidden_size=3)).output_size == 3
    assert isinstance(make_memory(Memoryless, D), Memoryless) and {"shm", "gru", "lstm"} < set(MEMORIES)


@pytest.mark.parametrize("size", [5, 24, 32])
def test_fused_operations_equal_torchs(size):
    """What the kernels compute in float32, and every gradient, against torch's own operations in float64."""
    memory = SHM(D, memory_size=size)
    memory.projection.weight.data += th.randn_like(memory.projection.weight)
    exact = copy.deepcopy(memory).double()
    starts = th.rand(3, 9) < 0.3
    rows = th.randint(128, (3, 9), dtype=th.uint8)
    results = []
    for module in (memory, exact):
        dtype = module.output.weight.dtype
        th.manual_seed(1)
        x, before = (3 * th.randn(*shape) for shape in ((3, 9, D), (3, D)))
        x, before = (y.to(dtype).requires_grad_() for y in (x, before))
        state = module.initial_state(3)
        z, _ = module.project(x, (state[0], state[1], before), starts)
        vectors, shortcut = module.vectors(z, rows, starts)
        outputs = (z, *vectors, shortcut)
        weights = [th.randn(y.shape).to(dtype) for y in outputs]
        inputs = (x, before, module.projection.weight, module.theta_rows)
        results.append((*outputs, *th.autograd.grad(outputs, inputs, weights)))
    for fused, torchs in zip(*results, strict=True):
        scale = float(torchs.abs().max())
        assert scale > 0 and (fused.double() - torchs).abs().max() <= 2e-6 * max(1.0, scale)
    with th.no_grad():  # without gradients the same, bit for bit
        z, _ = memory.project(x.detach().float(), (state[0], state[1], before.detach().float()), starts)
        assert th.equal(z, results[0][0]) and th.equal(memory.vectors(z, rows, starts)[0][3], results[0][4])
