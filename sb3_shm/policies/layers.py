"""torch's layers, arranged for torch's speed on the CPU."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th
from torch import nn
from torch.nn import functional as F

FEW_INPUTS, MANY_ROWS = 8, 1024  # up to which and from which on a transposed weight is faster, by 10% to 200%


class Linear(nn.Linear):
    """
    ``nn.Linear`` for observations: with few inputs and many rows the products of the backward pass are several times faster
    on the CPU if the weight lies transposed in memory.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., in_features)
        :return: (..., out_features)
        """
        weight: th.Tensor = self.weight
        if self.in_features <= FEW_INPUTS and not th.compiler.is_compiling():  # a traced layer cannot choose
            is_large = x.is_cpu and x.numel() >= MANY_ROWS * self.in_features
            weight = weight.t().contiguous().t() if is_large else weight
        return F.linear(x, weight, self.bias)


def hidden_layers(sizes: Sequence[int], activation_fn: Callable[[], nn.Module]) -> list[nn.Module]:
    """
    :param sizes: number of input features, then the sizes of the layers
    :param activation_fn: makes the activation after each layer
    :return: the layers and their activations
    """
    return [layer for i, o in pairwise(sizes) for layer in (Linear(i, o), activation_fn())]


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
