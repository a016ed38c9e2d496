"""Whole sequences of observations, as losses read them."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape


def flatten_sequences(space: spaces.Space[Any], obs: Any, episode_starts: th.Tensor | None = None) -> tuple[Any, th.Tensor]:
    """
    :param space: observation space
    :param obs: N sequences of T observations, (N, T, ...) or a dict of such
    :param episode_starts: (N, T) bool; None if each sequence is an episode from its first step on
    :return: the observations, (N T, ...), and where episodes start
    :raises ValueError: observations of another form
    """
    parts = obs if isinstance(obs, dict) else {"": obs}
    if episode_starts is None:
        for key, part in parts.items():
            of_part: Any = space[key] if isinstance(space, spaces.Dict) else space
            shape = tuple(of_part.shape)
            # SB3 keeps the numbers of Discrete spaces in arrays of one entry
            if part.shape[2:] not in (shape, get_obs_shape(of_part)) or part.ndim < 2:
                wanted = ", ".join(map(str, ("N", "T", *shape)))
                raise ValueError(
                    f"Without a state, observations{f' {key!r}' if key else ''} are N episodes of T steps from their first "
                    f"steps on, ({wanted}): obs[None] for one episode of (T, ...); got {tuple(part.shape)}. For single steps "
                    "give state and episode_starts"
                )
        first = next(iter(parts.values()))
        episode_starts = th.zeros(first.shape[:2], dtype=th.bool, device=first.device)
        episode_starts[:, :1] = True
    flat = {key: part.flatten(0, 1) for key, part in parts.items()}
    return flat if isinstance(obs, dict) else flat[""], episode_starts
