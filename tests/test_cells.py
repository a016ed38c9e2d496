"""GRU and LSTM by the kernels: against torch's own cells, step by step, an episode's start putting the state to zero."""

import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_shm.memory import GRU, LSTM
from sb3_shm.memory.backends import cpu_cells
from sb3_shm.memory.testing import check_memory

D = 5
CLASSES = [(GRU, nn.GRUCell, nn.GRU), (LSTM, nn.LSTMCell, nn.LSTM)]
of_both = pytest.mark.parametrize("memory_class", [GRU, LSTM])


def by_cells(memory: GRU | LSTM, x: th.Tensor, state: tuple, starts: th.Tensor) -> tuple[th.Tensor, tuple]:
    """The definition."""
    cell_class = nn.GRUCell if isinstance(memory, GRU) else nn.LSTMCell
    final = []
    for i, weights in enumerate(memory.layer.all_weights):
        cell = cell_class(x.shape[2], memory.output_size).to(x.dtype)
        weights = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True))
        now, outputs = [tensor[:, i] for tensor in state], []
        for t in range(x.shape[1]):
            now = [th.where(starts[:, t, None], 0.0, tensor) for tensor in now]
            after = th.func.functional_call(cell, weights, (x[:, t], now[0] if len(now) == 1 else tuple(now)))
            now = [after] if len(now) == 1 else list(after)
            outputs.append(now[0])
        x = th.stack(outputs, dim=1)
        final.append(now)
    return x, tuple(th.stack(tensors, dim=1) for tensors in zip(*final, strict=True))


def make_inputs(memory: GRU | LSTM, n: int, t: int, p_start: float) -> tuple:
    x = th.randn(n, t, memory.input_size, dtype=memory.layer.weight_hh_l0.dtype, requires_grad=True)
    state = tuple(th.randn_like(tensor).requires_grad_() for tensor in memory.initial_state(n))
    return x, state, th.rand(n, t) < p_start


def everything(function, memory: GRU | LSTM, x: th.Tensor, state: tuple, starts: th.Tensor) -> list[th.Tensor]:
    """Outputs, state, and the gradients of a function of all of them: of inputs, state, and every weight and bias."""
    y, final = function(x, state, starts)
    outputs = [y, *final]
    # Weights that do not depend on N, so that rows can be compared between batches
    weights = [(th.arange(o[0].numel()) % 7 - 3).to(o).view(o[0].shape).expand_as(o) for o in outputs]
    gradients = th.autograd.grad(outputs, [x, *state, *memory.parameters()], weights)
    return [tensor.detach() for tensor in (*outputs, *gradients)]


def assert_same(got: list[th.Tensor], expected: list[th.Tensor], tolerance: float) -> None:
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert one.dtype == other.dtype
        bound = tolerance * max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) <= bound, i


@of_both
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),  # more rows than a tile has
    t=st.sampled_from((1, 2, 7, 30)),
    d=st.integers(1, 6),
    h=st.sampled_from((1, 3, 16, 33, 70)),  # less and more than a panel
    layers=st.integers(1, 2),
    p_start=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    dtype=st.sampled_from((th.float64, th.float32)),
    seed=st.integers(0, 1000),
)
@example(n=13, t=4, d=3, h=128, layers=1, p_start=0.3, dtype=th.float64, seed=0)
@example(n=2, t=300, d=3, h=8, layers=1, p_start=0.02, dtype=th.float64, seed=0)
def test_equals_torchs_cell(memory_class, n, t, d, h, layers, p_start, dtype, seed):
    th.manual_seed(seed)
    memory = memory_class(d, h, layers).to(dtype)
    inputs = make_inputs(memory, n, t, p_start)
    got = everything(memory, memory, *inputs)
    expected = everything(lambda *arguments: by_cells(memory, *arguments), memory, *inputs)
    assert_same(got, expected, 1e-12 if dtype == th.float64 else 1e-5)
    with th.no_grad():
        y, _ = memory(*inputs)
        assert_same([y], got[:1], 1e-14 if dtype == th.float64 else 1e-6)


