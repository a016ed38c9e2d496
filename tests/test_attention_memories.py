"""linear_attention, fwp, mlstm, gpt and gtrxl against their papers' equations, written as plain loops in float64."""

import math

import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recurrences import recurrence
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_shm.memory import FWP, GPT, MLSTM, GTrXL, LinearAttention, make_memory
from sb3_shm.memory.base import state_tensors
from sb3_shm.memory.fwp import delta_rule
from sb3_shm.memory.matrix import gated_recurrence, sum_between
from sb3_shm.memory.testing import check_memory

D = 5
MAKERS = {
    "linear_attention": lambda: LinearAttention(D, memory_size=4),
    "linear_attention-plain": lambda: LinearAttention(D, memory_size=3, output_size=2, layer_norm=False, shortcut=False),
    "fwp": lambda: FWP(D, memory_size=4),
    "fwp-dpfp": lambda: FWP(D, memory_size=3, feature_map="dpfp", shortcut=False),
    "mlstm": lambda: MLSTM(D, memory_size=4),
    "mlstm-plain": lambda: MLSTM(D, memory_size=3, output_size=6, layer_norm=False, shortcut=False),
    "gpt": lambda: GPT(D, hidden_size=8, n_layers=2, n_heads=2, window=5),
    "gpt-long-window": lambda: GPT(D, hidden_size=6, output_size=3, n_layers=1, n_heads=3, window=100),
    "gpt-window-1": lambda: GPT(D, hidden_size=4, n_layers=1, n_heads=1, window=1),
    "gtrxl": lambda: GTrXL(D, hidden_size=8, n_layers=2, n_heads=2, window=7),
}


def make(case):
    """A memory in float64 whose zeros are not zero, so that every term of the equations counts."""
    memory = MAKERS[case]().double()
    with th.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return memory


def episodes(starts):
    """For each step of a row the first step of its episode."""
    first, result = 0, []
    for t, start in enumerate(starts.tolist()):
        first = t if start else first
        result.append(first)
    return result


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def projections(memory, x):
    if isinstance(memory.norm, th.nn.LayerNorm):
        x = layer_norm(x, memory.norm)
    z, at = {}, 0
    for name, width in memory.widths.items():
        z[name] = x @ memory.projection.weight[at : at + width].T + memory.projection.bias[at : at + width]
        at += width
    assert at == len(memory.projection.weight)
    return z


def linear_attention_by_pairs(memory, z, first):
    """Katharopoulos et al. 2020, equation 8: no state at all, each step compares itself with each before."""

    def phi(a):
        return th.where(a > 0, a + 1, a.clamp(max=0).exp())

    for t, begin in enumerate(first):
        similar = phi(z["key"][begin : t + 1]) @ phi(z["query"][t])
        yield similar @ z["value"][begin : t + 1] / (similar.sum() + 1e-6)


def fwp_by_steps(memory, z, first):
    """Schlag et al. 2021, section 4.2."""

    def phi(a):
        if memory.feature_map == "dpfp":
            r = [*a.clamp(min=0), *(-a).clamp(min=0)]
            a = th.stack([r[i] * r[i - 1] for i in range(len(r))])
        else:
            a = th.where(a > 0, a + 1, a.clamp(max=0).exp())
        return a / (1e-5 + a.sum())

    for t, begin in enumerate(first):
        k, q, v = phi(z["key"][t]), phi(z["query"][t]), z["value"][t]
        if t == begin:
            fast = th.zeros(len(v), len(k), dtype=th.float64)
        fast = fast + th.outer((v - fast @ k) / (1 + th.exp(-z["rate"][t])), k)
        yield fast @ q


def mlstm_by_steps(memory, z, first):
    """Beck et al. 2024, equations 19 to 27, without the stabiliser."""
    size = memory.memory_size
    for t, begin in enumerate(first):
        if t == begin:
            cell, normaliser = th.zeros(size, size, dtype=th.float64), th.zeros(size, dtype=th.float64)
        i, f, o = z["input_gate"][t].exp(), 1 / (1 + (-z["forget_gate"][t]).exp()), 1 / (1 + (-z["output_gate"][t]).exp())
        k, q, v = z["key"][t] / math.sqrt(size), z["query"][t], z["value"][t]
        cell = f * cell + i * th.outer(v, k)
        normaliser = f * normaliser + i * k
        yield o * (cell @ q) / (normaliser @ q).abs().clamp(min=1)


