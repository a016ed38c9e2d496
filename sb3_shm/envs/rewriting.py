"""
Tasks in which a memory must forget and write anew, or hold on for very long:

* ``EndlessTMaze-v0``, ``EndlessTMazeUniform-v0``, ``EndlessTMaze50-v0``, ``EndlessTMazeUniform50-v0``: each corridor has its
  own cue, which makes all earlier ones worthless;
* ``ColorCubesEasy-v0``, ``ColorCubesMedium-v0``, ``ColorCubesHard-v0``: cubes move one at a time, so that a part of what is
  known becomes wrong while the rest stays true;
* ``RepeatFirst1000-v0``, ``RepeatFirst10000-v0``: nothing to rewrite, one symbol to keep for 1,000 or 10,000 steps.

The first two follow the idea of "Memory Retention Is Not Enough to Master Memory Tasks in Reinforcement Learning"
(Shchendrigin et al., AAMAS 2026, arXiv 2601.15086), which finds SHM among the memories that rewrite badly. Its text was not at
hand; what each class takes from public material, and what is of this package's own making, is under "Source".
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators
from sb3_shm.envs.popgym.batched import RepeatFirst
from sb3_shm.envs.drawing import fill_disc
from sb3_shm.envs.grid.tiles import FACE_DOWN, INK, PAPER, hues, tiles

REWRITING_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "EndlessTMaze-v0": (f"{__name__}:EndlessTMaze", dict(n_corridors=5, max_length=10)),
    "EndlessTMazeUniform-v0": (f"{__name__}:EndlessTMaze", dict(n_corridors=5, max_length=10, uniform=True)),
    "EndlessTMaze50-v0": (f"{__name__}:EndlessTMaze", dict(n_corridors=20, max_length=50)),
    "EndlessTMazeUniform50-v0": (f"{__name__}:EndlessTMaze", dict(n_corridors=20, max_length=50, uniform=True)),
    "ColorCubesEasy-v0": (f"{__name__}:ColorCubes", dict(n_cubes=2, board_size=2, n_events=100)),
    "ColorCubesMedium-v0": (f"{__name__}:ColorCubes", dict(n_cubes=4, board_size=3, n_events=200)),
    "ColorCubesHard-v0": (f"{__name__}:ColorCubes", dict(n_cubes=8, board_size=4, n_events=400)),
    "RepeatFirst1000-v0": (f"{__name__}:LongRepeatFirst", dict(n_steps=1_000)),
    "RepeatFirst10000-v0": (f"{__name__}:LongRepeatFirst", dict(n_steps=10_000)),
}
"""Id -> where the task's class is, and its arguments."""

_GREEN = (30, 150, 60)
_RED = (215, 40, 40)
_WALL = (100, 100, 100)


class EndlessTMaze(BatchedTask):
    """
    Endless T-Maze (ids ``EndlessTMaze...-v0``): corridor after corridor, each with a cue at its start that tells where to turn
    at its end.

    :param n_envs: N, number of copies
    :param n_corridors: corridors until the end, 1 or more
    :param max_length: L, steps from a corridor's start to its junction, 1 or more
    :param uniform: each corridor's length is drawn from 1 to L instead of being L
    :raises ValueError: ``n_corridors`` or ``max_length`` below 1

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
        if n_corridors < 1 or max_length < 1:
            raise ValueError(f"n_corridors and max_length must be 1 or more, got {n_corridors} and {max_length}")
        self.observation_space = spaces.Box(0.0, 1.0, (3,), dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        self.n_corridors = n_corridors
        self.max_length = max_length
        self.uniform = uniform
        self.max_steps = 6 * (max_length + 1) * n_corridors
        self._rows = np.arange(n_envs)
        # 0 left, 1 right
        self.cues = np.zeros((n_envs, n_corridors), dtype=np.int64)
        self.lengths = np.full((n_envs, n_corridors), max_length)
        self.passed = np.zeros(n_envs, dtype=np.int64)
        self.x = np.zeros(n_envs, dtype=np.int64)
        self.t = np.zeros(n_envs, dtype=np.int64)

    def _corridor(self) -> Array:
        """Which corridor each copy is in; the last one also after the episode."""
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
        cues = self.cues[self._rows, self._corridor()]
        observations[self._rows, 1 + cues] = self.x == 0
        return observations

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N,)
        :return: rewards (N,) float32, terminated (N,), truncated (N,)
        """
        corridor = self._corridor()
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
        size, corridor = 16, int(self._corridor()[index])
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


class ColorCubes(BatchedTask):
    """
    Color-Cubes (ids ``ColorCubes<Level>-v0``): coloured cubes lie on a board; now and then one of them moves. Say where they
    are.

    :param n_envs: N, number of copies
    :param n_cubes: K, one cube of each colour, 1 or more
    :param board_size: b, the board has P = b² places, more than K
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
        self.n_places = board_size**2
        if not 1 <= n_cubes < self.n_places or n_events < 5:
            raise ValueError(
                "n_cubes must be from 1 to board_size ** 2 - 1, and n_events 5 or more, "
                f"got {n_cubes} cubes, board_size {board_size}, {n_events} events"
            )
        self.n_cubes = n_cubes
        self.board_size = board_size
        self.length = n_cubes + n_events
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


class LongRepeatFirst(RepeatFirst):
    """
    Repeat First over many steps (ids ``RepeatFirst1000-v0``, ``RepeatFirst10000-v0``): name the first symbol at each step.

    :param n_envs: N, number of copies
    :param n_steps: n, length of an episode, 1 or more
    :raises ValueError: ``n_steps`` below 1

    * Observation: one of four symbols, one-hot, drawn anew at each step.
    * Action: Discrete(4), a symbol.
    * Reward: 1/n if it is the first symbol of the episode, otherwise -1/n; so returns lie between -1 and 1 and can be compared
      with POPGym's RepeatFirst. A random policy gets -0.5.
    * Length: terminates after n steps, 1,000 or 10,000.
    * Success: every answer so far was right.
    * Source: after RepeatFirst of POPGym 1.0.7, whose symbols are the suits of shuffled decks and whose longest episode has
      831 steps. Symbols are independent here, because no number of decks makes 1,000 steps.
    """

    def __init__(self, n_envs: int = 1, n_steps: int = 1_000) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps must be 1 or more, got {n_steps}")
        # Not decks of 52 cards, as RepeatFirst has them
        super(RepeatFirst, self).__init__(n_envs, n_cards=n_steps + 1, size=4, previous_action=False)
        self._mistakes = np.zeros(n_envs, dtype=np.int64)

    def _begin(self, indices: Array, generators: Generators) -> None:
        for i in indices.tolist():
            self.suits[i] = generators[i].integers(4, size=self.n_cards, dtype=np.int8)
        self.t[indices] = 0
        self._mistakes[indices] = 0

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        rewards, terminated, truncated = super()._act(actions)
        self._mistakes += rewards < 0
        return rewards, terminated, truncated

    def success(self) -> Array:
        """
        :return: no mistake so far, (N,)
        """
        faultless: Array = self._mistakes == 0
        return faultless
