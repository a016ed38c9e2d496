"""What the Q functions learn."""

import math

import torch as th


def n_step_targets(
    rewards: th.Tensor, terminals: th.Tensor, next_values: th.Tensor, mask: th.Tensor, gamma: float, n_steps: int = 1
) -> th.Tensor:
    """
    Discounted sums of ``n_steps`` rewards and the value of the observation behind them::

        G_t = r_t + gamma * r_{t+1} + ... + gamma^n * V_{t+n}

    An end of the task cuts the sum off; where time ran out, or the sequence ends, it is bootstrapped there. No correction for
    the actions between being an older policy's (as in SB3).

    :param rewards: (N, T)
    :param terminals: 1 where the task ended with the step, else 0, (N, T)
    :param next_values: V_{t+1}, of the observation after each step, (N, T)
    :param mask: where a row of the tape is a transition, (N, T) bool
    :param gamma: discount factor
    :param n_steps: n, 1 or more
    :return: G, (N, T)
    """
    goes_on = (1 - terminals) * gamma
    targets = rewards + goes_on * next_values
    for _ in range(n_steps - 1):
        later = th.where(mask[:, 1:], targets[:, 1:], next_values[:, :-1])
        targets = rewards + goes_on * th.cat((later, next_values[:, -1:]), dim=1)
    return targets


def reachable_entropy(target_entropy: float, action_masks: th.Tensor | None) -> th.Tensor | float:
    """
    The entropy that the coefficient is learned for where not all of n actions are legal: the same part of the greatest that
    there is, log(k) with k legal actions, as ``target_entropy`` is of log(n). Unscaled, a target above log(k) could never be
    reached: the coefficient would rise for good; and a step that leaves no choice asks for nothing.

    :param target_entropy: with all n actions legal
    :param action_masks: (..., n) bool, None for all legal
    :return: the target of each step, (...), or the same for all
    """
    if action_masks is None:
        return target_entropy
    return target_entropy * action_masks.sum(dim=-1).log() / math.log(max(action_masks.shape[-1], 2))
