"""Wind and Point Robot; what they are for and their ids: :mod:`sb3_shm.envs.meta`."""

from __future__ import annotations

from functools import cache

import numpy as np
from gymnasium import spaces

from sb3_shm.envs.batched import Array
from sb3_shm.envs.drawing import Image, draw_line
from sb3_shm.envs.meta.plane import N_RELEASED_TASKS, STEP_SIZE, PlaneTask, Split

_WIND_GOAL = np.array([0.0, 1.0])
_MAX_RELEASED_WIND = 0.1


@cache
def released_winds() -> tuple[Array, Array]:
    """
    The release seeds numpy's global generator with 1337, draws the winds one after the other (x, then y), and shuffles the
    tasks with the very next draw; the seed of a run plays no part. Drawn so, 140 of the last 150 tasks and 180 of the last 190
    can be solved, as in the release; with the split drawn before the winds it would be 141 and 179.

    :return: winds (200, 2), and the numbers of the tasks in the order of the split, (200,); neither may be written to
    """
    random = np.random.RandomState(1337)
    winds = random.uniform(-_MAX_RELEASED_WIND, _MAX_RELEASED_WIND, (N_RELEASED_TASKS, 2))
    return _read_only(winds, random.permutation(N_RELEASED_TASKS))


@cache
def released_goals() -> tuple[Array, Array]:
    """
    The same for Point Robot, where the generator has more to do before the split: its base class first draws goals of its own
    and a start, and there is one more start after the goals.

    :return: goals (200, 2), and the numbers of the tasks in the order of the split, (200,); neither may be written to
    """
    random = np.random.RandomState(1337)
    random.random_sample(2 * N_RELEASED_TASKS + 2)
    angles = random.uniform(0, np.pi, N_RELEASED_TASKS)
    goals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    random.shuffle(goals)
    random.random_sample(2)
    return _read_only(goals, random.permutation(N_RELEASED_TASKS))


def _read_only(*arrays: Array) -> tuple[Array, Array]:
    for array in arrays:
        array.flags.writeable = False
    return arrays[0], arrays[1]


class Wind(PlaneTask):
    """
    Reach a known goal in an unknown wind (ids ``Wind...-v0``).

    :param n_envs: number of copies
    :param split: "train", "eval" or None for a fresh wind each episode, see :class:`PlaneTask`
    :param n_tasks: number of tasks of the split
    :param max_wind: fresh winds are uniform in [-max_wind, max_wind]²; the released ones are what they are
    :param goal_radius: of the goal
    :param rollout_steps: steps of an episode
    :raises ValueError: an argument is out of its range

    * Observation: ``[x, y]``, the point's position, float32. It starts at (0, 0).
    * Action: Box(-1, 1, (2,)), the wish to move, 0.1 for an action of 1. Each step the position changes by 0.1 * action +
      wind.
    * Reward: 1 for each step that ends within 0.01 (upstream 0.03) of the goal at (0, 1), otherwise 0.
    * Length: 100 steps (upstream 75), then truncated; it never terminates.
    * Success: a step ended in the goal. 189 of the 200 released winds allow it: 140 of the 150 and 180 of the 190 evaluation
      tasks, so that 93.3% and 94.7% are the most that an agent can reach.
    * Source: the release of Stable Hadamard Memory, winds and split included; upstream is pomdp-baselines' version, whose
      winds lie within ±0.08. There, 60 winds were fixed; here ``WindUpstream-v0`` draws a fresh one from the same distribution
      each episode.

    The end is a truncation because the release does not treat it as the end of the task either: what it stores as terminal is
    that a step ended in the goal (reward 1), although the episode goes on.
    """

    view = (-1.0, 1.0, -0.5, 1.5)
    scale = 200

    def __init__(
        self,
        n_envs: int = 1,
        split: Split | None = None,
        n_tasks: int = N_RELEASED_TASKS,
        max_wind: float = 0.1,
        goal_radius: float = 0.01,
        rollout_steps: int = 100,
    ) -> None:
        super().__init__(n_envs, released_winds(), split, n_tasks, goal_radius, rollout_steps, n_rollouts=1)
        if not max_wind >= 0:
            raise ValueError(f"max_wind must be at least 0, got {max_wind!r}")
        self.max_wind = max_wind
        reach = rollout_steps * (STEP_SIZE + (max_wind if split is None else _MAX_RELEASED_WIND))
        self.observation_space = spaces.Box(-reach, reach, (2,), dtype=np.float32)

    @property
    def goal(self) -> Array:
        """Of all copies, (2,)."""
        return _WIND_GOAL

    def _fresh_task(self, generator: np.random.Generator) -> Array:
        return generator.uniform(-self.max_wind, self.max_wind, 2)

    def _draw_starts(self, generator: np.random.Generator) -> float:
        return 0.0

    def _move(self, actions: Array) -> None:
        self._position += STEP_SIZE * actions + self.task

    def observe(self) -> Array:
        """
        :return: the positions, (N, 2) float32
        """
        return self._position.astype(np.float32)

    def _draw_background(self, image: Image, index: int) -> None:
        # Drawn five times as long as it is, in a corner that the point seldom visits
        tail = np.array([-0.6, 1.1])
        tip = tail + 5 * self.task[index]
        back = tail - tip
        length = float(np.hypot(*back))
        sideways = np.array([-back[1], back[0]])
        barbs = [tip + (back + side * sideways) * 0.07 / max(length, 1e-9) for side in (-0.6, 0.6)]
        draw_line(image, self._pixels(np.array([tail, tip, barbs[0], barbs[1], tip])), (230, 140, 0), thickness=3)


