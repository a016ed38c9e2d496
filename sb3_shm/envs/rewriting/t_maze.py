"""Endless T-Maze: each corridor's cue makes all earlier ones worthless. See :mod:`sb3_shm.envs.rewriting`."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators, check_whole
from sb3_shm.envs.drawing import FACE_DOWN, INK, PAPER, fill_disc, tiles

_GREEN = (30, 150, 60)
_WALL = (100, 100, 100)


class EndlessTMaze(BatchedTask):
    """
    Endless T-Maze (ids ``EndlessTMaze...-v0``): corridor after corridor, each with a cue at its start that tells where to turn
    at its end.

    :param n_envs: N, number of copies
    :param n_corridors: corridors until the end, 1 or more
    :param max_length: L, steps from a corridor's start to its junction, 1 or more
    :param uniform: each corridor's length is drawn from 1 to L instead of being L
    :raises ValueError: ``n_corridors`` or ``max_length`` is no whole number or below 1

    * Observation: ``[x / L, left, right]`` with the position x in the corridor; left or right is 1 at the start of a corridor,
      which is the cue, and both are 0 elsewhere. If lengths are drawn, nothing shows where the junction is.
    * Action: Discrete(3): forward, turn left, turn right.
    * Reward: 1 for the right turn at a junction, -1 for anything else there, -0.01 for a turn within a corridor, which leads
      nowhere. The best return is the number of corridors (5, 20); if lengths are drawn, trying the turn at each step costs
      0.01 (l - 1) per corridor of length l.
    * Length: terminates after the last junction or the first mistake at one; truncated after 6 (L + 1) steps per corridor.
      The shortest way through 5 corridors of 10 takes 55 steps, through 20 of 50 it takes 1,020.
    * Success: every junction passed. Guessing passes each junction half of the time.
    * Source: arXiv 2601.15086, from the authors' code (github Quartz-Admirer/Adaptive-Memory-Envs) and project page
      (quartz-admirer.github.io/Memory-Rewriting), written anew. Ids without 50 have that code's lengths and number of
      corridors; the reward of -1 is the project page's (the code has -0.01 there). The ids with 50 are this package's own.
    """

    def __init__(self, n_envs: int = 1, n_corridors: int = 5, max_length: int = 10, uniform: bool = False) -> None:
        super().__init__(n_envs)
        self.observation_space = spaces.Box(0.0, 1.0, (3,), dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        self.n_corridors = check_whole("n_corridors", n_corridors)
        self.max_length = check_whole("max_length", max_length)
        self.uniform = uniform
        self.max_steps = 6 * (max_length + 1) * n_corridors
        self._rows = np.arange(n_envs)
        # 0 left, 1 right
        self.cues = np.zeros((n_envs, n_corridors), dtype=np.int64)
        self.lengths = np.full((n_envs, n_corridors), max_length)
        self.passed = np.zeros(n_envs, dtype=np.int64)
        self.x = np.zeros(n_envs, dtype=np.int64)
        self.t = np.zeros(n_envs, dtype=np.int64)

    @property
    def corridors(self) -> Array:
        """Which corridor each copy is in, (N,); the last one also after the episode."""
        return np.minimum(self.passed, self.n_corridors - 1)

    def reset(self, indices: Array, generators: Generators) -> None:
        """
        :param indices: which copies begin anew, (m,)
        :param generators: of all N copies
        """
        for i in indices.tolist():
            self.cues[i] = generators[i].integers(2, size=self.n_corridors)
            if self.uniform:
                self.lengths[i] = generators[i].integers(1, self.max_length + 1, size=self.n_corridors)
        self.passed[indices] = 0
        self.x[indices] = 0
        self.t[indices] = 0

    def observe(self) -> Array:
        """
        :return: (N, 3) float32
        """
        observations = np.zeros((self.n_envs, 3), dtype=np.float32)
        observations[:, 0] = self.x / self.max_length
        cues = self.cues[self._rows, self.corridors]
        observations[self._rows, 1 + cues] = self.x == 0
        return observations

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N,)
        :return: rewards (N,) float32, terminated (N,), truncated (N,)
        """
        corridor = self.corridors
        at_junction = self.x == self.lengths[self._rows, corridor]
        right = at_junction & (actions == 1 + self.cues[self._rows, corridor])
        forward = actions == 0
        self.passed += right
        self.t += 1
        through = self.passed == self.n_corridors
        # After the last junction there is no corridor to enter
        self.x = np.where(right & ~through, 0, self.x + (forward & ~at_junction))
        bumps = np.where(forward, np.float32(0), np.float32(-0.01))
        rewards = np.where(at_junction, np.where(right, np.float32(1), np.float32(-1)), bumps)
        return rewards, through | (at_junction & ~right), self.t >= self.max_steps

    def success(self) -> Array:
        """
        :return: all junctions passed, (N,)
        """
        passed: Array = self.passed == self.n_corridors
        return passed

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the corridor, left above and right below, its right exit green and the agent a disc; above it one tile per
            corridor, those passed green; (height, width, 3)
        """
        size, corridor = 16, int(self.corridors[index])
        length, cue, x = int(self.lengths[index, corridor]), int(self.cues[index, corridor]), int(self.x[index])
        colours = np.full((5, max(self.max_length + 3, self.n_corridors), 3), PAPER, dtype=np.uint8)
        colours[0, : self.n_corridors] = FACE_DOWN
        colours[0, : self.passed[index]] = _GREEN
        colours[1:, : length + 3] = _WALL
        colours[3, 1 : length + 2] = PAPER
        colours[[2, 4], length + 1] = PAPER
        colours[2 + 2 * cue, length + 1] = _GREEN
        if x == 0:
            # The cue, on its side of the start
            colours[2 + 2 * cue, 1] = _GREEN
        image = tiles(colours, size=size)
        fill_disc(image, 3.5 * size, (1.5 + x) * size, 0.35 * size, INK)
        return image
