"""Values that are learned at unit scale: PopArt (van Hasselt et al., arXiv 1602.07714)."""

import torch as th
from torch import nn

MIN_STD = 0.01  # where all returns are alike, values must not be blown up


def scale_last_layer(layer: nn.Linear, statistics: th.Tensor, returns: th.Tensor) -> None:
    """
    Take more returns into running statistics, and change the layer in place so that output * deviation + mean stays.

    :param layer: puts out normalised values
    :param statistics: (5,), changed in place: weight, mean and mean square of the returns so far, the mean and the standard
        deviation that follow
    :param returns: any shape; they count a tenth, those before them the rest
    """
    weight, first, second, mean, std = statistics.double().unbind()
    returns = returns.double()
    weight, first, second = (
        0.9 * old + 0.1 * new for old, new in ((weight, 1), (first, returns.mean()), (second, returns.square().mean()))
    )
    new_mean = first / weight
    new_std = (second / weight - new_mean.square()).clamp(min=MIN_STD**2).sqrt()
    layer.weight.mul_(std / new_std)
    layer.bias.mul_(std).add_(mean - new_mean).div_(new_std)
    statistics.copy_(th.stack((weight, first, second, new_mean, new_std)))
