"""Action masks: which actions are legal now, as sb3-contrib's MaskablePPO asks its environments for it."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv


def mask_sizes(space: spaces.Space[Any]) -> list[int]:
    """
    :param space: action space
    :return: the numbers of options among which an action chooses, one after the other in a mask: [n] if it is Discrete, those
        of each dimension of MultiDiscrete, and two, "0" and "1", for each of MultiBinary
    :raises ValueError: actions of another kind
    """
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec]
        case spaces.MultiBinary():
            return [2] * int(space.shape[0])
    raise ValueError(
        f"Action masks need Discrete, MultiDiscrete or MultiBinary actions, got {space}: rename the environment's "
        "action_masks(), or leave it unused by learn(..., use_masking=False)"
    )


def check_masks(masks: Any, space: spaces.Space[Any], n_envs: int, step: int | None = None) -> np.ndarray:
    """
    :param masks: one mask per environment, each of as many bool as the action space has options (see :func:`mask_sizes`)
    :param space: action space
    :param n_envs: number of environments
    :param step: number of the environments' step, for the message, if they are counted
    :return: (n_envs, options) bool
    :raises ValueError: masks of another shape or with numbers other than 0 and 1, or one that leaves no action
    """
    sizes = mask_sizes(space)
    when = "" if step is None else f" at its step {step}"
    rows = [np.asarray(mask) for mask in masks]
    if len(rows) != n_envs:
        raise ValueError(f"There must be one action mask for each of {n_envs} observation(s), got {len(rows)}")
    for i, row in enumerate(rows):
        if row.size != sum(sizes) or row.ndim == 0:
            raise ValueError(
                f"The action mask of environment {i}{when} must be {sum(sizes)} bool, one for each option of {space}, got "
                f"the shape {row.shape}"
            )
        if row.dtype != bool and not np.isin(row, (0, 1)).all():
            raise ValueError(f"The action mask of environment {i}{when} must be of bool, got {row}")
    legal: np.ndarray = np.stack([row.reshape(-1).astype(bool) for row in rows])
    has_option = np.logical_or.reduceat(legal, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not has_option.all():
        i, part = np.argwhere(~has_option)[0].tolist()
        raise ValueError(
            f"The action mask of environment {i}{when} leaves no legal action"
            + (f" in dimension {part}" if len(sizes) > 1 else "")
            + ": keep at least one, for example an action that does nothing, or end the episode"
        )
    return legal


class ReadsMasks(BaseAlgorithm):
    """An algorithm that asks its environments for ``action_masks()``, if they have it."""

    _use_masking = True
    _has_masks = False

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm._setup_learn`."""
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self.env is not None
        try:
            self._has_masks = self._use_masking and self.env.has_attr("action_masks")
        except NotImplementedError:  # a VecEnv that tells nothing of what is in it
            self._has_masks = False
        if self._has_masks:
            mask_sizes(self.action_space)
        return setup

    def _ask_masks(self, env: VecEnv) -> dict[str, np.ndarray]:
        """
        :param env: training environments
        :return: ``action_masks``, (n_envs, options) bool, for the observations that were seen last; nothing without masks
        :raises ValueError: see :func:`check_masks`
        """
        if not self._has_masks:
            return {}
        step = self.num_timesteps // env.num_envs
        return {"action_masks": check_masks(env.env_method("action_masks"), self.action_space, env.num_envs, step)}

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Any]:
        """See :meth:`sb3_shm.policies.stateful.StatefulPolicy.predict`."""
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        policy: Any = self.policy
        return policy.predict(observation, state, episode_start, deterministic, action_masks)  # type: ignore[no-any-return]
