"""Products by oneDNN are torch's, also where this processor would leave them to MKL."""

from functools import partial

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import GRU, LSTM, SHM
from sb3_shm.memory.backends import cpu_linear, cpu_threads
from sb3_shm.memory.backends.cpu_linear import MANY_TANH, linear, products_over_rows
from sb3_shm.memory.linear import Linear
from sb3_shm.policies.layers import Layers

pytestmark = pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def counted(monkeypatch):
    """The products that oneDNN made; it makes all of them."""
    products, product = [], cpu_linear._onednn

    def count(x, weight, bias=None, tanh=False):
        products.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias, tanh)

    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_linear, "MANY", 0)
    monkeypatch.setattr(cpu_linear, "MANY_INPUTS", 0)
    monkeypatch.setattr(cpu_linear, "_onednn", count)
    return products


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 40) | st.sampled_from((64, 128))] * 2),
    has_bias=st.booleans(),
    tanh=st.booleans(),
    is_strided=st.booleans(),
    is_bias_strided=st.booleans(),
    is_expanded=st.booleans(),
)
def test_equals_torch_in_float64(rows, sizes, has_bias, tanh, is_strided, is_bias_strided, is_expanded):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(onednn_is_faster=lambda: True, MANY=0, MANY_INPUTS=0).items():
            patch.setattr(cpu_linear, name, value)
        n_in, n_out = sizes
        x = th.randn(*rows, 2 * n_in)[..., ::2] if is_strided else th.randn(*rows, n_in)
        weight, bias = th.randn(n_in, n_out).t() if is_strided else th.randn(n_out, n_in), th.randn(2 * n_out)
        bias = bias[::2] if is_bias_strided else bias[:n_out]
        inputs = [x, weight, *([bias] if has_bias else [])]
        weights = th.randn(1, dtype=th.float64).expand(*rows, n_out) if is_expanded else th.randn(*rows, n_out).double()
        results = []
        torchs = (lambda *tensors: F.linear(*tensors).tanh()) if tanh else F.linear
        for function, dtype in ((partial(linear, tanh=tanh), th.float32), (torchs, th.float64)):
            arguments = [tensor.to(dtype).requires_grad_() for tensor in inputs]
            y = function(*arguments)
            results.append([y, *th.autograd.grad(y, arguments, weights.to(dtype))])
            with th.no_grad():
                results[-1].append(function(*arguments))
        for ours, theirs in zip(*results, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == th.float32
            th.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("n_out, n_in", [(64, 30), (30, 64), (161, 128), (1, 64), (64, 64), (30, 30)])
@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_gradient_of_the_weight(counted, monkeypatch, rows, n_out, n_in):
    """By the kernel, where a side is whole vectors: rows beside the parts of 128, entries beside the tiles of 6 and 24."""
    grad, x = th.randn(rows, n_out), th.randn(rows, n_in)
    expected = grad.double().t() @ x.double()
    for threads in (1, 2):
        monkeypatch.setattr(cpu_threads, "INLINE", 2**18 if threads == 1 else 0)
        monkeypatch.setattr(th, "get_num_threads", lambda threads=threads: threads)
        ours = products_over_rows(grad, x)
        th.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)
        if threads == 1:
            alone = ours
    assert th.equal(ours, alone), "the same with two threads"
    assert len(counted) == (2 if n_out % 16 and n_in % 16 else 0)


def test_a_sum_over_many_rows_is_as_exact_as_torchs(counted):
    grad, x = th.randn(20_000, 6), th.randn(20_000, 64)
    expected = grad.double().t() @ x.double()
    ours, theirs = (float((y - expected).abs().max()) for y in (products_over_rows(grad, x), grad.t() @ x))
    assert ours < 3 * theirs


@pytest.mark.parametrize("tanh", [False, True])
def test_gradients_of_gradients(counted, tanh):
    x, weight = th.randn(5, 7, requires_grad=True), th.randn(3, 7, requires_grad=True)
    results = []
    torchs = (lambda x, weight: F.linear(x, weight).tanh()) if tanh else F.linear
    for function in (partial(linear, tanh=tanh), torchs):
        (dx,) = th.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        results.append(th.autograd.grad(dx.square().sum(), (x, weight)))
    assert counted
    for ours, theirs in zip(*results, strict=True):
        th.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [(6,), (2, 3)])
def test_what_comes_out_can_be_changed_in_place(counted, rows):
    x, weight = th.randn(*rows, 7, requires_grad=True), th.randn(5, 7)
    gradients = [
        th.autograd.grad(F.relu(function(x, weight), inplace=in_place).sum(), x)[0]
        for function, in_place in ((linear, True), (F.linear, False))
    ]
    assert counted
    th.testing.assert_close(*gradients)


def test_many_gradients_at_once(counted):
    x, weight, many = th.randn(2, 5, 7, requires_grad=True), th.randn(3, 7, requires_grad=True), th.randn(4, 2, 5, 3)
    gradients = [
        th.autograd.grad(function(x, weight), (x, weight), many, is_grads_batched=True) for function in (linear, F.linear)
    ]
    assert counted
    for ours, theirs in zip(*gradients, strict=True):
        th.testing.assert_close(ours, theirs)