@of_both
def test_gradients_against_differences(memory_class):
    memory = memory_class(2, 3, 2).double()
    starts = th.tensor([[False, False, True, False], [True, False, False, False]])
    names, parameters = zip(*memory.named_parameters(), strict=True)
    x, state, _ = make_inputs(memory, 2, 4, 0)

    def outputs(x, *tensors):
        own, weights = tensors[: len(state)], dict(zip(names, tensors[len(state) :], strict=True))
        y, after = th.func.functional_call(memory, weights, (x, own, starts))
        return y, *after

    assert th.autograd.gradcheck(outputs, (x, *state, *parameters))


@of_both
def test_neither_threads_nor_other_rows_matter(memory_class, monkeypatch):
    memory = memory_class(D, 40)
    x, state, starts = make_inputs(memory, 7, 50, 0.1)
    one_thread = everything(memory, memory, x, state, starts)
    monkeypatch.setattr(cpu_cells, "INLINE", 0)
    monkeypatch.setattr("sb3_shm.memory.backends.cpu_threads.INLINE", 0)
    th.set_num_threads(3)
    assert_same(everything(memory, memory, x, state, starts), one_thread, 1e-6)
    th.set_num_threads(1)
    rows = [4, 2]
    part = everything(memory, memory, x[rows].detach().requires_grad_(), tuple(s[rows] for s in state), starts[rows])
    of_rows = 2 + 2 * len(state)  # outputs, final state, gradients of inputs and state
    assert_same(part[:of_rows], [tensor[rows] for tensor in one_thread[:of_rows]], 1e-6)


@of_both
def test_every_unit_of_work_is_done(memory_class, monkeypatch):
    """More threads than pieces, and fewer."""
    memory = memory_class(D, 4)
    monkeypatch.setattr(cpu_cells, "INLINE", 0)
    for n, t in ((1, 3), (5, 3)):
        inputs = make_inputs(memory, n, t, 0.0)
        expected = everything(lambda *arguments: by_cells(memory, *arguments), memory, *inputs)
        for threads in (1, 2, 4):
            th.set_num_threads(threads)
            assert_same(everything(memory, memory, *inputs), expected, 1e-5)


@of_both
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_episode(memory_class, bad):
    memory = memory_class(D, 6)
    x, state, starts = make_inputs(memory, 3, 12, 0.0)
    starts[1, 5] = True
    with th.no_grad():
        expected, _ = memory(x, state, starts)
        spoiled = x.clone()
        spoiled[1, 2] = bad
        got, _ = memory(spoiled, state, starts)
        if bad != bad:  # gates of an infinite input are 0, 1 or, from inf - inf, NaN
            assert got[1, 2:5].isnan().all()
        for row, steps in ((0, slice(None)), (1, slice(5, None)), (2, slice(None))):
            assert th.equal(got[row, steps], expected[row, steps])


@of_both
def test_gates_saturate(memory_class):
    memory = memory_class(D, 6)
    x, state, starts = make_inputs(memory, 2, 9, 0.2)
    big = (x.detach() * 1e4).requires_grad_()
    got = everything(memory, memory, big, state, starts)
    assert_same(got, everything(lambda *arguments: by_cells(memory, *arguments), memory, big, state, starts), 1e-5)


def test_small_numbers_keep_their_digits():
    """A state of a millionth is no rounding error: tanh is exact relative to its value, not to 1."""
    memory = LSTM(1, 1)
    with th.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
        memory.layer.weight_ih_l0[2] = 1e-7
        y, (_, cell) = memory(th.ones(1, 2, 1), memory.initial_state(1), th.tensor([[True, True]]))
    th.testing.assert_close(cell.flatten(), th.tensor([0.5e-7]), rtol=1e-6, atol=0)
    th.testing.assert_close(y.flatten(), th.tensor([0.25e-7, 0.25e-7]), rtol=1e-6, atol=0)


