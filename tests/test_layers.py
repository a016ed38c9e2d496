"""Layers arranged for speed compute what torch's own do."""

import pytest
import torch as th
from torch import nn

from sb3_shm.memory.linear import FEW_INPUTS, MANY_ROWS, Linear
from sb3_shm.policies.layers import LayerNorm, hidden_layers


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