def test_forward_derivatives_and_transforms_are_torchs(counted):
    x, weight, bias = th.randn(5, 7), th.randn(3, 7), th.randn(3)
    with forward_ad.dual_level():
        y = linear(forward_ad.make_dual(x, x), weight, bias)
        th.testing.assert_close(forward_ad.unpack_dual(y).tangent, x @ weight.t())
    th.testing.assert_close(th.func.jvp(linear, (x, weight, bias), (x, weight, bias))[1], 2 * x @ weight.t() + bias)
    th.testing.assert_close(th.func.grad(lambda x: linear(x, weight, bias).sum())(x), weight.sum(0).expand(5, 7))
    many = th.randn(4, 3)
    th.testing.assert_close(th.vmap(lambda bias: linear(x, weight, bias))(many), F.linear(x, weight) + many.unsqueeze(1))
    assert not counted
    traced = th.jit.trace(lambda x: linear(x, weight, bias), x, check_trace=False)  # which would run it untraced, too
    assert not counted
    th.testing.assert_close(traced(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("changed", ["weight", "x"])
def test_what_no_gradient_needs_may_change(counted, changed):
    x, weight, bias = th.randn(5, 7), th.randn(3, 7), th.zeros(3, requires_grad=True)
    if changed == "weight":
        weight.requires_grad_()
    y = linear(x, weight, bias)
    with th.no_grad():
        (weight if changed == "weight" else x).zero_()
    y.sum().backward()
    assert counted and th.equal(bias.grad, th.full((3,), 5.0))


def test_only_what_needs_a_gradient_is_multiplied(counted):
    linear(th.randn(4, 5), th.randn(3, 5, requires_grad=True)).sum().backward()
    assert counted == [((4, 5), (3, 5)), ((3, 4), (5, 4))]


@pytest.mark.parametrize("change", ["double", "small", "few inputs", "autocast", "another processor"])
def test_what_is_left_to_torch(counted, monkeypatch, change):
    if change in ("small", "few inputs"):
        monkeypatch.setattr(cpu_linear, "MANY" if change == "small" else "MANY_INPUTS", 10**9)
    if change == "another processor":
        monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: False)
    x, weight = th.randn(4, 5), th.randn(3, 5)
    if change == "double":
        x, weight = x.double(), weight.double()
    with th.autocast("cpu", enabled=change == "autocast"):
        y = linear(x, weight)
        assert th.equal(y, F.linear(x, weight)) and not counted
    assert (y.dtype == th.bfloat16) == (change == "autocast")


@pytest.mark.parametrize(
    "x, weight, bias",
    [
        (th.zeros(4, 5), th.zeros(3, 6), None),
        (th.zeros(4, 5), th.zeros(3, 5), th.zeros(2)),
        (th.zeros(4, 5), th.zeros(3, 5).double(), None),
        (th.zeros(4, 5), th.zeros(3, 5), th.zeros(3).double()),
        (th.zeros(4, 5), th.zeros(()), None),
    ],
)
def test_what_does_not_fit_is_torchs_to_refuse(counted, x, weight, bias):
    with pytest.raises(RuntimeError):
        linear(x, weight, bias)
    assert not counted


def test_one_row_without_a_dimension_of_rows(counted):
    x, weight = th.randn(5), th.randn(3, 5)
    assert th.equal(linear(x, weight), F.linear(x, weight))


def test_nan_and_infinity_are_seen_in_a_tanh(counted):
    x = th.tensor([[float("nan")], [float("inf")], [-float("inf")]])
    y = linear(x, th.ones(2, 1), tanh=True)
    assert counted and y[0].isnan().all() and th.equal(y[1:], th.tensor([[1.0, 1.0], [-1.0, -1.0]]))


def test_layers_are_a_sequential(counted):
    layers = [nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.Tanh(), nn.Tanh(), nn.Linear(6, 3)]
    ours, theirs = Layers(*layers), nn.Sequential(*layers)
    x = th.randn(MANY_TANH // 7 + 1, 7)
    th.testing.assert_close(ours(x), theirs(x))
    assert len(counted) == 2, "each linear layer with a tanh behind it"
    seen = []
    layers[1].register_forward_hook(lambda *_: seen.append("tanh"))
    layers[4].register_forward_pre_hook(lambda *_: seen.append("linear"))
    ours(x)
    assert seen == ["tanh", "linear"] and len(counted) == 2, "a layer with a hook is called"
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_heads_of_both_algorithms_take_it(counted):
    ppo = SHMPPO("MlpSHMPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    sac = SHMSAC("MlpSHMPolicy", "Pendulum-v1", policy_kwargs=dict(activation_fn=nn.Tanh))
    x = th.randn(MANY_TANH, 200)
    for net in (ppo.policy.mlp_extractor.policy_net, ppo.policy.mlp_extractor.value_net, sac.actor.latent_pi):
        del counted[:]
        expected = nn.Sequential(*net)(x[:, : net[0].in_features])
        assert len(counted) == (sum(isinstance(layer, Linear) for layer in net))
        th.testing.assert_close(net(x[:, : net[0].in_features]), expected)
        assert len(counted) > (sum(isinstance(layer, Linear) for layer in net))


@pytest.mark.parametrize("memory_class", [SHM, GRU, LSTM])
def test_memories_take_it(counted, monkeypatch, memory_class):
    memory = memory_class(12)
    x, starts = th.randn(3, 20, 12), th.rand(3, 20) < 0.1
    results = []
    for is_faster in (True, False):
        monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda is_faster=is_faster: is_faster)
        state = memory.initial_state(3)
        context = None if memory.context_size == 0 else th.zeros(3, 20, memory.context_size, dtype=th.uint8)
        y, _ = memory(x, state, starts, context)
        memory.zero_grad()
        y.square().sum().backward()
        results.append([y.detach(), *(parameter.grad.clone() for parameter in memory.parameters())])
    assert counted
    for ours, theirs in zip(*results, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
