"""
What the tasks of ``sb3_shm.envs.meta.tasks`` share: a point on the plane, a goal, and a task that is drawn or visited in turn.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators, check_whole
from sb3_shm.envs.drawing import Image, blank, draw_line, fill_disc

Split: TypeAlias = Literal["train", "eval"]

N_RELEASED_TASKS = 200
STEP_SIZE = 0.1
"""How far an action of 1 moves the point."""
# Ten copies then share the evaluation tasks evenly; it divides 150 and 190
_STRIDE = 10


class PlaneTask(BatchedTask):
    """
    What both tasks share: a point moves on the plane and earns 1 for each step that ends in the goal.

    :param n_envs: number of copies
    :param released: the 200 released tasks and their order, from :func:`released_winds` or :func:`released_goals`
    :param split: "train" for the first ``n_tasks`` of the order, one at random each episode; "eval" for the last ``n_tasks``,
        in turn; None for a fresh task each episode
    :param n_tasks: 1 to 200 with a split, otherwise it is not used
    :param goal_radius: how near to the goal is in the goal
    :param rollout_steps: steps of a rollout
    :param n_rollouts: rollouts of an episode
    :raises ValueError: an argument is out of its range
    """

    action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
    view: ClassVar[tuple[float, float, float, float]]
    """What a picture shows: left, right, bottom and top."""
    scale: ClassVar[int]
    """Pixels of a picture for a length of 1."""

    def __init__(
        self,
        n_envs: int,
        released: tuple[Array, Array],
        split: Split | None,
        n_tasks: int,
        goal_radius: float,
        rollout_steps: int,
        n_rollouts: int,
    ) -> None:
        super().__init__(n_envs)
        if split not in (None, "train", "eval"):
            raise ValueError(f"split must be 'train', 'eval' or None, got {split!r}")
        if split is not None:
            check_whole("n_tasks", n_tasks, 1, N_RELEASED_TASKS)
        if not goal_radius > 0:
            raise ValueError(f"goal_radius must be above 0, got {goal_radius!r}")
        self.split = split
        self.goal_radius = goal_radius
        self.rollout_steps = check_whole("rollout_steps", rollout_steps)
        self.n_rollouts = check_whole("n_rollouts", n_rollouts)
        tasks, order = released
        self.tasks: Array | None = None
        """Wind or goal of each task of the split, (n_tasks, 2)."""
        if split is not None:
            self.tasks = tasks[order[:n_tasks] if split == "train" else order[-n_tasks:]]
            self._turns = np.concatenate([np.arange(first, n_tasks, _STRIDE) for first in range(_STRIDE)])
        self.task = np.zeros((n_envs, 2))
        """The wind or the goal of each copy, (N, 2)."""

        self._copies = np.arange(n_envs)
        self._steps = np.zeros(n_envs, dtype=np.int64)
        self._success = np.zeros(n_envs, dtype=bool)
        self._position = np.zeros((n_envs, 2))
        self._starts = np.zeros((n_envs, n_rollouts, 2))
        self._path = np.zeros((n_envs, n_rollouts, rollout_steps + 1, 2), dtype=np.float32)
        # Whose turns they are: a new generator means a new seed
        self._owners: list[np.random.Generator | None] = [None] * n_envs
        self._visits = np.zeros(n_envs, dtype=np.int64)

    @property
    @abstractmethod
    def goal(self) -> Array:
        """Of all copies, (N, 2) or (2,)."""

    @abstractmethod
    def _fresh_task(self, generator: np.random.Generator) -> Array: ...

    @abstractmethod
    def _draw_starts(self, generator: np.random.Generator) -> Array | float: ...

    def _task_in_turn(self, copy: int, generator: np.random.Generator) -> int:
        if self._owners[copy] is not generator:
            self._owners[copy] = generator
            self._visits[copy] = 0
        elif self._steps[copy] > 0:
            self._visits[copy] += 1
        n_tasks = len(self._turns)
        seeds: Any = generator.bit_generator.seed_seq
        # A generator that is not Gymnasium's may have come from several numbers or none
        first = seeds.entropy if isinstance(seeds.entropy, int | np.integer) else 0
        return int((first % n_tasks + self._turns[self._visits[copy] % n_tasks]) % n_tasks)

    def reset(self, indices: Array, generators: Generators) -> None:
        """
        Begin new episodes.

        :param indices: which copies, (m,) int64
        :param generators: the generators of all N copies
        """
        for i in indices.tolist():
            generator = generators[i]
            if self.tasks is None:
                self.task[i] = self._fresh_task(generator)
            elif self.split == "train":
                self.task[i] = self.tasks[generator.integers(len(self.tasks))]
            else:
                self.task[i] = self.tasks[self._task_in_turn(i, generator)]
            # Those of the later rollouts too: a step has no generator
            self._starts[i] = self._draw_starts(generator)
        self._position[indices] = self._starts[indices, 0]
        self._path[indices, :, 0] = self._starts[indices]
        self._steps[indices] = 0
        self._success[indices] = False

    def _move(self, actions: Array) -> None:
        self._position += STEP_SIZE * actions

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N, 2), -1 to 1
        :return: rewards (N,), 1 in the goal and 0 elsewhere; terminated (N,), never; truncated (N,), after the last rollout
        """
        rollouts, steps = np.divmod(self._steps, self.rollout_steps)
        if self.n_rollouts > 1 and not steps.all():
            begins = steps == 0
            self._position[begins] = self._starts[begins, rollouts[begins]]
        self._move(actions)
        self._path[self._copies, rollouts, steps + 1] = self._position
        self._steps += 1
        x, y = (self._position - self.goal).T
        reached = x * x + y * y <= self.goal_radius**2
        self._success |= reached
        truncated = self._steps == self.rollout_steps * self.n_rollouts
        return reached.astype(np.float32), np.zeros(self.n_envs, dtype=bool), truncated

    def success(self) -> Array:
        """
        :return: for each copy whether a step of this episode has ended in the goal, (N,) bool
        """
        return self._success.copy()

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        The goal is green, in a ring that is large enough to be seen; the point is red, and at the border if it left the view;
        its way is blue, and grey in rollouts that are over.

        :param index: which copy
        :return: a picture of it, (height, width, 3)
        """
        left, right, bottom, top = self.view
        image = blank(round((top - bottom) * self.scale), round((right - left) * self.scale))
        self._draw_background(image, index)
        rollout = max(int(self._steps[index]) - 1, 0) // self.rollout_steps
        last = int(self._steps[index]) - rollout * self.rollout_steps
        goal = self._pixels(np.broadcast_to(self.goal, (self.n_envs, 2))[index])
        radius = self.goal_radius * self.scale
        fill_disc(image, goal[0], goal[1], radius, (120, 210, 120))
        for earlier in range(rollout):
            draw_line(image, self._pixels(self._path[index, earlier]), (180, 180, 180))
        draw_line(image, self._pixels(self._path[index, rollout, : last + 1]), (70, 110, 220), thickness=2)
        angles = np.linspace(0, 2 * np.pi, 40)
        ring = goal + max(radius, 7) * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        draw_line(image, ring, (0, 130, 0), thickness=2)
        row, column = np.clip(self._pixels(self._position[index]), 0, np.array(image.shape[:2]) - 1)
        fill_disc(image, row, column, 4, (200, 30, 30))
        return image

    def _draw_background(self, image: Image, index: int) -> None:
        """Draw what lies below goal and point."""

    def _pixels(self, points: Array) -> Array:
        """Rows and columns of points, (..., 2)."""
        return np.stack([self.view[3] - points[..., 1], points[..., 0] - self.view[0]], axis=-1) * self.scale
