"""
Tasks whose N copies are stepped together by array operations, and what makes environments of them: one copy is a Gymnasium
environment (:class:`SingleEnv`), N copies are a vector environment of Stable-Baselines3 (:class:`BatchedVecEnv`). Both run the
same code, so copy i of a vector does what a single environment with its seed does.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

Array: TypeAlias = NDArray[Any]
Generators: TypeAlias = Sequence[np.random.Generator]


def check_whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """
    :param name: name of an argument
    :param value: its value
    :param low: smallest legal value
    :param high: greatest legal value, None for no such bound
    :return: the value
    :raises ValueError: the value is no whole number or out of this range
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        legal = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number, {legal}, got {value!r}")
    return int(value)


class BatchedTask(ABC):
    """
    N copies of a task. A copy's random draws come from its own generator alone, so that it does not depend on the others.
    A task may have a method ``action_masks()`` that returns which actions are legal now, (N, options) bool.

    :param n_envs: N, number of copies
    :raises ValueError: ``n_envs`` is no whole number or below 1
    """

    observation_space: spaces.Space[Any]
    """Of one copy."""
    action_space: spaces.Space[Any]
    """Of one copy."""
    render_fps: ClassVar[int] = 10

    def __init__(self, n_envs: int = 1) -> None:
        self.n_envs = check_whole("n_envs", n_envs)

    @abstractmethod
    def reset(self, indices: Array, generators: Generators) -> None:
        """
        Begin new episodes.

        :param indices: which copies, (m,) int64
        :param generators: the generators of all N copies; only those at ``indices`` may be used
        """

    @abstractmethod
    def observe(self) -> Array:
        """
        :return: the observations of all copies, (N, ...), in an array of its own that later steps leave alone
        """

    @abstractmethod
    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        Step all copies; none of them resets itself.

        :param actions: legal actions, (N, ...)
        :return: rewards (N,) float32, terminated (N,) bool, truncated (N,) bool
        """

    def success(self) -> Array | None:
        """
        :return: for each copy whether its episode so far is a success, (N,) bool; None if the task knows no success
        """
        return None

    @abstractmethod
    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: a picture of it, (height, width, 3)
        """

    def check_actions(self, actions: Any) -> Array:
        """
        :param actions: what a user wants to do in the N copies
        :return: the same as an array of the action space's type, (N, ...)
        :raises ValueError: wrong shape, not finite, or outside the action space
        """
        array = np.asarray(actions)
        space = self.action_space
        shape = (self.n_envs, *(space.shape or ()))
        if array.shape != shape:
            raise ValueError(f"The actions must have the shape {shape}, got {array.shape}")
        if isinstance(space, spaces.Box):
            # NaN fails both comparisons
            if not ((array >= space.low).all() and (array <= space.high).all()):
                raise ValueError(f"The actions must lie between {space.low.min()} and {space.high.max()}, got {array}")
            return array.astype(np.float64, copy=False)
        number = space.n if isinstance(space, spaces.Discrete) else space.nvec  # type: ignore[attr-defined]
        if array.dtype.kind not in "iu" or array.min() < 0 or not (array < number).all():
            raise ValueError(f"The actions must be whole numbers from 0 to {number} - 1, got {array}")
        # Sums and products of actions would overflow in a small type
        return array.astype(np.int64, copy=False)


class BatchedVecEnv(VecEnv):
    """
    N copies of a task as a vector environment of Stable-Baselines3. It behaves as ``make_vec_env`` does with N single
    environments: episodes restart by themselves, ``infos`` hold ``terminal_observation``, ``TimeLimit.truncated`` and, as if
    each copy was in a Monitor, ``episode`` with return, length and time; if the task has action masks,
    ``terminal_action_masks``, the last observation's.

    :param task: N copies
    :param spec: what Gymnasium's registry knows about the environment, if it is registered
    """

    def __init__(self, task: BatchedTask, spec: gym.envs.registration.EnvSpec | None = None) -> None:
        self.task = task
        self.spec = spec
        self.metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": task.render_fps}
        self._generators = [seeding.np_random()[0] for _ in range(task.n_envs)]
        self._returns = np.zeros(task.n_envs)
        self._lengths = np.zeros(task.n_envs, dtype=np.int64)
        self._begin = time.time()
        self._running = False
        self._actions: Array | None = None
        super().__init__(task.n_envs, task.observation_space, task.action_space)

    def reset(self) -> VecEnvObs:
        """
        Begin a new episode in every copy; the seeds given to ``seed()`` take effect here.

        :return: observations, (N, ...)
        :raises ValueError: there are options, which no batched task has
        """
        if any(given := self._options):
            self._reset_options()
            raise ValueError(f"Batched environments have no options, make_vec_env makes single ones; got {given[0]}")
        for i, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[i] = seeding.np_random(seed)[0]
        self._returns[:] = 0
        self._lengths[:] = 0
        self.task.reset(np.arange(self.num_envs), self._generators)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._running = True
        return self.task.observe()

    def step_async(self, actions: Array) -> None:
        """
        :param actions: (N, ...)
        :raises ValueError: an action is not one of the action space
        :raises gymnasium.error.ResetNeeded: ``reset()`` was never called
        """
        if not self._running:
            raise gym.error.ResetNeeded("Call reset() first: no episode is running")
        self._actions = self.task.check_actions(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations (N, ...), rewards (N,) float32, dones (N,) bool, infos
        """
        assert self._actions is not None, "step_async() comes first"
        rewards, terminated, truncated = self.task.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        observations = self.task.observe()
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        (ended,) = dones.nonzero()
        if len(ended):
            success = self.task.success()
            masks = self.task.action_masks() if hasattr(self.task, "action_masks") else None
            now = round(time.time() - self._begin, 6)
            for i in ended:
                info = infos[i]
                info["terminal_observation"] = observations[i].copy()
                info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                info["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": now}
                if success is not None:
                    info["is_success"] = bool(success[i])
                if masks is not None:
                    info["terminal_action_masks"] = np.array(masks[i])
            self._returns[ended] = 0
            self._lengths[ended] = 0
            self.task.reset(ended, self._generators)
            observations = self.task.observe()
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Nothing to close."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: a picture of each copy, (height, width, 3) uint8
        """
        return [self.task.render(i) for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: an attribute of the task, or ``spec`` or ``render_mode``
        :param indices: which copies, all by default
        :return: its value once per copy
        """
        own = {"spec": self.spec, "render_mode": "rgb_array", "metadata": self.metadata}
        value = own[attr_name] if attr_name in own else getattr(self.task, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :raises NotImplementedError: always, the copies share their attributes
        """
        raise NotImplementedError(f"Cannot set {attr_name!r} of single copies: they are stepped together and share attributes")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: ``action_masks``, if the task has it
        :param indices: which copies, all by default
        :return: which actions are legal, (options,) bool once per copy
        :raises NotImplementedError: another method, as there are no single environments behind this one
        """
        if method_name == "action_masks" and hasattr(self.task, "action_masks"):
            task: Any = self.task
            masks = np.asarray(task.action_masks())
            return [masks[i] for i in self._get_indices(indices)]
        raise NotImplementedError(f"Cannot call {method_name!r}: there are no single environments behind a batched one")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :return: True for Monitor, whose work is done here, False for any other wrapper; once per copy
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
