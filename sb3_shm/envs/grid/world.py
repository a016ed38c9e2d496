"""A walk through three rooms, one after the other, in N copies: what Visual Match and Key-to-Door share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators, check_whole
from sb3_shm.envs.drawing import Image, blank, draw_line, fill_disc, fill_rectangle
from sb3_shm.envs.grid.board import (
    COLOURS,
    MOVES,
    N_CELLS,
    RIM,
    SEEN_AT_PLAYER,
    SOLID,
    VIEW,
    WIDTH,
    WINDOW,
    Cell,
    board_of,
    cells_of,
)

_APPLE_ROOM = (
    "###########",
    "#a a a a a#",
    "# a a a a #",
    "#a a a a a#",
    "# a a a a #",
    "#a a + a a#",
    "###########",
)
N_APPLES = 10
# An apple is missing from the observation in which it was eaten and from this many more
RESPAWN_AFTER = 20


APPLE_CELLS = cells_of(_APPLE_ROOM, "a")
_APPLE_BOARD = board_of(_APPLE_ROOM)
_APPLE_START = cells_of(_APPLE_ROOM, "+")[0]


class GridTask(BatchedTask):
    """
    Three rooms, each for a fixed number of steps; with the last step in a room the player is in the next.

    :param n_envs: N, number of copies
    :param phases: number of steps in each of the three rooms, all 1 or more
    :param reward: what success in the third room is worth, above 0
    :param image: whether an observation is a picture, else a flat vector
    :raises ValueError: an argument is out of range
    """

    action_space = spaces.Discrete(4)
    apple_reward: ClassVar[float] = 1.0
    n_draws: ClassVar[int]
    """Random numbers that an episode needs besides those for the apples."""

    def __init__(self, n_envs: int = 1, *, phases: tuple[int, int, int], reward: float = 10.0, image: bool = False) -> None:
        super().__init__(n_envs)
        if len(phases) != 3:
            raise ValueError(f"phases must be three whole numbers, 1 or more, got {phases!r}")
        if not 0 < reward < np.inf:
            raise ValueError(f"reward must be a positive number, got {reward!r}")
        first, second, third = (check_whole(f"phases[{i}]", steps) for i, steps in enumerate(phases))
        self.phases = (first, second, third)
        self.reward = float(reward)
        self.image = bool(image)
        if self.image:
            self.observation_space = spaces.Box(0, 255, (3, VIEW, VIEW), dtype=np.uint8)
            self._colours = COLOURS.T.copy()
        else:
            self.observation_space = spaces.Box(0.0, 1.0, (3 * VIEW * VIEW,), dtype=np.float32)
            self._colours = (COLOURS.T / 255).astype(np.float32)

        self.clocks = np.zeros(self.n_envs, dtype=np.int64)
        """Steps since the episode's begin, (N,)."""
        self.successes = np.zeros(self.n_envs, dtype=bool)
        """Whether the reward of the third room was earned, (N,)."""
        # All boards in one line: cell c of copy i is number offsets[i] + c, which spares an index in each look-up
        self._cells = np.full(self.n_envs * N_CELLS, Cell.FLOOR, dtype=np.int64)
        self._offsets = np.arange(self.n_envs) * N_CELLS
        self._at = self._offsets + _APPLE_START
        self._apples = np.zeros((self.n_envs, N_APPLES), dtype=np.int64)
        # A copy eats one apple in a step at most, so the cells eaten in as many steps as an apple is away are all that there
        # is to know of missing apples; 0 for none
        self._eaten = np.zeros((RESPAWN_AFTER + 1, self.n_envs), dtype=np.int64)
        self._tick = 0

    @abstractmethod
    def _draw(self, indices: Array, draws: Array) -> None:
        """
        Choose what is random in the first and third room.

        :param indices: copies that begin an episode, (m,)
        :param draws: uniform in [0, 1), (m, n_draws)
        """

    @abstractmethod
    def _rooms(self, indices: Array, last: bool) -> tuple[Array, Array]:
        """
        :param indices: copies that enter the first or the third room, (m,)
        :param last: whether it is the third
        :return: their boards (m, N_CELLS), and the cells on which they start (m,)
        """

    @abstractmethod
    def _act(self, here: Array, rewards: Array) -> None:
        """
        Let all copies do what is to be done on the cells where they are after a move. ``self._at`` are their numbers.

        :param here: what is there, (N,)
        :param rewards: of this step, to be added to, (N,)
        """

    def reset(self, indices: Array, generators: Generators) -> None:
        n_cells = len(APPLE_CELLS)
        draws = np.stack([generators[i].random(n_cells + self.n_draws) for i in indices])
        self._apples[indices] = APPLE_CELLS[draws[:, :n_cells].argsort(axis=1)[:, :N_APPLES]]
        self._draw(indices, draws[:, n_cells:])
        self.clocks[indices] = 0
        self.successes[indices] = False
        self._enter(indices, *self._rooms(indices, last=False))

    def _enter(self, indices: Array, boards: Array, starts: Array) -> None:
        self.boards[indices] = boards
        self._at[indices] = self._offsets[indices] + starts
        self._eaten[:, indices] = 0

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        target = self._at + MOVES[actions]
        self._at = np.where(SOLID[self._cells[target]], self._at, target)
        here = self._cells[self._at]
        rewards = self._eat(here)
        self._act(here, rewards)
        self.clocks += 1

        (second,) = (self.clocks == self.phases[0]).nonzero()
        if len(second):
            boards = np.tile(_APPLE_BOARD, (len(second), 1))
            np.put_along_axis(boards, self._apples[second], Cell.APPLE, axis=1)
            self._enter(second, boards, np.full(len(second), _APPLE_START))
        (third,) = (self.clocks == self.phases[0] + self.phases[1]).nonzero()
        if len(third):
            self._enter(third, *self._rooms(third, last=True))
        return rewards, self.clocks >= sum(self.phases), np.zeros(self.n_envs, dtype=bool)

    def _eat(self, here: Array) -> Array:
        eaten = here == Cell.APPLE
        self._cells[self._at[eaten]] = Cell.FLOOR
        self._tick = (self._tick + 1) % len(self._eaten)
        back = self._eaten[self._tick]
        self._cells[back[back > 0]] = Cell.APPLE
        self._eaten[self._tick] = np.where(eaten, self._at, 0)
        return np.where(eaten, np.float32(self.apple_reward), np.float32(0))

    def _pay(self, winners: Array, rewards: Array) -> None:
        rewards[winners] += self.reward
        self.successes |= winners

    def observe(self) -> Array:
        seen = self._cells[self._at[:, None] + WINDOW]
        middle = len(WINDOW) // 2
        seen[:, middle] = SEEN_AT_PLAYER[seen[:, middle]]
        observations = np.empty((self.n_envs, 3, len(WINDOW)), dtype=self._colours.dtype)
        for channel, colours in enumerate(self._colours):
            observations[:, channel] = colours.take(seen)
        return observations.reshape(self.n_envs, *self.observation_space.shape)  # type: ignore[misc]

    def success(self) -> Array:
        return self.successes.copy()

    @property
    def boards(self) -> Array:
        """
        :return: what is in each cell without the player, (N, N_CELLS), Cell numbers
        """
        return self._cells.reshape(self.n_envs, N_CELLS)

    @property
    def positions(self) -> Array:
        """
        :return: the numbers of the cells where the players are, (N,)
        """
        positions: Array = self._at - self._offsets
        return positions

    @property
    def rooms(self) -> Array:
        """
        :return: in which room each copy is, (N,), 0 to 2
        """
        return np.searchsorted(np.cumsum(self.phases)[:2], self.clocks, side="right")

    @abstractmethod
    def _cue(self, index: int) -> tuple[Cell, bool]:
        """
        :param index: which copy
        :return: what it must remember, and whether it is so (True), or still to be done (False)
        """

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        The room with what the player sees in a white frame, the rest darker. Above it: what has to be remembered (an empty
        frame if it was not done yet), and a bar of the time that has passed, with marks where the rooms end.

        :param index: which copy
        :return: a picture, (288, 360, 3)
        """
        board = self.boards[index].copy()
        at = int(self.positions[index])
        board[at] = SEEN_AT_PLAYER[board[at]]
        image = blank(N_CELLS // WIDTH * _PIXELS, WIDTH * _PIXELS)
        for number, cell in enumerate(board):
            row, column = divmod(number, WIDTH)
            _draw_cell(image, row, column, Cell(cell))
        row, column = (_PIXELS * (number - RIM) for number in divmod(at, WIDTH))
        size = VIEW * _PIXELS
        bright = image[row : row + size, column : column + size].copy()
        image //= 3
        image *= 2
        image[row : row + size, column : column + size] = bright
        _draw_frame(image, row, column, size, _rgb(Cell.INDICATOR))

        strip = blank(_PIXELS, WIDTH * _PIXELS, (40, 40, 40))
        cue, done = self._cue(index)
        if done:
            _draw_cell(strip, 0, 0, cue)
        _draw_frame(strip, 0, 0, _PIXELS, _rgb(cue))
        left, right = 2 * _PIXELS, (WIDTH - 1) * _PIXELS
        pixels_per_step = (right - left) / sum(self.phases)
        fill_rectangle(strip, 8, left, _PIXELS - 8, right, (90, 90, 90))
        fill_rectangle(strip, 8, left, _PIXELS - 8, left + int(self.clocks[index] * pixels_per_step), (220, 220, 220))
        for step in np.cumsum(self.phases)[:2]:
            mark = left + int(step * pixels_per_step)
            fill_rectangle(strip, 4, mark, _PIXELS - 4, mark + 2, (255, 160, 0))
        return np.concatenate([strip, image])


_PIXELS = 24  # of a cell


def _rgb(cell: Cell) -> tuple[int, int, int]:
    red, green, blue = COLOURS[cell].tolist()
    return red, green, blue


def _draw_cell(image: Image, row: int, column: int, cell: Cell) -> None:
    tile = image[row * _PIXELS : (row + 1) * _PIXELS, column * _PIXELS : (column + 1) * _PIXELS]
    tile[:] = COLOURS[Cell.FLOOR]
    if cell in (Cell.PLAYER, Cell.APPLE):
        radius = (0.42 if cell == Cell.PLAYER else 0.3) * _PIXELS
        fill_disc(tile, (_PIXELS - 1) / 2, (_PIXELS - 1) / 2, radius, _rgb(cell))
    elif cell == Cell.KEY:
        fill_disc(tile, _PIXELS / 2, _PIXELS / 3, _PIXELS / 5, _rgb(cell))
        draw_line(tile, [(_PIXELS / 2, _PIXELS / 3), (_PIXELS / 2, 0.9 * _PIXELS)], _rgb(cell), thickness=4)
    else:
        tile[:] = COLOURS[cell]


def _draw_frame(image: Image, row: int, column: int, size: int, colour: tuple[int, int, int]) -> None:
    bottom, right = row + size - 2, column + size - 2
    corners = [(row, column), (row, right), (bottom, right), (bottom, column), (row, column)]
    draw_line(image, corners, colour, thickness=2)
