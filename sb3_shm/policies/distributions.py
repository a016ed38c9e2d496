"""Distributions of actions, made for the many steps of a rollout."""

import math
from typing import Any

import torch as th
from torch.distributions import Categorical
from torch.nn import functional as F


class QuickCategorical(Categorical):
    """
    torch's Categorical in few operations, because each step of a rollout samples: of what torch checks nothing is checked here
    (the losses are, for NaN), and the entropy needs no clamp, whose gradient is slow.

    :param logits: unnormalised log probabilities, (N, n); -inf for what must not be drawn, but not everywhere in a row
    """

    def __init__(self, logits: th.Tensor) -> None:
        self._param = self.logits = F.log_softmax(logits, dim=-1)
        self._num_events = logits.shape[-1]
        super(Categorical, self).__init__(logits.shape[:-1], validate_args=False)

    def sample(self, sample_shape: Any = th.Size()) -> th.Tensor:  # noqa: B008  # torch's signature
        """
        :param sample_shape: shape of independent samples for each row
        :return: numbers, (*sample_shape, N)
        """
        # The largest of logits plus Gumbel noise is a sample
        noise = self.logits.new_empty((*sample_shape, *self.logits.shape)).exponential_().log()
        return (self.logits.detach() - noise).argmax(dim=-1)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        :param value: numbers, (N,)
        :return: their log probabilities, (N,)
        """
        return self.logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> th.Tensor:
        """
        :return: (N,)
        """
        # 0 where the probability is 0, whose logarithm is -inf; and so is the gradient
        return -(self.logits.exp() * self.logits.masked_fill(self.logits == -math.inf, 0)).sum(dim=-1)
