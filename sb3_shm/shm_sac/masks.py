"""What a tape needs of action masks beyond a rollout: that of each next observation, an episode's last one included."""

import warnings
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.training.gymnasium_vectors import GymnasiumVecEnv
from sb3_shm.training.masks import ReadsMasks, check_masks
from sb3_shm.training.resets import WatchesResets

EnvType = TypeVar("EnvType", bound=gym.Env[Any, Any])


class TellsLastMask:
    """
    An environment's ``step`` that puts the mask of the observation at which time ran out into its info, as
    ``terminal_action_masks``: a vector environment begins the next episode before it can be asked. It stands in the
    environment's own ``__dict__``, and copies and pickles with it.

    :param env: an environment with ``action_masks()``
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.__wrapped__ = env.step  # inspect.signature follows it

    def __call__(self, action: Any) -> Any:
        """
        :param action: an action
        :return: what the environment's own ``step`` returns
        """
        result = self.__wrapped__(action)
        _, _, terminated, truncated, info = result
        if truncated and not terminated:
            info["terminal_action_masks"] = np.array(self.env.get_wrapper_attr("action_masks")())
        return result


def tell_last_mask(env: EnvType) -> EnvType:
    """
    For environments in processes of their own, of which SHMSAC could not know the mask of an episode's last observation. The
    others are told by SHMSAC itself::

        make_vec_env(make, 8, vec_env_cls=SubprocVecEnv, wrapper_class=tell_last_mask)

    :param env: an environment with ``action_masks()``
    :return: the same; where time runs out its info holds ``terminal_action_masks``
    """
    if not isinstance(env.step, TellsLastMask):  # several models may train in the same environments
        env.step = TellsLastMask(env)  # type: ignore[method-assign]
    return env


def tell_last_masks(env: VecEnv) -> None:
    """
    :param env: environments that have masks; those in this process will tell their last ones
    """
    base: Any = env.unwrapped
    if isinstance(base, GymnasiumVecEnv):
        base.tells_last_masks = True
        base = base.env.unwrapped
    for one in getattr(base, "envs", ()):
        tell_last_mask(one)


def draw_legal(space: spaces.Space[Any], mask: np.ndarray | None) -> Any:
    """
    :param space: Discrete
    :param mask: which actions are legal, (n,) bool, None for all
    :return: one of these, all alike, by the space's generator
    """
    return space.sample() if mask is None else space.sample(mask.astype(np.int8))


class KeepsMasks(WatchesResets, ReadsMasks):
    """An algorithm that asks for masks once per step and keeps them with what was seen before and after it."""

    _last_masks: dict[str, np.ndarray] | None = None
    """``action_masks`` of the observations that were seen last, empty without masks; None if not asked for yet."""
    _has_missed_masks = False

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm._setup_learn`."""
        setup = super()._setup_learn(*args, **kwargs)
        self._last_masks = None
        if self._has_masks:
            assert self.env is not None
            tell_last_masks(self.env)
        return setup

    def _begin_anew(self) -> None:
        """See :meth:`sb3_shm.training.resets.WatchesResets._begin_anew`."""
        super()._begin_anew()
        self._last_masks = None

    def _present_masks(self) -> dict[str, np.ndarray]:
        """
        :return: ``action_masks`` of the observations that were seen last, (n_envs, n) bool; nothing without masks
        """
        if self._last_masks is None:
            assert self.env is not None
            self._last_masks = self._ask_masks(self.env)
        return self._last_masks

    def _masks_of_step(
        self, new_masks: dict[str, np.ndarray] | None, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> dict[str, np.ndarray]:
        """
        :param new_masks: masks of the observations after a step: where an episode ended, of the next one's first
        :param dones: (n_envs,) bool
        :param infos: one per environment; ``terminal_action_masks`` in it is the mask of an episode's last observation. What
            is not told is taken to be as before the last step, and that is said once.
        :return: ``action_masks`` before the step and ``next_action_masks``, of an episode's last observation where one
            ended, (n_envs, n) bool each; nothing without masks
        :raises ValueError: time ran out where no action is legal
        """
        if not new_masks or not self._last_masks:
            return {}
        before, after = self._last_masks["action_masks"], new_masks["action_masks"].copy()
        after[dones] = before[dones]  # a real end has no value, whatever is legal there
        for i in np.flatnonzero(dones).tolist():
            if not infos[i].get("TimeLimit.truncated", False):
                continue
            if "terminal_action_masks" in infos[i]:
                told = [*after[:i], infos[i]["terminal_action_masks"], *after[i + 1 :]]
                after = check_masks(told, self.action_space, len(after), self.num_timesteps // len(after))
            elif not self._has_missed_masks:
                self._has_missed_masks = True
                warnings.warn(
                    f"Time ran out in environment {i}, and its last action mask was not told: it is taken to be as one step "
                    "before. Put the environments into it: make_vec_env(..., wrapper_class=sb3_shm.tell_last_mask)",
                    stacklevel=2,
                )
        return {"action_masks": before, "next_action_masks": after}
