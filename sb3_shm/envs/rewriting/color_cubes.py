"""Color-Cubes: a part of what is known becomes wrong while the rest stays true. See :mod:`sb3_shm.envs.rewriting`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators, check_whole
from sb3_shm.envs.drawing import FACE_DOWN, PAPER, hues, tiles


class ColorCubes(BatchedTask):
    """
    Color-Cubes (ids ``ColorCubes<Level>-v0``): coloured cubes lie on a board; now and then one of them moves. Say where they
    are.

    :param n_envs: N, number of copies
    :param n_cubes: K, one cube of each colour, 1 or more
    :param board_size: b, 2 or more, the board has P = b² places, more than K
    :param n_events: E, steps after the cubes were shown, 5 or more
    :raises ValueError: an argument is out of its range

    * Observation: what is on show (``[1, 0, 0]`` a cube at its place, ``[0, 1, 0]`` a question, ``[0, 0, 1]`` nothing), the
      colour of the cube (K numbers) and its place (P numbers), one-hot; without question or cube the colours are 0, without
      cube the places are 0. The first K observations show the cubes; the E that follow are, in random order, E/5 moves (a
      cube jumps to a free place and is shown there once), 2E/5 questions for a random colour, and nothing. K, P, E are
      2, 4, 100 (Easy), 4, 9, 200 (Medium), 8, 16, 400 (Hard).
    * Action: Discrete(P), a place: the answer to a question on show, otherwise without effect.
    * Reward: 1/q for each of the q = 2E/5 questions that is answered right, -1/q for each other.
    * Length: terminates after K + E steps: 102, 204, 408.
    * Success: every question so far was answered right.
    * Source: this package's own. Coloured cubes that move at random while others stay, and a colour that is asked for, are
      the idea of Color-Cubes in arXiv 2601.15086; there the agent walks on a grid to the cube of a target colour. Returns of
      the two cannot be compared.
    """

    SHOWN: ClassVar[int] = 0
    QUESTION: ClassVar[int] = 1
    NOTHING: ClassVar[int] = 2

    def __init__(self, n_envs: int = 1, n_cubes: int = 2, board_size: int = 2, n_events: int = 100) -> None:
        super().__init__(n_envs)
        self.board_size = check_whole("board_size", board_size, 2)
        self.n_places = self.board_size**2
        self.n_cubes = check_whole("n_cubes", n_cubes, 1, self.n_places - 1)
        self.length = self.n_cubes + check_whole("n_events", n_events, 5)
        self.n_questions = 2 * n_events // 5
        self._kinds_in_order = np.full(n_events, self.NOTHING, dtype=np.int8)
        self._kinds_in_order[: self.n_questions] = self.QUESTION
        self._kinds_in_order[self.n_questions :][: n_events // 5] = self.SHOWN
        self.observation_space = spaces.Box(0.0, 1.0, (3 + n_cubes + self.n_places,), dtype=np.float32)
        self.action_space = spaces.Discrete(self.n_places)
        self._rows = np.arange(n_envs)
        # For each observation of the episode, the one after the last step included: what is on show, the cube's colour, and
        # where this cube lies from then on
        self.kinds = np.full((n_envs, self.length + 1), self.NOTHING, dtype=np.int8)
        self.colours = np.zeros((n_envs, self.length + 1), dtype=np.int8)
        self.places = np.zeros((n_envs, self.length + 1), dtype=np.int16)
        self._mistakes = np.zeros(n_envs, dtype=np.int64)
        self.t = np.zeros(n_envs, dtype=np.int64)

    def reset(self, indices: Array, generators: Generators) -> None:
        """
        :param indices: which copies begin anew, (m,)
        :param generators: of all N copies
        """
        k, n_events = self.n_cubes, self.length - self.n_cubes
        for i in indices.tolist():
            generator = generators[i]
            order = generator.permutation(self.n_places).tolist()
            cubes, free = order[:k], order[k:]
            kinds = self._kinds_in_order.copy()
            generator.shuffle(kinds)
            colours = generator.integers(k, size=n_events)
            jumps = generator.integers(len(free), size=n_events).tolist()
            places = cubes.copy()
            for kind, colour, jump in zip(kinds.tolist(), colours.tolist(), jumps, strict=True):
                if kind == self.SHOWN:
                    cubes[colour], free[jump] = free[jump], cubes[colour]
                places.append(cubes[colour])
            self.kinds[i, :k] = self.SHOWN
            self.kinds[i, k:-1] = kinds
            self.colours[i, :k] = range(k)
            self.colours[i, k:-1] = colours
            self.places[i, :-1] = places
        self._mistakes[indices] = 0
        self.t[indices] = 0

    def observe(self) -> Array:
        """
        :return: (N, 3 + K + P) float32
        """
        kinds = self.kinds[self._rows, self.t]
        colours = 3 + self.colours[self._rows, self.t]
        places = 3 + self.n_cubes + self.places[self._rows, self.t]
        observations = np.zeros((self.n_envs, *self.observation_space.shape), dtype=np.float32)  # type: ignore[misc]
        observations[self._rows, places] = kinds == self.SHOWN
        observations[self._rows, colours] = kinds != self.NOTHING
        observations[self._rows, kinds] = 1.0
        return observations

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N,)
        :return: rewards (N,) float32, terminated (N,), truncated (N,)
        """
        asked = self.kinds[self._rows, self.t] == self.QUESTION
        right = actions == self.places[self._rows, self.t]
        scale = np.float32(1 / self.n_questions)
        rewards = np.where(asked, np.where(right, scale, -scale), np.float32(0))
        self._mistakes += asked & ~right
        self.t += 1
        return rewards, self.t == self.length, np.zeros(self.n_envs, dtype=bool)

    def success(self) -> Array:
        """
        :return: no mistake so far, (N,)
        """
        faultless: Array = self._mistakes == 0
        return faultless

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the cubes where they lie (known to nobody but the reader), the one on show framed; above them the colour of a
            question; (height, width, 3)
        """
        t, palette = int(self.t[index]), hues(self.n_cubes)
        kind, colour, place = self.kinds[index, t], self.colours[index, t], int(self.places[index, t])
        board = np.full((self.n_places, 3), FACE_DOWN, dtype=np.uint8)
        for cube, cube_place in self._where(index).items():
            board[cube_place] = palette[cube]
        head = np.full((1, self.board_size, 3), PAPER, dtype=np.uint8)
        frames = np.zeros((1 + self.board_size, self.board_size), dtype=bool)
        if kind == self.QUESTION:
            head[0, 0] = palette[colour]
        elif kind == self.SHOWN:
            frames[1 + place // self.board_size, place % self.board_size] = True
        colours = np.concatenate((head, board.reshape(self.board_size, self.board_size, 3)))
        return tiles(colours, frames, size=48)

    def _where(self, index: int) -> dict[int, int]:
        """:return: place of each colour, as far as it was shown in this episode"""
        past = slice(0, int(self.t[index]) + 1)
        shown = self.kinds[index, past] == self.SHOWN
        # A later entry for the same colour takes the place of an earlier one
        return dict(zip(self.colours[index, past][shown].tolist(), self.places[index, past][shown].tolist(), strict=True))
