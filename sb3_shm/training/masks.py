"""Action masks: which actions are legal now, as sb3-contrib's MaskablePPO asks its environments for it."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
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
    try:
        legal = np.asarray(masks)
    except ValueError:  # of several lengths
        legal = np.empty(0)
    if legal.dtype != bool or legal.shape[:1] != (n_envs,) or legal.size != n_envs * sum(sizes):
        legal = _look_closer(masks, space, n_envs, step)
    legal = legal.reshape(n_envs, -1)
    has_option = legal.any(axis=1) if len(sizes) == 1 else np.logical_or.reduceat(legal, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not has_option.all():
        i, part = np.argwhere(~has_option.reshape(n_envs, -1))[0].tolist()
        raise ValueError(
            f"The action mask of environment {i}{_when(step)} leaves no legal action"
            + (f" in dimension {part}" if len(sizes) > 1 else "")
            + ": keep at least one, for example an action that does nothing, or end the episode"
        )
    return legal


def _look_closer(masks: Any, space: spaces.Space[Any], n_envs: int, step: int | None) -> np.ndarray:
    """The same as :func:`check_masks`, environment by environment: which one is wrong, or 0 and 1 as bool."""
    n = sum(mask_sizes(space))
    rows = [np.asarray(mask) for mask in (masks if np.iterable(masks) else [masks])]
    if len(rows) != n_envs:
        raise ValueError(f"There must be one action mask for each of {n_envs} observation(s), got {len(rows)}")
    for i, row in enumerate(rows):
        if row.size != n or row.ndim == 0:
            raise ValueError(
                f"The action mask of environment {i}{_when(step)} must be {n} bool, one for each option of {space}, got "
                f"the shape {row.shape}"
            )
        if row.dtype != bool and not np.isin(row, (0, 1)).all():
            raise ValueError(f"The action mask of environment {i}{_when(step)} must be of bool, got {row}")
    return np.stack([row.reshape(-1).astype(bool) for row in rows])


def _when(step: int | None) -> str:
    return "" if step is None else f" at its step {step}"


def has_masks(env: VecEnv, name: str = "action_masks") -> bool:
    """
    :param env: environments
    :param name: of their method
    :return: whether they can be asked for it
    """
    try:
        return env.has_attr(name)
    except NotImplementedError:  # a VecEnv that tells nothing of what is in it
        return False


def masks_of(env: VecEnv | gym.Env[Any, Any]) -> Callable[[], dict[str, Any]]:
    """
    :param env: environments, or one
    :return: what returns ``action_masks`` of the present observations, to be given to ``predict``; nothing without masks,
        or with Box actions
    """
    if isinstance(env.action_space, spaces.Box):
        return dict
    ask: Callable[[], Any]
    if isinstance(env, VecEnv):
        has, ask = has_masks(env), partial(env.env_method, "action_masks")
    elif has := env.has_wrapper_attr("action_masks"):
        of_one = env.get_wrapper_attr("action_masks")
        ask = lambda: [of_one()]  # noqa: E731  # as that of a vector of one environment, which evaluate_policy makes of it
    return (lambda: {"action_masks": ask()}) if has else dict


class WithMasks:
    """
    A model for callers that pass no masks, such as Stable-Baselines3's ``evaluate_policy``: the environments that it acts in
    are asked for them at each call, if they have any::

        evaluate_policy(WithMasks(model, env), env)

    :param model: an SHMPPO or SHMSAC
    :param env: the environments whose observations it will be given
    """

    def __init__(self, model: BaseAlgorithm, env: VecEnv | gym.Env[Any, Any]) -> None:
        self.model: Any = model
        self._masks = masks_of(env)

    def predict(
        self, observation: Any, state: Any = None, episode_start: np.ndarray | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """See :meth:`sb3_shm.policies.stateful.StatefulPolicy.predict`."""
        return self.model.predict(observation, state, episode_start, deterministic, **self._masks())  # type: ignore[no-any-return]


class ReadsMasks(BaseAlgorithm):
    """An algorithm that asks its environments for ``action_masks()``, if they have it."""

    _use_masking = True
    _has_masks = False
    """Whether it has learned with masks, in the environments that it learned in last."""
    _has_looked_for_masks = False
    _dropped: tuple[int, Any] | None = None
    """Number of environments and state that the last ``predict`` returned to a caller who does not give it back."""

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm._setup_learn`."""
        setup = super()._setup_learn(*args, **kwargs)
        assert self.env is not None
        self._has_masks = self._use_masking and has_masks(self.env)
        if self._has_masks:
            mask_sizes(self.action_space)
        elif self._use_masking and has_masks(self.env, "action_mask"):
            warnings.warn(
                "The environment has action_mask, which is not read: name it action_masks, as sb3-contrib's MaskablePPO does",
                stacklevel=4,
            )
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
        """
        See :meth:`sb3_shm.policies.stateful.StatefulPolicy.predict`.

        sb3-contrib's maskable ``evaluate_policy`` and ``MaskableEvalCallback`` drop the state, and only their calls tell them
        from others: with ``action_masks`` and ``episode_start``, without a state. In a run of such calls, the first of which
        begins an episode everywhere, each goes on from what the one before returned.
        """
        if action_masks is None:
            if not self._has_looked_for_masks:
                self._has_looked_for_masks = True
                self._warn_of_masks()
            self._dropped = None
            return super().predict(observation, state, episode_start, deterministic)
        n, begins, goes_on = 0, False, False
        if state is None and episode_start is not None:
            n, begins = np.size(episode_start), bool(np.all(episode_start))
            if not begins and self._dropped is not None and self._dropped[0] == n:
                goes_on, state = True, self._dropped[1]
        policy: Any = self.policy
        actions, state = policy.predict(observation, state, episode_start, deterministic, action_masks)
        self._dropped = (n, state) if begins or goes_on else None
        return actions, state

    def _warn_of_masks(self) -> None:
        """Say that ``predict`` was called without masks, if there are any to pass."""
        env = self.env if self._use_masking and not isinstance(self.action_space, spaces.Box) else None
        if self._has_masks or (env is not None and has_masks(env)):
            warnings.warn(
                "predict() got no action masks, but the training environments have them: it may choose illegal actions. SB3's "
                "EvalCallback and evaluate_policy pass none: take sb3-contrib's MaskableEvalCallback and maskable "
                "evaluate_policy, or evaluate_policy(WithMasks(model, env), env), with sb3_shm.WithMasks. By hand it is "
                "predict(..., action_masks=...)",
                stacklevel=3,
            )
