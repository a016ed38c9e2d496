"""
What an agent with memory may want to see beside the observation: its previous action, its previous reward and whether an
episode begins (:class:`MemoryInputs`, and :class:`VecMemoryInputs` for vector environments); and several rollouts of one task
as one episode (:class:`MetaEpisode`).

All of them add numbers to the observation. If it is a vector, or discrete and so becomes a one-hot vector, they follow it in
the same float32 vector. An image stays as it is, under the key "observation" of a dictionary, and they stand beside it under
their own keys; if the observation is a dictionary already, its keys are kept.
"""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs, seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_shm.envs.batched import Array


class _Flattener:
    """Rows of numbers from values of a space: one-hot for discrete ones, the numbers themselves for the rest."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._offsets: NDArray[np.int64] | None = None
        if isinstance(space, spaces.Box):
            self.low, self.high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
            begins = np.cumsum(sizes) - sizes
            self._offsets = (begins - np.reshape(space.start, -1)).astype(np.int64)
            self.low, self.high = np.zeros(sizes.sum(), dtype=np.float32), np.ones(sizes.sum(), dtype=np.float32)
        elif isinstance(space, spaces.MultiBinary):
            size = int(np.prod(space.shape))
            self.low, self.high = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
        else:
            raise ValueError(f"The space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")
        self.size = len(self.low)

    def __call__(self, values: Array) -> Array:
        """Values (N, ...) to rows (N, size) float32."""
        rows = np.asarray(values).reshape(len(values), -1)
        if self._offsets is None:
            return rows.astype(np.float32)
        one_hot = np.zeros((len(rows), self.size), dtype=np.float32)
        one_hot[np.arange(len(rows))[:, None], rows + self._offsets] = 1
        return one_hot


class _Joiner:
    """Joins observations with named numbers, which come as one row for each observation."""

    def __init__(self, space: spaces.Space[Any], extras: dict[str, tuple[Array, Array]]) -> None:
        """
        :param space: of the observations
        :param extras: lower and upper bounds of the numbers under each name, (size,) each
        :raises ValueError: there is no way to add numbers to such observations
        """
        self._flatten: _Flattener | None = None
        self._parts: dict[str, slice] = {}
        end = 0
        for name, (low, _) in extras.items():
            self._parts[name] = slice(end, end + len(low))
            end += len(low)
        boxes = {name: spaces.Box(low, high, dtype=np.float32) for name, (low, high) in extras.items()}
        self.space: spaces.Space[Any]
        if isinstance(space, spaces.Dict):
            if taken := sorted(boxes.keys() & space.spaces.keys()):
                raise ValueError(f"The observations already have the keys {taken}")
            self.space = spaces.Dict({**space.spaces, **boxes})
        elif isinstance(space, spaces.Box) and len(space.shape) > 1:
            self.space = spaces.Dict({"observation": space, **boxes})
        elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            self._flatten = _Flattener(space)
            low = np.concatenate([self._flatten.low, *(box.low for box in boxes.values())])
            high = np.concatenate([self._flatten.high, *(box.high for box in boxes.values())])
            self.space = spaces.Box(low, high, dtype=np.float32)
        else:
            raise ValueError(
                f"The observations must be Box, Discrete, MultiDiscrete, MultiBinary or Dict, got {space}: "
                "gymnasium.wrappers.FlattenObservation may help"
            )

    def join(self, observations: Any, rows: Array) -> Any:
        """Observations (N, ...), or a dictionary of them, with rows (N, size)."""
        if self._flatten is not None:
            return np.concatenate([self._flatten(observations), rows], axis=1)
        named = observations if isinstance(observations, dict) else {"observation": observations}
        # Copies, for the rows may change
        return {**named, **{name: rows[..., part].copy() for name, part in self._parts.items()}}

    def join_one(self, observation: Any, row: Array) -> Any:
        """One observation with one row (size,)."""
        if self._flatten is not None:
            return self.join(np.asarray(observation)[None], row[None])[0]
        return self.join(observation, row)


class _Inputs(_Joiner):
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
            self._flatten_action = _Flattener(action_space)
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


class VecMemoryInputs(VecEnvWrapper):
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

    # VecEnvWrapper keeps a list of its class's members, which can neither be pickled nor copied
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.class_attributes = dict(inspect.getmembers(self.__class__))

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


class MetaEpisode(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """
    Several rollouts of one task as one episode: a memory is not reset between them, so what it learns in the first can help in
    the next. The observation gets a flag (key "rollout_done" in a dictionary), 1 in the last observation of a rollout and 0
    otherwise.

    As in pomdp-baselines, on which the paper's experiments stand, the observation that a rollout begins with is not seen,
    except the very first: the step that ends a rollout returns its last observation, and the next action acts in the new one
    already. It is in ``info["start_observation"]`` of that step.

    The episode ends as its last rollout does. ``info["is_success"]``, if the environment reports it at a rollout's end, tells
    at the end of the episode whether any rollout was a success.

    :param env: an environment with Box, Discrete, MultiDiscrete, MultiBinary or Dict observations
    :param n_rollouts: rollouts of an episode, at least 1
    :param same_seed: True to begin all rollouts of an episode with the same seed, and so with the same task, for any
        environment that draws its task in ``reset()``; False if the environment keeps its task by itself
    :raises ValueError: ``n_rollouts`` below 1, observations of another kind, or a key that is taken
    """

    def __init__(self, env: gym.Env[Any, Any], n_rollouts: int, same_seed: bool = True) -> None:
        if not isinstance(n_rollouts, int | np.integer) or isinstance(n_rollouts, bool) or n_rollouts < 1:
            raise ValueError(f"n_rollouts must be a whole number, at least 1, got {n_rollouts!r}")
        RecordConstructorArgs.__init__(self, n_rollouts=n_rollouts, same_seed=same_seed)
        super().__init__(env)
        bounds = np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)
        self._joiner = _Joiner(env.observation_space, {"rollout_done": bounds})
        self.observation_space = self._joiner.space
        self._n_rollouts = n_rollouts
        self._same_seed = same_seed
        self._seeds: np.random.Generator | None = None
        self._seed: int | None = None
        self._options: dict[str, Any] | None = None
        self._rollouts_done = 0
        self._success = False
        self._return, self._length = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the first rollout; later episodes draw their seeds from it
        :param options: of the environment, for each rollout of the episode
        :return: the first observation with the flag, and the environment's info
        """
        self._seed = seed
        if self._same_seed:
            if self._seeds is None or seed is not None:
                self._seeds = seeding.np_random(seed)[0]
            if seed is None:
                self._seed = int(self._seeds.integers(2**31))
        self._options = options
        self._rollouts_done = 0
        self._success = False
        self._return, self._length = 0.0, 0
        observation, info = self.env.reset(seed=self._seed, options=options)
        return self._join(observation, False), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: an action of the environment
        :return: observation with the flag, reward, terminated, truncated, info
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        rollout_done = bool(terminated or truncated)
        if rollout_done:
            info = dict(info)
            self._rollouts_done += 1
            # A Monitor inside, where make_vec_env puts it, takes each rollout for an episode
            monitored = info.pop("episode", None)
            if monitored is not None:
                self._return += monitored["r"]
                self._length += monitored["l"]
                if self._rollouts_done == self._n_rollouts:
                    info["episode"] = {**monitored, "r": round(self._return, 6), "l": self._length}
            if "is_success" in info:
                self._success |= bool(info["is_success"])
                info["is_success"] = self._success
            if self._rollouts_done < self._n_rollouts:
                terminated = truncated = False
                start, _ = self.env.reset(seed=self._seed if self._same_seed else None, options=self._options)
                info["start_observation"] = self._join(start, False)
        return self._join(observation, rollout_done), float(reward), terminated, truncated, info

    def _join(self, observation: Any, rollout_done: bool) -> Any:
        return self._joiner.join_one(observation, np.array([rollout_done], dtype=np.float32))