@of_both
def test_backward_twice_and_frozen_weights(memory_class):
    memory = memory_class(D, 6)
    inputs = make_inputs(memory, 3, 8, 0.2)
    kept = [tensor.detach().clone() for tensor in (inputs[0], *inputs[1])]
    y, _ = memory(*inputs)
    one, two = (th.autograd.grad(y.sum(), list(memory.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(th.equal, one, two))
    assert all(map(th.equal, kept, (inputs[0], *inputs[1])))
    memory.layer.weight_hh_l0.requires_grad_(False)
    memory.layer.bias_hh_l0.requires_grad_(False)
    rest = [parameter for parameter in memory.parameters() if parameter.requires_grad]
    y, _ = memory(*inputs)
    for got, expected in zip(th.autograd.grad(y.sum(), rest), (one[0], one[2]), strict=True):
        assert th.equal(got, expected)


@of_both
def test_any_layout(memory_class):
    memory = memory_class(D, 6)
    x, state, starts = make_inputs(memory, 4, 5, 0.3)
    expected = everything(memory, memory, x, state, starts)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    wide = tuple(tensor.detach().expand(2, *tensor.shape).transpose(1, 3).contiguous().transpose(1, 3)[0] for tensor in state)
    wide = tuple(tensor.requires_grad_() for tensor in wide)
    assert_same(everything(memory, memory, strided, wide, starts.T.contiguous().T), expected, 1e-6)


@pytest.mark.parametrize("memory_class, cell_class, layer_class", CLASSES)
def test_weights_are_torchs(memory_class, cell_class, layer_class):
    """Names, shapes and what a seed draws, so that models load and experiments repeat."""
    th.manual_seed(5)
    memory = memory_class(D, 6, 2)
    after = th.rand(1)
    th.manual_seed(5)
    layer = layer_class(D, 6, 2, batch_first=True)
    assert th.equal(after, th.rand(1))
    mine, torchs = memory.state_dict(), layer.state_dict()
    assert list(mine) == [f"layer.{name}" for name in torchs]
    assert all(map(th.equal, mine.values(), torchs.values()))


@pytest.mark.parametrize("layers", [1, 2])
@of_both
def test_torchs_own_layer(memory_class, layers, monkeypatch):
    """What a GPU, autocast and traced programs take is the same memory."""
    memory = memory_class(D, 6, layers)
    inputs = make_inputs(memory, 4, 15, 0.2)
    expected = everything(memory, memory, *inputs)
    assert not cpu_cells.can_run(th.zeros(1, 1, D, dtype=th.bfloat16), memory.layer.weight_ih_l0)
    with th.autocast("cpu", dtype=th.bfloat16):
        assert not cpu_cells.can_run(inputs[0], memory.layer.weight_ih_l0)
    monkeypatch.setattr(cpu_cells, "can_run", lambda *_: False)
    calls, forward = [], memory.layer.forward
    monkeypatch.setattr(memory.layer, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    assert_same(everything(memory, memory, *inputs), expected, 1e-5)
    assert len(calls) == 1  # no Python loop over time
    monkeypatch.undo()
    monkeypatch.setattr(cpu_cells, "can_run", lambda *_: False)
    check_memory(memory, n_steps=50)


@of_both
def test_compiled_program_has_no_kernel(memory_class):
    memory = memory_class(D, 6)
    inputs = make_inputs(memory, 3, 9, 0.3)
    compiled = th.compile(memory, backend="aot_eager")
    assert_same(everything(compiled, memory, *inputs), everything(memory, memory, *inputs), 1e-5)


@of_both
def test_what_does_not_fit(memory_class):
    memory = memory_class(D, 6)
    x, state, starts = make_inputs(memory, 3, 4, 0.0)
    with pytest.raises(ValueError, match="state must have one row per sequence of x, that is 3, got"):
        memory(x, memory.initial_state(2), starts)
    for bad in (tuple(s[..., :4] for s in state), tuple(s.double() for s in state)):
        with pytest.raises(ValueError, match=r"The state must be \(3, 1, 6\) of torch.float32 on the CPU"):
            memory(x, bad, starts)
    for bad in (starts[:, :3], starts.float()):
        with pytest.raises(ValueError, match=r"episode_start must be \(3, 4\) of torch.bool"):
            memory(x, state, bad)
