"""Entries of the observation that the agent does not see, which makes many a task one for a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_shm.envs.wrappers.picklable import PicklableVecEnvWrapper


def _hide(space: spaces.Space[Any], hidden: Any) -> tuple[spaces.Space[Any], Callable[[Any, bool], Any]]:
    """
    :param space: observation space
    :param hidden: see :class:`HideEntries`
    :return: the space that is left, and what makes an observation of it (the second argument says whether it is many)
    :raises ValueError: entries that are not there, all of them or none, or another space
    """
    if isinstance(space, spaces.Dict):
        keys = [hidden] if isinstance(hidden, str) else list(hidden) if isinstance(hidden, Iterable) else [hidden]
        left = {key: part for key, part in space.spaces.items() if key not in keys}
        if not keys or not left or len(left) != len(space.spaces) - len(keys):
            raise ValueError(f"hidden must be some, not all, of the keys {', '.join(space.spaces)}, each once, got {hidden!r}")
        return spaces.Dict(left), partial(_left_of_dict, list(left))
    if not isinstance(space, spaces.Box):
        raise ValueError(f"Entries can be hidden of a Box or a Dict, got {space}")
    size = spaces.flatdim(space)
    if not isinstance(hidden, slice):
        hidden = np.asarray(hidden)
        is_mask = hidden.dtype == bool
        is_right = hidden.shape in (space.shape, (size,)) if is_mask else hidden.dtype.kind in "iu" and hidden.ndim == 1
        if not is_right or (not is_mask and len(hidden) and not (-size <= hidden.min() and hidden.max() < size)):
            raise ValueError(
                f"hidden must be a list of numbers from 0 to {size - 1}, a slice, or a mask of the shape {space.shape}, got "
                f"{hidden!r}"
            )
        hidden = hidden.ravel()
    keep = np.ones(size, dtype=bool)
    keep[hidden] = False
    if keep.all() or not keep.any():
        raise ValueError(f"hidden must be some, not all, of the {size} entries, got {hidden!r}")
    rest: Any = spaces.Box(space.low.ravel()[keep], space.high.ravel()[keep], dtype=space.dtype)
    return rest, partial(_left_of_box, keep)


def _left_of_dict(keys: list[str], obs: Any, is_many: bool) -> Any:
    return {key: obs[key] for key in keys}


def _left_of_box(keep: np.ndarray, obs: Any, is_many: bool) -> np.ndarray:
    return obs.reshape(len(obs), -1)[:, keep] if is_many else np.asarray(obs).ravel()[keep]  # type: ignore[no-any-return]


class HideEntries(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """
    Leaves entries of the observation out (they are not set to zero). For Stable-Baselines3: ``make_vec_env("CartPole-v1",
    wrapper_class=HideEntries, wrapper_kwargs=dict(hidden=[1, 3]))`` is CartPole without velocities.

    :param env: an environment with Box or Dict observations
    :param hidden: of a Box the entries as if it was flat: a list of numbers (-1 is the last), a slice, or a mask that is true
        where an entry is hidden; what is left is a flat Box. Of a Dict a key or a list of keys.
    :raises ValueError: entries that are not there, all of them or none, or another space
    """

    def __init__(self, env: gym.Env[Any, Any], hidden: Any) -> None:
        RecordConstructorArgs.__init__(self, hidden=hidden)
        super().__init__(env)
        self.observation_space, self._left = _hide(env.observation_space, hidden)

    def observation(self, observation: Any) -> Any:
        """
        :param observation: of the environment
        :return: what is left of it
        """
        return self._left(observation, False)


class VecHideEntries(PicklableVecEnvWrapper):
    """
    :class:`HideEntries` for vector environments, batched ones included; the last observations of episodes, in
    ``infos[i]["terminal_observation"]``, lack the same entries.

    :param venv: a vector environment with Box or Dict observations
    :param hidden: see :class:`HideEntries`
    :raises ValueError: entries that are not there, all of them or none, or another space
    """

    def __init__(self, venv: VecEnv, hidden: Any) -> None:
        space, self._left = _hide(venv.observation_space, hidden)
        super().__init__(venv, observation_space=space)

    def reset(self) -> VecEnvObs:
        """
        :return: what is left of the first observations
        """
        left: VecEnvObs = self._left(self.venv.reset(), True)
        return left

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: what is left of the observations, rewards (N,), dones (N,), infos
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            if "terminal_observation" in infos[i]:
                infos[i]["terminal_observation"] = self._left(infos[i]["terminal_observation"], False)
        return self._left(observations, True), rewards, dones, infos