class PointRobot(PlaneTask):
    """
    Find a goal on the half circle that cannot be seen, in the first rollout, and go there at once in the next (ids
    ``PointRobot...-v0``).

    :param n_envs: number of copies
    :param split: "train", "eval" or None for a fresh goal each episode, see :class:`PlaneTask`
    :param n_tasks: number of tasks of the split
    :param goal_radius: of the goal
    :param rollout_steps: steps of a rollout
    :param n_rollouts: rollouts of an episode, all with the same goal
    :raises ValueError: an argument is out of its range

    * Observation: ``[x, y, done]``, the point's position and a flag, float32. ``done`` is 1 in the last observation of a
      rollout, otherwise 0. Each rollout starts at random, x in [-1.5, 1.5] and y in [-0.5, 1.5]. Only the start of the first
      rollout is observed: after the last observation of a rollout, the next one shows the point one step away from its new
      start.
    * Action: Box(-1, 1, (2,)), the move, 0.1 for an action of 1.
    * Reward: 1 for each step that ends within 0.05 (upstream 0.2) of the goal, otherwise 0.
    * Length: 2 rollouts of 100 steps (upstream 60), then truncated; it never terminates. A memory is not reset in between.
    * Success: a step of any rollout ended in the goal. It is always possible.
    * Source: PointRobotSparse in the release of Stable Hadamard Memory, goals (angles uniform in [0, π]) and split included;
      upstream is pomdp-baselines' version. There, 100 goals were drawn with the seed of a run; here ``PointRobotUpstream-v0``
      draws a fresh one from the same distribution each episode.

    The end is a truncation for the reason given in :class:`Wind`. The release, at the last step of the first rollout, asks for
    success when the point has already been put on its new start; here it is asked where the step ended.
    """

    view = (-2.0, 2.0, -1.0, 2.0)
    scale = 100

    def __init__(
        self,
        n_envs: int = 1,
        split: Split | None = None,
        n_tasks: int = N_RELEASED_TASKS,
        goal_radius: float = 0.05,
        rollout_steps: int = 100,
        n_rollouts: int = 2,
    ) -> None:
        super().__init__(n_envs, released_goals(), split, n_tasks, goal_radius, rollout_steps, n_rollouts)
        reach = rollout_steps * STEP_SIZE
        low, high = [-1.5 - reach, -0.5 - reach, 0], [1.5 + reach, 1.5 + reach, 1]
        self.observation_space = spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))

    @property
    def goal(self) -> Array:
        """Of each copy, (N, 2)."""
        return self.task

    def _fresh_task(self, generator: np.random.Generator) -> Array:
        angle = generator.uniform(0, np.pi)
        return np.array([np.cos(angle), np.sin(angle)])

    def _draw_starts(self, generator: np.random.Generator) -> Array:
        return generator.random((self.n_rollouts, 2)) * (3.0, 2.0) - (1.5, 0.5)

    def observe(self) -> Array:
        """
        :return: positions and flags, (N, 3) float32
        """
        observations = np.empty((self.n_envs, 3), dtype=np.float32)
        observations[:, :2] = self._position
        observations[:, 2] = (self._steps % self.rollout_steps == 0) & (self._steps > 0)
        return observations

    def _draw_background(self, image: Image, index: int) -> None:
        angles = np.linspace(0, np.pi, 60)
        draw_line(image, self._pixels(np.stack([np.cos(angles), np.sin(angles)], axis=-1)), (150, 150, 150))
