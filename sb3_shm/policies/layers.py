"""torch's layers, arranged for torch's speed on the CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_linear import MANY_TANH, linear
from sb3_shm.memory.backends.plain import is_hooked
from sb3_shm.memory.linear import Linear


class Layers(nn.Sequential):
    """``nn.Sequential`` that computes a linear layer and the tanh behind it as one operation."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., features)
        :return: what the last layer makes of it
        """
        # A program must not depend on the number of rows with which it is traced
        if th.compiler.is_compiling() or x.numel() < MANY_TANH:
            y: th.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        layers: list[Any] = list(self)
        while layers:
            layer = layers.pop(0)
            is_followed_by_tanh = bool(layers) and type(layer) in (nn.Linear, Linear) and type(layers[0]) is nn.Tanh
            if is_followed_by_tanh and not is_hooked(layer) and not is_hooked(layers[0]):
                x = linear(x, layer.weight, layer.bias, tanh=True)
                del layers[0]
            else:
                x = layer(x)
        return x


def hidden_layers(sizes: Sequence[int], activation_fn: Callable[[], nn.Module]) -> list[nn.Module]:
    """
    :param sizes: number of input features, then the sizes of the layers
    :param activation_fn: makes the activation after each layer
    :return: the layers and their activations
    """
    return [layer for i, o in pairwise(sizes) for layer in (Linear(i, o), activation_fn())]


def make_shortcut(input_size: int, size: int | None) -> tuple[nn.Module, int]:
    """
    The way of the current observation (and action) past the memory, as in pomdp-baselines.

    :param input_size: number of its features
    :param size: Linear and ReLU to this size, or None to hand them on as they are
    :return: the module and its output size
    """
    return (nn.Identity(), input_size) if size is None else (nn.Sequential(Linear(input_size, size), nn.ReLU()), size)


def head(input_size: int, output_size: int, net_arch: list[int], activation_fn: type[nn.Module]) -> Layers:
    """
    :param input_size: number of input features
    :param output_size: number of output features, -1 for none after the last hidden layer
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation function; ReLU works in place: give it flat rows, as autograd copies views for that
    :return: the network
    """
    in_place: Any = partial(nn.ReLU, inplace=True) if activation_fn is nn.ReLU else activation_fn
    sizes = [input_size, *net_arch]
    layers = hidden_layers(sizes, in_place)
    if output_size > 0:
        layers.append(nn.Linear(sizes[-1], output_size))
    return Layers(*layers)


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
