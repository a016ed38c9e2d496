"""Resets of the training environments of which the algorithm was not told."""

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, is_vecenv_wrapped

from sb3_shm.training.gymnasium_vectors import GymnasiumVecEnv


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
    wrappers: at the VecEnv, at Gymnasium's VectorEnv if it is made of one, and, as far as they are in this process
    (DummyVecEnv, SyncVectorEnv), at each one in it.

    :param env: training environments
    """

    def __init__(self, env: VecEnv) -> None:
        base = env.unwrapped
        self.env = env
        self.has_warned = False
        self._overwrites = is_vecenv_wrapped(env, VecFrameStack)
        self._resets: list[CountedReset] = []
        vectors: list[Any] = [base, base.env.unwrapped] if isinstance(base, GymnasiumVecEnv) else [base]
        # Others' VectorEnvs may mean something else by envs
        singles = vectors[-1].envs if isinstance(vectors[-1], DummyVecEnv | SyncVectorEnv) else ()
        for part in (*vectors, *(one.unwrapped for one in singles)):
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


class WatchesResets(BaseAlgorithm):
    """An algorithm that begins new episodes where others have reset its training environments."""

    _reset_watch: ResetWatch | None = None

    def _watch_resets(self) -> ResetWatch:
        """
        :return: the watch over the environments that the algorithm has now
        """
        assert self.env is not None
        if self._reset_watch is None or self._reset_watch.env is not self.env:
            self._reset_watch = ResetWatch(self.env)
        return self._reset_watch

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm._setup_learn`."""
        watch = self._watch_resets()
        resets = reset_num_timesteps or self._last_obs is None
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resets:
            watch.see()
        return setup

    def _begin_anew(self) -> None:
        """Begin new episodes in all training environments, and say once why."""
        watch = self._watch_resets()
        if not watch.has_warned:
            watch.has_warned = True
            warnings.warn(
                f"The training environments were reset while {type(self).__name__} was in the middle of an episode there: by "
                "env.reset(), or by evaluate_policy or an EvalCallback in the same environments. These episodes are taken as "
                "cut off, and new ones begin, with an empty memory. Evaluate in environments of their own.",
                stacklevel=2,
            )
        assert self.env is not None
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()
        watch.see()
