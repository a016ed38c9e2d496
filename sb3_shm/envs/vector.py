"""N copies of a task as a vector environment of Gymnasium, which ``gym.make_vec`` makes of the ids of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, check_whole
from sb3_shm.envs.novel import CLASSIC_TASKS
from sb3_shm.envs.popgym import POPGYM_TASKS
from sb3_shm.envs.single import find_task


class BatchedVectorEnv(VectorEnv[Array, Array, Array]):
    """
    N copies of a task as a vector environment of Gymnasium. It behaves as a ``SyncVectorEnv`` of N single environments in the
    mode ``AutoresetMode.SAME_STEP``: where an episode ends, ``step`` returns the first observation of the next one, and
    ``infos`` hold ``final_obs`` and ``final_info``.

    :param task: N copies
    :param render_mode: None or "rgb_array"
    :param max_episode_steps: steps after which time is up, as for ``gym.make``; None or -1 for the task's own alone
    :raises ValueError: unknown ``render_mode``, or ``max_episode_steps`` below 1
    """

    def __init__(self, task: BatchedTask, render_mode: str | None = None, max_episode_steps: int | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": task.render_fps,
            "autoreset_mode": AutoresetMode.SAME_STEP,
        }
        self.num_envs = task.n_envs
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.observation_space = batch_space(task.observation_space, task.n_envs)
        self.action_space = batch_space(task.action_space, task.n_envs)
        self._generators, self._seeds = map(list, zip(*(seeding.np_random() for _ in range(task.n_envs)), strict=True))
        self._running = np.zeros(task.n_envs, dtype=bool)
        self._max_steps = _limit(max_episode_steps)
        self._steps = np.zeros(task.n_envs, dtype=np.int64)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The copies' latest seeds."""
        return tuple(self._seeds)

    @property  # type: ignore[misc]  # Gymnasium gives it a setter, SyncVectorEnv none
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The copies' generators."""
        return tuple(self._generators)

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """
        What returns which actions are legal now, (N, options) bool.

        :raises AttributeError: the task has no ``action_masks``
        """
        task: Any = self.task
        return task.action_masks  # type: ignore[no-any-return]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """
        :param seed: copy i is seeded with ``seed + i``, or with the list's i-th; None to let the generators run on
        :param options: ``reset_mask``, (N,) bool, to begin new episodes in these copies alone
        :return: observations (N, ...), and an empty info
        :raises ValueError: a list of another length, a mask of another shape or type or without a True, or other options
        """
        if unknown := (options or {}).keys() - {"reset_mask"}:
            raise ValueError(
                f"Batched environments have no options but reset_mask, got {', '.join(unknown)}: "
                "vectorization_mode='sync' makes single ones"
            )
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        is_mask = mask.shape == (self.num_envs,) and mask.dtype == bool and mask.any()
        if not is_mask or not (seeds is None or (isinstance(seeds, Sequence) and len(seeds) == self.num_envs)):
            raise ValueError(
                f"There are {self.num_envs} copies: seed must be a whole number or as long a list, options['reset_mask'] an "
                f"array of as many bool, not all False, got {seed!r} and {mask!r}"
            )
        (chosen,) = mask.nonzero()
        for i in chosen.tolist():
            if seeds is not None and (one := seeds[i]) is not None:
                self._generators[i], self._seeds[i] = seeding.np_random(int(one))
        self.task.reset(chosen, self._generators)
        self._steps[chosen] = 0
        self._running |= mask
        return self.task.observe(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """
        :param actions: (N, ...)
        :return: observations (N, ...), rewards (N,) float64, terminated (N,) bool, truncated (N,) bool, infos
        :raises ValueError: an action is not one of the action space
        :raises gymnasium.error.ResetNeeded: a copy was never reset
        """
        if not self._running.all():
            raise gym.error.ResetNeeded("Call reset() first: not every copy has begun an episode")
        rewards, terminated, truncated = self.task.step(self.task.check_actions(actions))
        observations = self.task.observe()
        infos: dict[str, Any] = {}
        self._steps += 1
        truncated = truncated | (self._steps >= self._max_steps)
        ended = terminated | truncated
        self._steps[ended] = 0
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in ended.nonzero()[0].tolist():
                final_obs[i] = observations[i].copy()
            success = self.task.success()
            final_info = {} if success is None else {"is_success": success & ended, "_is_success": ended}
            if hasattr(self.task, "action_masks"):  # before the next episodes begin
                masks = np.array(self.task.action_masks())
                final_info |= {"terminal_action_masks": masks, "_terminal_action_masks": ended}
            infos = {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            self.task.reset(ended.nonzero()[0], self._generators)
            observations = self.task.observe()
        return observations, rewards.astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """
        :return: a picture of each copy, (height, width, 3) uint8, or None without a render mode
        """
        return tuple(self.task.render(i) for i in range(self.num_envs)) if self.render_mode == "rgb_array" else None


def _limit(max_episode_steps: int | None) -> int:
    """:return: the number of steps, the greatest that there is for None and, as for ``gym.make``, -1"""
    if max_episode_steps in (None, -1):
        return int(np.iinfo(np.int64).max)
    return check_whole("max_episode_steps (-1 for no limit)", max_episode_steps)


def make_vector(
    num_envs: int, task: str, render_mode: str | None = None, max_episode_steps: int | None = None, **kwargs: Any
) -> BatchedVectorEnv:
    """
    The vector entry point behind the ids of this package's own tasks.

    :param num_envs: N, number of copies
    :param task: where the task's class is, ``"module:Class"``, a module of ``sb3_shm.envs``
    :param render_mode: None or "rgb_array"
    :param max_episode_steps: see :class:`BatchedVectorEnv`
    :param kwargs: arguments of the task's class
    :return: the environment
    :raises ValueError: another module, not the class of a task, or ``max_episode_steps`` below 1
    """
    return BatchedVectorEnv(find_task(task)(n_envs=num_envs, **kwargs), render_mode, max_episode_steps)


def make_popgym_vector(
    num_envs: int,
    name: str,
    previous_action: bool = False,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
) -> BatchedVectorEnv:
    """
    The vector entry point behind the ids of POPGym's tasks, as far as they have batched versions.

    :param num_envs: N, number of copies
    :param name: task and level, for example ``"AutoencodeEasy"``
    :param previous_action: append the previous action and a flag for the first step to each observation
    :param render_mode: None or "rgb_array"
    :param max_episode_steps: see :class:`BatchedVectorEnv`
    :return: the environment
    """
    path, kwargs = POPGYM_TASKS[f"{name}{'PrevAction' if previous_action else ''}-v0"]
    return make_vector(num_envs, path, render_mode, max_episode_steps, **kwargs)


def _make_classic_vector(
    env_id: str, num_envs: int, max_episode_steps: int | None = None, render_mode: str | None = None, **kwargs: Any
) -> BatchedVectorEnv:
    if kwargs:
        raise TypeError(
            f"The batched {env_id} has no argument {', '.join(kwargs)}: vectorization_mode='sync' makes single environments"
        )
    path, arguments = CLASSIC_TASKS[env_id]
    task: Any = load_env_creator(path)(n_envs=num_envs, **arguments)
    if max_episode_steps is not None:
        task.max_steps = _limit(max_episode_steps)
    return BatchedVectorEnv(task, render_mode)


# The vector entry points of these ids, which take num_envs, max_episode_steps and render_mode
make_cart_pole_vector = partial(_make_classic_vector, "CartPoleNoVel-v0")
make_pendulum_vector = partial(_make_classic_vector, "PendulumNoVel-v0")
