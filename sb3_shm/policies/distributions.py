"""Distributions of actions, made for the many steps of a rollout."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution
from torch.distributions import Categorical
from torch.nn import functional as F

from sb3_shm.training.masks import mask_sizes


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


def mask_logits(logits: th.Tensor, action_masks: th.Tensor, space: spaces.Space[Any]) -> list[th.Tensor]:
    """
    :param logits: what a policy's last layer puts out, (N, outputs)
    :param action_masks: which options are legal, (N, options) bool, at least one of each choice, see
        :func:`~sb3_shm.training.masks.mask_sizes`
    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: for each choice the logits of its options, (N, n), -inf where illegal
    """
    if isinstance(space, spaces.MultiBinary):  # sigmoid(z), the probability of 1, is the softmax of 0 and z
        logits = th.stack((th.zeros_like(logits), logits), dim=-1).flatten(1)
    return list(logits.masked_fill(~action_masks, -math.inf).split(mask_sizes(space), dim=-1))


def masked_distribution(logits: th.Tensor, action_masks: th.Tensor, space: spaces.Space[Any]) -> Distribution:
    """
    The distribution over the legal actions alone: their probabilities sum to 1, the others' are 0 and have no gradient.

    :param logits: see :func:`mask_logits`
    :param action_masks: see :func:`mask_logits`
    :param space: see :func:`mask_logits`
    :return: the distribution; actions are whole numbers, for MultiBinary, too
    """
    parts = [QuickCategorical(part) for part in mask_logits(logits, action_masks, space)]
    distribution: Any
    if isinstance(space, spaces.Discrete):
        distribution = CategoricalDistribution(int(space.n))
        distribution.distribution = parts[0]
    else:
        distribution = MultiCategoricalDistribution(mask_sizes(space))
        distribution.distribution = parts
    return distribution  # type: ignore[no-any-return]
