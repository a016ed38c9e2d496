"""Previous action, previous reward and a flag for the first step beside the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_shm.envs.batched import Array
from sb3_shm.envs.wrappers.joining import Flattener, Joiner
from sb3_shm.envs.wrappers.picklable import PicklableVecEnvWrapper


class _Inputs(Joiner):
    """The rows of MemoryInputs and VecMemoryInputs."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        previous_action: bool,
        previous_reward: bool,
        first_step: bool,
    ) -> None:
        if not (previous_action or previous_reward or first_step):
            raise ValueError("At least one of previous_action, previous_reward and first_step must be True")
        one = np.ones(1, dtype=np.float32)
        extras: dict[str, tuple[Array, Array]] = {}
        if previous_action:
            self._flatten_action = Flattener(action_space)
            # Before the first action there are zeros
            extras["previous_action"] = (np.minimum(self._flatten_action.low, 0), np.maximum(self._flatten_action.high, 0))
        if previous_reward:
            extras["previous_reward"] = (-np.inf * one, np.inf * one)
        if first_step:
            extras["first_step"] = (0 * one, one)
        super().__init__(observation_space, extras)
        self._switches = previous_action, previous_reward, first_step
        self.first_row = np.zeros(sum(len(low) for low, _ in extras.values()), dtype=np.float32)
        self.first_row[-1] = first_step

    def rows(self, actions: Array, rewards: Array) -> Array:
        """After actions (N, ...) that earned rewards (N,)."""
        previous_action, previous_reward, first_step = self._switches
        parts = [self._flatten_action(actions)] if previous_action else []
        if previous_reward:
            parts.append(np.asarray(rewards, dtype=np.float32).reshape(-1, 1))
        if first_step:
            parts.append(np.zeros((len(actions), 1), dtype=np.float32))
        return np.concatenate(parts, axis=1)


class MemoryInputs(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """
    Adds the previous action, the previous reward and a flag for the first step to each observation, in this order. At the
    first step of an episode action and reward are zero and the flag is 1. For Stable-Baselines3: ``make_vec_env(env_id,
    wrapper_class=MemoryInputs, wrapper_kwargs=dict(first_step=False))``. In a dictionary the keys are "previous_action",
    "previous_reward" and "first_step".

    :param env: an environment with Box, Discrete, MultiDiscrete, MultiBinary or Dict observations and Box, Discrete,
        MultiDiscrete or MultiBinary actions
    :param previous_action: add the previous action: a Box's numbers or bits as they are, one-hot otherwise
    :param previous_reward: add the previous reward
    :param first_step: add the flag
    :raises ValueError: spaces of another kind, a key that is taken, or nothing to add
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        previous_action: bool = True,
        previous_reward: bool = True,
        first_step: bool = True,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, previous_action=previous_action, previous_reward=previous_reward, first_step=first_step
        )
        super().__init__(env)
        self._inputs = _Inputs(env.observation_space, env.action_space, previous_action, previous_reward, first_step)
        self.observation_space = self._inputs.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the environment
        :param options: of the environment
        :return: the first observation with the inputs, and the environment's info
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._inputs.join_one(observation, self._inputs.first_row), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: an action of the environment
        :return: observation with the inputs, reward, terminated, truncated, info
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        row = self._inputs.rows(np.asarray(action)[None], np.array([reward]))[0]
        return self._inputs.join_one(observation, row), float(reward), terminated, truncated, info


class VecMemoryInputs(PicklableVecEnvWrapper):
    """
    :class:`MemoryInputs` for vector environments, batched ones included, with the same numbers. The last observation of an
    episode, in ``infos[i]["terminal_observation"]``, has the last action and reward; the one after the restart has zeros and a
    flag of 1.

    :param venv: a vector environment with spaces as for :class:`MemoryInputs`
    :param previous_action: add the previous action: a Box's numbers or bits as they are, one-hot otherwise
    :param previous_reward: add the previous reward, as ``venv`` gives it: outside of a VecNormalize it is the normalised one
    :param first_step: add the flag
    :raises ValueError: spaces of another kind, a key that is taken, or nothing to add
    """

    def __init__(
        self, venv: VecEnv, previous_action: bool = True, previous_reward: bool = True, first_step: bool = True
    ) -> None:
        self._inputs = _Inputs(venv.observation_space, venv.action_space, previous_action, previous_reward, first_step)
        super().__init__(venv, observation_space=self._inputs.space)
        self._actions: Array | None = None

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations with the inputs
        """
        rows = np.tile(self._inputs.first_row, (self.num_envs, 1))
        joined: VecEnvObs = self._inputs.join(self.venv.reset(), rows)
        return joined

    def step_async(self, actions: Array) -> None:
        """
        :param actions: (N, ...)
        """
        # A copy, for the caller may write over it before step_wait
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations with the inputs, rewards (N,), dones (N,), infos
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        assert self._actions is not None, "step_async() comes first"
        rows = self._inputs.rows(self._actions, rewards)
        for i in np.flatnonzero(dones):
            if "terminal_observation" in infos[i]:
                infos[i]["terminal_observation"] = self._inputs.join_one(infos[i]["terminal_observation"], rows[i])
            rows[i] = self._inputs.first_row
        return self._inputs.join(observations, rows), rewards, dones, infos