def transformer_by_steps(memory, x, first):
    """Each step gathers the steps that it sees; no cache, no mask, no blocks."""

    def gate(gate, x, y):  # Parisotto et al. 2020, section 3.2
        size = len(x)
        w_r, w_z, w_g = gate.of_y.weight.split(size)
        u_r, u_z = gate.of_x.weight.split(size)
        y = y.clamp(min=0)
        r = 1 / (1 + th.exp(-(w_r @ y + u_r @ x)))
        update = 1 / (1 + th.exp(-(w_z @ y + u_z @ x - gate.bias)))
        return (1 - update) * x + update * th.tanh(w_g @ y + gate.of_reset.weight @ (r * x))

    gated = isinstance(memory, GTrXL)
    h = memory.input(x)
    for layer in memory.layers:
        query, key, value = (layer.query_key_value(layer_norm(h, layer.attention_norm))).chunk(3, dim=-1)
        width, rows = query.shape[1] // layer.n_heads, []
        for t, begin in enumerate(first):
            seen = [s for s in range(begin, t + 1) if t - s < memory.window]
            heads = []
            for head in range(layer.n_heads):
                part = slice(head * width, (head + 1) * width)
                scores = key[seen][:, part] @ query[t, part] / math.sqrt(width)
                weights = th.exp(scores + th.stack([layer.distance_bias[head, t - s] for s in seen]))
                heads.append(weights @ value[seen][:, part] / weights.sum())
            attended = layer.attention_output(th.cat(heads))
            a = gate(layer.attention_gate, h[t], attended) if gated else h[t] + attended
            made = layer.feedforward(layer_norm(a, layer.feedforward_norm))
            rows.append(gate(layer.feedforward_gate, a, made) if gated else a + made)
        h = th.stack(rows)
    return memory.output(layer_norm(h, memory.norm))


def by_definition(memory, x, starts):
    """Outputs for (N, T, D), row after row, step after step."""
    outputs = []
    for row, row_starts in zip(x, starts, strict=True):
        first = episodes(row_starts)
        if isinstance(memory, GPT):
            outputs.append(transformer_by_steps(memory, row, first))
            continue
        z = projections(memory, row)
        steps = {LinearAttention: linear_attention_by_pairs, FWP: fwp_by_steps, MLSTM: mlstm_by_steps}[type(memory)]
        h = th.stack(list(steps(memory, z, first)))
        h = h + z["shortcut"] if "shortcut" in z else h
        outputs.append(h @ memory.output.weight.T + memory.output.bias)
    return th.stack(outputs)


