"""What ``memory="shm"`` could be in version 0.1, for models that were saved then. New models use SHM or PaperSHM."""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.shm import PaperSHM


class OldSHM(PaperSHM):
    """
    The published form with learned biases of keys and queries, and of the calibration::

        k = normalise(relu(W_k x + b_k)),  q = normalise(relu(W_q x + b_q)),  C_t = 1 + tanh((1 + θ_t) ⊗ (b + vc))

    :param input_size: D, number of input features
    :param time_scales: None for no b and plain θ_t; its values only set what b began at
    :param key_bias: None for no b_k and b_q; its value only set what they began at
    :param kwargs: arguments of PaperSHM
    """

    def __init__(self, input_size: int, time_scales: Any = None, key_bias: float | None = None, **kwargs: Any) -> None:
        super().__init__(input_size, **kwargs)
        size = self.memory_size
        self.forgetting = None if time_scales is None else nn.Parameter(th.zeros(size))
        self.key_bias = None if key_bias is None else nn.Parameter(th.zeros(2, size))

    def vectors(
        self, z: th.Tensor, context: th.Tensor | None, episode_start: th.Tensor
    ) -> tuple[HadamardInputs, th.Tensor | None]:
        """See :meth:`SHM.vectors <sb3_shm.memory.shm.SHM.vectors>`."""
        if self.key_bias is not None:
            z = z + F.pad(self.key_bias.flatten(), (0, z.shape[-1] - 2 * self.memory_size))
        inputs, shortcut = super().vectors(z, context, episode_start)
        if self.forgetting is not None:
            inputs = inputs._replace(theta=1 + inputs.theta, vc=inputs.vc + self.forgetting)
        return inputs, shortcut
