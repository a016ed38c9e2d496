"""torch's layers, arranged for torch's speed on the CPU."""

from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MANY = 2**14  # numbers in an input from which on to turn a weight around pays


class Linear(nn.Linear):
    """
    ``nn.Linear`` for many rows, with products of the type of its input. The CPU's are faster with a weight that lies
    transposed in memory: a few percent with square weights, several times with few inputs, whose gradients are thin.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., in_features)
        :return: (..., out_features) of the same type
        """
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        # A traced layer cannot choose
        if not th.compiler.is_compiling() and x.is_cpu and x.numel() >= MANY:
            weight = weight.t().contiguous().t()
        return F.linear(x, weight, bias)


class LayerNorm(nn.Module):
    """
    Layer normalisation without parameters.

    :param size: number of features
    """

    ones: th.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # To multiply by it changes no digit, but torch 2.13 takes twice as long without a weight
        self.register_buffer("ones", th.ones(size), persistent=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., size)
        :return: with mean 0 and variance 1, (..., size)
        """
        return F.layer_norm(x, self.ones.shape, self.ones)


class _Readout(th.autograd.Function):
    """See :func:`readout`."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        narrow = dy.to(x.dtype)
        return (
            narrow @ weight.to(x.dtype) if of_x else None,
            (narrow.t() @ x).float() if of_weight else None,
            dy.sum(dim=0) if of_bias else None,
        )


def readout(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    A last linear layer, in float32 whatever comes in; its input's gradient is a product of the input's type.

    :param x: (rows, in_features), float32 or bfloat16
    :param weight: (out_features, in_features) float32
    :param bias: (out_features,) float32
    :return: (rows, out_features) float32
    """
    if x.dtype == th.float32:
        return F.linear(x, weight, bias)
    y: th.Tensor = _Readout.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y
