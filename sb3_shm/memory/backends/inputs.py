"""The vectors of which each step's matrices are made: what every backend of the recurrence takes."""

import math
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

LARGEST_GRADIENT = 1e25
"""
The gradient of M is a product of as many C as there are steps after it, up to 2 each: in float32 it is infinite after 128, and
infinity times an entry of M or k that is 0 would be NaN, where the derivative is 0. It is held at a number so large that what
does not vanish is not finite in the weights' gradients, so that the optimizers see it.
"""
SMALLEST_GRADIENT = 1e-30
"""
Where C is below 1 the gradient fades, through the denormal numbers below 1e-38, with which a processor computes many times
slower. On the CPU what is smaller than this is 0, at the same steps.
"""
BLOCK = 4
"""Rows of M that the CPU's kernels compute together: the scratch they need in the backward pass fits in the cache."""


class HadamardInputs(NamedTuple):
    """
    C_t = 1 + tanh(theta_t ⊗ vc_t), U_t = v_t ⊗ k_t, h_t = M_t q_t: the Hadamard memory framework (paper, section 3.1) with the
    calibration of section 3.3. All of them (N, T, H), of one dtype on one device.
    """

    theta: th.Tensor  # calibration rows
    vc: th.Tensor  # calibration columns
    v: th.Tensor  # values, the update gate included
    k: th.Tensor  # keys
    q: th.Tensor  # queries

    def calibration(self) -> th.Tensor:
        """
        :return: C_t, (N, T, H, H)
        """
        return 1 + th.tanh(self.theta.unsqueeze(-1) * self.vc.unsqueeze(-2))

    def log_calibration(self) -> th.Tensor:
        """
        :return: log C_t, (N, T, H, H), also where C_t itself would be 0
        """
        return log_one_plus_tanh(self.theta.unsqueeze(-1) * self.vc.unsqueeze(-2))

    def update(self) -> th.Tensor:
        """
        :return: U_t, (N, T, H, H)
        """
        return self.v.unsqueeze(-1) * self.k.unsqueeze(-2)


def log_one_plus_tanh(z: th.Tensor) -> th.Tensor:
    """
    :param z: numbers
    :return: log(1 + tanh z) = log(2 σ(2 z)), which does not overflow
    """
    return F.logsigmoid(2 * z) + math.log(2)
