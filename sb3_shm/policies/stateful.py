"""What policies with a memory share, whatever trains them."""

import warnings
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device

from sb3_shm.memory.base import State, map_state, state_tensors
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.training.masks import check_masks
from sb3_shm.training.old_models import drop_gone
from sb3_shm.training.steps import check_finite, check_keys, check_range

_FORGETS_AFTER = 3
"""Calls of ``predict`` in a row without a state, after which it is said that each forgets the one before."""

SelfStatefulPolicy = TypeVar("SelfStatefulPolicy", bound="StatefulPolicy")


class StatefulPolicy(BasePolicy):
    """A policy whose ``predict`` takes and returns the state of a memory."""

    pi_trunk: MemoryTrunk
    """The memory that acts."""
    _calls_without_state = 0

    @classmethod
    def load(cls: type[SelfStatefulPolicy], path: str, device: th.device | str = "auto") -> SelfStatefulPolicy:
        """
        See :meth:`stable_baselines3.common.policies.BaseModel.load`. Arguments that no longer exist are dropped.

        :param path: file that ``policy.save`` wrote
        :param device: "auto", "cpu", "cuda", ...
        :return: the policy
        """
        device = get_device(device)
        saved = th.load(path, map_location=device, weights_only=False)
        policy = cls(**drop_gone(saved["data"]))
        policy.load_state_dict(saved["state_dict"])
        return policy.to(device)

    def _predict(  # type: ignore[override]
        self,
        observation: Any,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State]:
        """
        :param observation: observations, (n_envs, ...)
        :param state: state of ``pi_trunk`` before the step
        :param episode_starts: (n_envs,) bool
        :param deterministic: the most likely actions, and the memory draws nothing at random
        :param action_masks: which options are legal, (n_envs, options) bool; not given for all
        :return: actions, (n_envs, ...), and the state after the step
        """
        raise NotImplementedError

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """
        Choose actions, and carry the memory from call to call: ``action, state = predict(obs, state, episode_start)``.

        :param observation: observation, of one environment or of several
        :param state: what the previous call returned; None at the beginning, which means an empty memory
        :param episode_start: (n_envs,) bool, true where the observation is the first of an episode; None for nowhere
        :param deterministic: the most likely actions, and nothing in the memory is drawn at random
        :param action_masks: which options are legal, one mask of bool per observation, as the environment's
            ``action_masks()`` gives it: of Discrete actions all, of MultiDiscrete those of each dimension one after the other,
            of MultiBinary "0" and "1" of each; None for all
        :return: actions, and the state after this step: an opaque tuple, to be given back in the next call
        :raises ValueError: a state or an episode_start that does not fit the number of observations or the memory, or an
            observation that is not finite, of other keys or out of the range of its space, or a state with NaN, or a mask of
            another shape or that leaves no action
        """
        self.set_training_mode(False)
        forgets = state is None and not np.any(False if episode_start is None else episode_start)
        self._calls_without_state = self._calls_without_state + 1 if forgets else 0
        if self._calls_without_state == _FORGETS_AFTER:
            warnings.warn(
                f"{_FORGETS_AFTER} calls of predict() in a row had neither a state nor an episode's start, and each forgot "
                "the one before: write action, state = model.predict(obs, state, episode_start), or take "
                "StatefulPredictor(model). If each observation is the first of an episode, "
                "episode_start=[True] (one per environment) says so",
                stacklevel=3,
            )
        if isinstance(observation, tuple):
            raise ValueError(
                "The observation is a tuple: `obs, info = env.reset()` is gymnasium's form, `obs = vec_env.reset()` is SB3's"
            )
        check_keys("observation", observation, self.observation_space)
        obs, vectorized = self.obs_to_tensor(observation)
        check_finite("observation", observation, has_rows=vectorized)
        check_range("observation", observation, self.observation_space, has_rows=vectorized)
        n = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
        masks = {}
        if action_masks is not None:
            rows = check_masks(action_masks if vectorized else [action_masks], self.action_space, n)
            masks = {"action_masks": th.as_tensor(rows, device=self.device)}
        state = self.pi_trunk.initial_state(n) if state is None else self._check_state(state, n)
        if episode_start is None:
            episode_start = np.zeros(n, dtype=bool)
        starts = th.as_tensor(np.atleast_1d(episode_start), dtype=th.bool, device=self.device)
        if starts.shape != (n,):
            raise ValueError(f"episode_start must have the shape ({n},) for {n} observation(s), got {tuple(starts.shape)}")
        with th.no_grad():
            tensor, state = self._predict(obs, state, starts, deterministic, **masks)
        actions: np.ndarray = tensor.cpu().numpy().reshape((-1, *self.action_space.shape))  # type: ignore[misc, arg-type]
        if isinstance(self.action_space, spaces.Box):
            # A Gaussian has no bounds, the environment has
            low, high = self.action_space.low, self.action_space.high
            actions = self.unscale_action(actions) if self.squash_output else np.clip(actions, low, high)
        return actions if vectorized else actions.squeeze(axis=0), state

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        :param scaled_action: Box actions between -1 and 1
        :return: the same between the bounds of the action space, which SB3's own formula may miss by a rounding
        """
        assert isinstance(self.action_space, spaces.Box)
        action: np.ndarray = super().unscale_action(scaled_action)
        return action.clip(self.action_space.low, self.action_space.high)

    def _check_state(self, state: Any, n: int) -> State:
        """
        :param state: what a user passed as the policy trunk's state: tensors or arrays
        :param n: number of observations
        :return: the state as tensors on the policy's device
        """
        expected = self.pi_trunk.initial_state(1)  # for structure, types and shapes: one row is enough
        try:
            tensors: State = map_state(lambda e, s: th.as_tensor(s, dtype=e.dtype, device=e.device), expected, state)
        except (TypeError, ValueError):
            tensors = ()
        shapes = [(n, *tensor.shape[1:]) for tensor in state_tensors(expected)]
        if (got := [tuple(tensor.shape) for tensor in state_tensors(tensors)]) != shapes:
            raise ValueError(
                f"The state must be what predict() returned for {n} observation(s), "
                f"tensors of the shapes {shapes}, got {got or type(state).__name__}"
            )
        # A sum is NaN if one of its terms is, or else it is worth the closer look
        if any(tensor.sum().isnan() and tensor.isnan().any() for tensor in state_tensors(tensors)):
            raise ValueError("The state must be what predict() returned, it holds NaN")
        return tensors
