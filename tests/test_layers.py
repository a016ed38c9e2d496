"""Layers arranged for speed compute what torch's own do."""

import pytest
import torch as th
from torch import nn

from sb3_shm.policies.layers import FEW_INPUTS, MANY_ROWS, LayerNorm, Linear, hidden_layers, readout


@pytest.mark.parametrize("n_inputs", [1, FEW_INPUTS, FEW_INPUTS + 1])
@pytest.mark.parametrize("rows", [(5,), (2, 7), (MANY_ROWS,), (64, MANY_ROWS // 64 + 1)])
def test_linear_is_torchs(rows, n_inputs):
    ours, theirs = Linear(n_inputs, 4), nn.Linear(n_inputs, 4)
    theirs.load_state_dict(ours.state_dict())
    x = th.randn(*rows, n_inputs, requires_grad=True)
    weights = th.randn(*rows, 4)
    results = []
    for layer in (ours, theirs):
        y = layer(x)
        results.append([y, *th.autograd.grad((y * weights).sum(), [x, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # sums of up to 1,088 products


@pytest.mark.parametrize("rows", [8, MANY_ROWS])
def test_linear_multiplies_bfloat16(rows):
    layer = Linear(3, 4)
    x = th.randn(rows, 3).bfloat16()
    y = layer(x)
    assert y.dtype == th.bfloat16
    exact = x.double() @ layer.weight.bfloat16().double().t() + layer.bias.bfloat16().double()
    th.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7)  # what is put out is rounded, too
    y.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == th.float32


@pytest.mark.parametrize("dtype", [th.int64, th.float64])
def test_linear_rounds_its_weight_to_no_other_type(dtype):
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(3, 4)(th.ones(2, 3, dtype=dtype))


def test_linear_can_be_exported_for_any_number_of_rows():
    layer = Linear(3, 4)
    rows = {0: th.export.Dim("rows", min=2, max=4 * MANY_ROWS)}
    program = th.export.export(layer, (th.randn(7, 3),), dynamic_shapes=(rows,)).module()
    for n in (5, 2 * MANY_ROWS):
        x = th.randn(n, 3)
        th.testing.assert_close(program(x), layer(x))


def test_hidden_layers():
    layers = hidden_layers([3, 8, 4], nn.Tanh)
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == [(3, 8), (8, 4)]
    assert all(isinstance(layer, nn.Tanh) for layer in layers[1::2])
    assert hidden_layers([3], nn.ReLU) == hidden_layers([], nn.ReLU) == []


def test_layer_norm_is_torchs_to_the_last_bit():
    x = th.randn(6, 50, 64, requires_grad=True)
    weights = th.randn_like(x)
    ours, theirs = LayerNorm(64), nn.LayerNorm(64, elementwise_affine=False)
    assert not ours.state_dict() and not list(ours.parameters())
    assert th.equal(ours(x), theirs(x))
    of_ours, of_theirs = (th.autograd.grad((layer(x) * weights).sum(), x)[0] for layer in (ours, theirs))
    assert th.equal(of_ours, of_theirs)


def test_readout():
    """Its output is exact to float32; the gradients are products of bfloat16, but for the bias's."""
    x, weight, bias = th.randn(40, 16), th.randn(2, 16), th.randn(2)
    dy = th.randn(40, 2)

    def gradients(x):
        leaves = [x.requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = readout(*leaves)
        return y, th.autograd.grad(y, leaves, dy)

    narrow = x.bfloat16()
    y, (dx, dweight, dbias) = gradients(narrow)
    wide, of_wide = gradients(narrow.detach().float())
    assert y.dtype == th.float32 and dx.dtype == th.bfloat16 and dweight.dtype == dbias.dtype == th.float32
    th.testing.assert_close(y, wide)
    for a, b in zip((dx.float(), dweight), of_wide[:2], strict=True):
        th.testing.assert_close(a, b, rtol=0.02, atol=0.05)
    th.testing.assert_close(dbias, of_wide[2])
    # By hand, where every product is exact in bfloat16: one row, powers of two
    x, weight, bias = th.tensor([[2.0, 4.0]]).bfloat16().requires_grad_(), th.tensor([[0.5, -1.0]]), th.tensor([1.0])
    y = readout(x, weight, bias)
    assert y.tolist() == [[-2.0]]
    (dx,) = th.autograd.grad(y, x, th.tensor([[3.0]]))
    assert dx.tolist() == [[1.5, -3.0]]
