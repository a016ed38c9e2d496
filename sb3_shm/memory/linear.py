"""torch's linear layer, arranged for speed on the CPU."""

import torch as th
from torch import nn

from sb3_shm.memory.backends.cpu_linear import linear

FEW_INPUTS, MANY_ROWS = 8, 1024  # up to which and from which on a transposed weight is faster, by 10% to 200%


class Linear(nn.Linear):
    """
    ``nn.Linear`` whose large products are faster on the CPU, see :func:`~sb3_shm.memory.backends.cpu_linear.linear`. With few
    inputs and many rows, as observations have, those of the backward pass are several times faster if the weight lies
    transposed in memory.
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
        return linear(x, weight, self.bias)
