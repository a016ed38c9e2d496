"""Layers arranged for speed compute what torch's own do."""

from copy import deepcopy

import pytest
import torch as th
from torch import nn

from sb3_shm.common.layers import MANY, LayerNorm, Linear, readout


@pytest.mark.parametrize("shape", [(5, 3), (2, 7, 3), (MANY // 3 + 1, 3), (64, MANY // 192 + 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(shape, bias):
    ours = Linear(3, 4, bias=bias)
    theirs = nn.Linear(3, 4, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = th.randn(shape, requires_grad=True)
    weights = th.randn(*shape[:-1], 4)
    results = []
    for layer in (ours, theirs):
        y = layer(x)
        results.append([y, *th.autograd.grad((y * weights).sum(), [x, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # sums of up to 5,462 products


@pytest.mark.parametrize("rows", [8, MANY])
def test_linear_multiplies_in_the_type_of_its_input(rows):
    layer = Linear(3, 4)
    x = th.randn(rows, 3).bfloat16()
    y = layer(x)
    assert y.dtype == th.bfloat16
    exact = x.double() @ layer.weight.bfloat16().double().t() + layer.bias.bfloat16().double()
    th.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7)  # what is put out is rounded, too
    y.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == th.float32


def test_linear_can_be_compiled_and_copied():
    layer = Linear(3, 4)
    x = th.randn(MANY, 3)
    program = th.export.export(layer, (x,))
    th.testing.assert_close(program.module()(x), layer(x))
    assert th.equal(deepcopy(layer)(x), layer(x))


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