@pytest.mark.parametrize("case", MAKERS)
@settings(max_examples=5, deadline=None)
@example(t=100, cut=1.0, p_start=0.03, seed=0)
@given(
    t=st.sampled_from([1, 2, 33, 65, 70]),
    cut=st.floats(0, 1),
    p_start=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_its_definition(case, t, cut, p_start, seed):
    """Outputs and all gradients, with the sequence cut in two anywhere, over several chunks, starts anywhere."""
    th.manual_seed(seed)
    memory = make(case)
    x = th.randn(2, t, D, dtype=th.float64, requires_grad=True)
    starts = th.rand(2, t) < p_start
    cut = max(1, round(cut * t))
    y, state = memory(x[:, :cut], memory.initial_state(2), starts[:, :cut])
    if cut < t:
        rest, state = memory(x[:, cut:], state, starts[:, cut:])
        y = th.cat([y, rest], dim=1)
    expected = by_definition(memory, x, starts)
    th.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
    weights = th.randn_like(y)
    sources = [x, *memory.parameters()]
    gradients, expected_gradients = (
        th.autograd.grad((z * weights).sum(), sources, allow_unused=True, materialize_grads=True) for z in (y, expected)
    )
    for one, other in zip(gradients, expected_gradients, strict=True):
        th.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("case", MAKERS)
def test_keeps_the_contract(case):
    th.manual_seed(1)
    check_memory(MAKERS[case]())


def random_recurrence(t, p_start, n=3, size=4):
    query, key, value = (th.randn(n, t, size, dtype=th.float64) for _ in range(3))
    return query, key, value, th.randn(n, size, size, dtype=th.float64), th.rand(n, t) < p_start


@pytest.mark.parametrize("t", [1, 32, 100])
@pytest.mark.parametrize("gated", [False, True])
def test_gated_recurrence_is_the_hadamard_recurrence_with_a_scalar(t, gated):
    """C = 1 is linear attention, a C with equal entries is mLSTM's forget gate (SHM's paper, section 3.1)."""
    query, key, value, matrix, starts = random_recurrence(t, 0.05)
    forget, write = (
        th.rand(3, t, dtype=th.float64) * 0.9 + 0.1 if gated else th.ones(3, t, dtype=th.float64) for _ in range(2)
    )
    h, scale, last, last_scale = gated_recurrence(
        query, key, value, forget.log(), write.log(), matrix, th.zeros(3, dtype=th.float64), starts
    )
    assert not scale.any() and not last_scale.any()  # nothing is large, so nothing is rescaled
    theta = th.atanh(forget - 1).unsqueeze(-1).expand_as(key)
    expected = recurrence(theta, th.ones_like(key), write.unsqueeze(-1) * value, key, query, matrix, starts)
    th.testing.assert_close((h, last), expected)


@pytest.mark.parametrize("write_size", [1, 40, 1000])
@pytest.mark.parametrize("forget_size", [1, 40, 1000])
def test_stabiliser_of_mlstm(write_size, forget_size):
    """Gates from far below to far above what exp can express, against the paper's stabilised loop (equations 15 to 17)."""
    t = 150
    query, key, value, matrix, starts = random_recurrence(t, 0.02)
    log_forget = F.logsigmoid(forget_size * th.randn(3, t, dtype=th.float64))
    log_write = write_size * th.randn(3, t, dtype=th.float64)
    m0 = th.tensor([0.0, 3.0, 500.0], dtype=th.float64)
    h, scale, last, last_scale = gated_recurrence(query, key, value, log_forget, log_write, matrix, m0, starts)
    for n in range(3):
        # The paper's m has no lower bound, so compare exp(m) times what is kept
        m, cell = m0[n], matrix[n]
        for i in range(t):
            if starts[n, i]:
                m, cell = th.tensor(-math.inf, dtype=th.float64), th.zeros_like(cell)
            m_before, m = m, th.maximum(log_forget[n, i] + m, log_write[n, i])
            cell = (log_forget[n, i] + m_before - m).exp() * cell
            cell = cell + (log_write[n, i] - m).exp() * th.outer(value[n, i], key[n, i])
            th.testing.assert_close(h[n, i], cell @ query[n, i] * (m - scale[n, i]).exp(), atol=1e-9, rtol=1e-9)
            assert scale[n, i] >= max(m - 1e-9, 0)
        th.testing.assert_close(last[n], cell * (m - last_scale[n]).exp(), atol=1e-9, rtol=1e-9)


def test_sum_between_keeps_the_digits_of_small_pieces():
    """As forget gates do: one that closes, then open ones."""
    x = th.full((64,), -1e-3)
    x[5] = -1e6
    sums = sum_between(x)
    th.testing.assert_close(sums[50, 10], th.tensor(-0.04), rtol=1e-6, atol=0)
    assert sums[10, 10] == 0 and sums[3, 20] == 0 and sums[6, 4] == th.tensor(-1e6) + x[6]


@pytest.mark.parametrize("case", MAKERS)
@pytest.mark.parametrize("size", [0.0, 1.0, 1000.0])
def test_2000_steps_of_saturated_gates(case, size):
    """float32: no NaN and no infinity in outputs, state and gradients, one episode long, from inputs of any size."""
    memory = MAKERS[case]()
    memory.norm = th.nn.Identity()
    x = (size * th.randn(2, 2000, D)).requires_grad_()
    starts = th.zeros(2, 2000, dtype=th.bool)
    starts[1, 777] = True
    y, state = memory(x, memory.initial_state(2), starts)
    y.square().mean().backward()
    tensors = [y, x.grad, *(parameter.grad for parameter in memory.parameters() if parameter.grad is not None)]
    floats = state[0] if isinstance(memory, GPT) else state
    for tensor in [*tensors, *floats]:
        assert th.isfinite(tensor).all()


def test_delta_rule_replaces_what_a_key_holds():
    """Orthonormal keys at rate 1: a key answers with the last value written under it, however often it was written."""
    keys = th.eye(4, dtype=th.float64)[[0, 1, 2, 0, 1, 0] * 20].unsqueeze(0)
    values = th.randn(1, 120, 3, dtype=th.float64)
    zeros = th.zeros(1, 3, 4, dtype=th.float64)
    _, matrix = delta_rule(keys, keys, values, th.ones(1, 120, dtype=th.float64), zeros, th.zeros(1, 120, dtype=th.bool))
    th.testing.assert_close(matrix[0, :, :3].T, values[0, [119, 118, 116]])
    assert not matrix[0, :, 3].any()


@pytest.mark.parametrize("n_layers, window", [(1, 4), (2, 4), (3, 30)])
def test_gpt_sees_its_window_and_no_more(n_layers, window):
    """Each layer reaches window - 1 steps back, over the edges of blocks, and none sees the future."""
    memory = GPT(D, hidden_size=4, n_layers=n_layers, n_heads=2, window=window).double()
    x = th.randn(1, 140, D, dtype=th.float64, requires_grad=True)
    y, _ = memory(x, memory.initial_state(1), th.zeros(1, 140, dtype=th.bool))
    for t in (3, 64, 100, 139):
        (gradient,) = th.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(-1).nonzero().flatten()
        assert reached.min() == max(0, t - n_layers * (window - 1)) and reached.max() == t


class OperationCounter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["linear_attention", "fwp", "mlstm", "gpt", "gtrxl"])
def test_no_loop_over_time(case):
    """As many operations for 1,024 steps as for 256; the delta rule does a few more for each of its 12 further chunks."""
    memory, counts = MAKERS[case](), []
    for t in (256, 1024):
        with OperationCounter() as counter:
            memory(th.randn(8, t, D), memory.initial_state(8), th.rand(8, t) < 0.1)
        counts.append(counter.count)
    assert counts[1] - counts[0] <= (12 * 14 if case == "fwp" else 0), counts


@pytest.mark.parametrize("case", MAKERS)
def test_makes_tensors_on_its_device(case):
    """The meta device stands for one that is not the CPU: tensors of both in one operation are an error."""
    memory = MAKERS[case]().to("meta")
    for t in (1, 100):
        starts = th.zeros(2, t, dtype=th.bool, device="meta")
        y, state = memory(th.randn(2, t, D, device="meta"), memory.initial_state(2), starts)
        assert all(tensor.is_meta for tensor in [y, *state_tensors(state)])


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("linear_attention", dict(memory_size=0), "memory_size must be an integer, at least 1"),
        ("fwp", dict(output_size=2.5), "output_size must be an integer"),
        ("fwp", dict(feature_map="relu"), "'elu', 'dpfp'"),
        ("mlstm", dict(hidden_size=3), "its arguments are memory_size, output_size"),
        ("gpt", dict(hidden_size=10, n_heads=4), "hidden_size must be a multiple of n_heads, got 10 and 4"),
        ("gpt", dict(window=0), "window must be an integer, at least 1"),
        ("gtrxl", dict(n_layers=0), "n_layers must be an integer, at least 1"),
        ("gtrxl", dict(n_heads=True), "n_heads must be an integer"),
    ],
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_memory(name, D, kwargs)
