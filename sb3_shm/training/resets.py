"""Resets of the training environments of which the algorithm was not told."""

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, is_vecenv_wrapped


class CountedReset:
    """
    An environment's ``reset`` that tells who asks for it how often it was called. It stands in the environment's own
    ``__dict__``, so that nobody can reset the environment past it, and copies and pickles with it.

    :param reset: the environment's bound method
    """

    def __init__(self, reset: Any) -> None:
        self.__wrapped__ = reset  # inspect.signature follows it
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """
        :return: what the environment's own ``reset`` returns
        """
        self.count += 1
        return self.__wrapped__(*args, **kwargs)


class ResetWatch:
    """
    Notices that training environments were reset by others than the algorithm that trains in them: by hand, or by
    ``evaluate_policy`` or an ``EvalCallback`` that was given the same environments. It looks at the environments beneath all
    wrappers: at the VecEnv and, as far as they are in this process (DummyVecEnv), at each one in it.

    :param env: training environments
    """

    def __init__(self, env: VecEnv) -> None:
        base = env.unwrapped
        self.env = env
        self.has_warned = False
        self._overwrites = is_vecenv_wrapped(env, VecFrameStack)
        self._resets: list[CountedReset] = []
        for part in (base, *(one.unwrapped for one in getattr(base, "envs", ()))):
            reset: Any = part.reset
            if not isinstance(reset, CountedReset):  # several models may train in the same environments
                part.reset = reset = CountedReset(reset)
            self._resets.append(reset)
        self.see()

    def _count(self) -> int:
        return sum([reset.count for reset in self._resets])

    def see(self) -> None:
        """Say that the resets so far are the algorithm's own."""
        self._seen = self._count()

    def keep(self, obs: Any) -> Any:
        """
        :param obs: observations that a step returned
        :return: the same, in arrays that a reset leaves alone: VecFrameStack's overwrites those that it returned last
        """
        return deepcopy(obs) if self._overwrites else obs

    def has_missed(self) -> bool:
        """
        :return: whether there were resets since the last :meth:`see`
        """
        return self._count() != self._seen


def watch(model: BaseAlgorithm, watch: ResetWatch | None) -> ResetWatch:
    """
    :param model: has its environments
    :param watch: over the environments that it had, None for none
    :return: a watch over the environments that it has, the same if they are the same
    """
    assert model.env is not None
    return watch if watch is not None and watch.env is model.env else ResetWatch(model.env)


def cut_off(obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """
    :param obs: observations after a step, (n_envs, ...) or a dict of them
    :param dones: (n_envs,) bool
    :param infos: one per environment
    :return: the same of a step at which time was up for the episodes that it did not end
    """
    infos = [
        info
        if done
        else {
            **info,
            "TimeLimit.truncated": True,
            "terminal_observation": {key: o[i] for key, o in obs.items()} if isinstance(obs, dict) else obs[i],
        }
        for i, (done, info) in enumerate(zip(dones, infos, strict=True))
    ]
    return np.ones_like(dones), infos


def begin_anew(model: BaseAlgorithm, watch: ResetWatch) -> None:
    """
    Begin new episodes in all training environments, and say once why.

    :param model: its last observations and episode starts are replaced
    :param watch: over its environments
    """
    if not watch.has_warned:
        watch.has_warned = True
        warnings.warn(
            f"The training environments were reset while {type(model).__name__} was in the middle of an episode there: by "
            "env.reset(), or by evaluate_policy or an EvalCallback in the same environments. These episodes are taken as cut "
            "off, and new ones begin, with an empty memory. Evaluate in environments of their own.",
            stacklevel=2,
        )
    assert model.env is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    watch.see()
