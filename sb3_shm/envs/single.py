"""One copy of a task as a Gymnasium environment."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from sb3_shm.envs.batched import BatchedTask


class SingleEnv(gym.Env[Any, Any]):
    """
    One copy of a task as a Gymnasium environment. At an episode's end ``info["is_success"]`` tells how it went, if the task
    knows success.

    :param task: a task with ``n_envs=1``
    :param render_mode: None or "rgb_array"
    :raises ValueError: unknown ``render_mode``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: BatchedTask, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        assert task.n_envs == 1, "a single environment is one copy"
        self.task = task
        self.observation_space = task.observation_space
        self.action_space = task.action_space
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": task.render_fps}
        self._running = False

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """
        What returns which actions are legal now, (options,) bool.

        :raises AttributeError: the task has no ``action_masks``
        """
        of_task: Any = self.task
        masks = of_task.action_masks
        return lambda: np.asarray(masks())[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: seed of the environment's random numbers
        :param options: not used
        :return: the first observation and an empty info
        """
        super().reset(seed=seed)
        self.task.reset(np.zeros(1, dtype=np.int64), [self.np_random])
        self._running = True
        return self.task.observe()[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: an action of the action space
        :return: observation, reward, terminated, truncated, info
        :raises ValueError: the action is not one of the action space
        :raises gymnasium.error.ResetNeeded: the episode has ended, or none has begun
        """
        if not self._running:
            raise gym.error.ResetNeeded("Call reset() first: no episode is running")
        rewards, terminated, truncated = self.task.step(self.task.check_actions(np.asarray(action)[None]))
        info: dict[str, Any] = {}
        if terminated[0] or truncated[0]:
            self._running = False
            if (success := self.task.success()) is not None:
                info["is_success"] = bool(success[0])
        return self.task.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> NDArray[np.uint8] | None:
        """
        :return: a picture, (height, width, 3) uint8, or None without a render mode
        """
        return self.task.render(0) if self.render_mode == "rgb_array" else None


def find_task(path: Any) -> type[BatchedTask]:
    """
    :param path: where the task's class is, ``"module:Class"``, a module of ``sb3_shm.envs``: a stranger's file may name it
    :return: the class
    :raises ValueError: another module, or not the class of a task
    """
    is_ours = isinstance(path, str) and re.fullmatch(r"sb3_shm\.envs(\.\w+)+:\w+", path) is not None
    try:
        task_class: Any = load_env_creator(path) if is_ours else None
    except (AttributeError, ImportError):
        task_class = None
    if not (isinstance(task_class, type) and issubclass(task_class, BatchedTask)):
        raise ValueError(f"{path!r} is no task of sb3_shm.envs: leave task out, the environment's id says which it is")
    return task_class


def make_single(task: str, render_mode: str | None = None, **kwargs: Any) -> SingleEnv:
    """
    The entry point behind the ids of this package's own tasks.

    :param task: where the task's class is, ``"module:Class"``, a module of ``sb3_shm.envs``
    :param render_mode: None or "rgb_array"
    :param kwargs: arguments of the task's class
    :return: the environment
    :raises ValueError: another module, or not the class of a task
    """
    return SingleEnv(find_task(task)(n_envs=1, **kwargs), render_mode)


# Where gym.make(..., render_mode="human") looks before it makes a window for an environment that draws pictures only
make_single.metadata = SingleEnv.metadata  # type: ignore[attr-defined]
