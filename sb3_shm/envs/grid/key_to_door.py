"""Key-to-Door: take a key, and much later open a door with it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sb3_shm.envs.batched import Array
from sb3_shm.envs.grid.board import Cell, board_of, cells_of
from sb3_shm.envs.grid.world import GridTask

_FIRST_ROOM = (
    "  ###i###  ",
    "  #kkkkk#  ",
    "  #kkkkk#  ",
    "  ##   ##  ",
    "  #+++++#  ",
    "  #+++++#  ",
    "  #######  ",
)
_THIRD_ROOM = (
    "           ",
    "   ##d##   ",
    "   #   #   ",
    "   # + #   ",
    "   #   #   ",
    "   #####   ",
    "           ",
)
_FIRST_BOARD = board_of(_FIRST_ROOM, i=Cell.WALL)
_KEY_CELLS = cells_of(_FIRST_ROOM, "k")
_START_CELLS = cells_of(_FIRST_ROOM, "+")
_INDICATOR_CELL = cells_of(_FIRST_ROOM, "i")[0]
_THIRD_BOARD = board_of(_THIRD_ROOM, d=Cell.DOOR)
_THIRD_START = cells_of(_THIRD_ROOM, "+")[0]
_DOOR_CELL = cells_of(_THIRD_ROOM, "d")[0]


class KeyToDoor(GridTask):
    """
    Take a key, and much later open a door with it (ids ``KeyToDoor<D>-v0``, ``...Image-v0``, ``...MemoryRL-v0``,
    ``...MemoryRLImage-v0``; D = 60, 100, 250, 500 or 1000).

    For 10 steps (Memory-RL: 15) the player is in a room with a key; in the observation after it walked on the key the middle
    of the room's northern wall is white. Then it eats apples for D steps. At last it is in a room with a door, for 3 steps
    (Memory-RL: 10). The door is a wall for a player without the key. The reward comes D steps after what earned it.

    :param n_envs: N, number of copies
    :param phases: number of steps in each of the three rooms
    :param reward: for opening the door, above 0
    :param image: whether an observation is a picture, else a flat vector
    :raises ValueError: an argument is out of range

    * Observation: the 5×5 cells around the player. Flat: Box(0, 1, (75,)), float32, first the red of all cells row by row,
      then green, then blue. Image: Box(0, 255, (3, 5, 5)), uint8; the flat numbers are these divided by 255. The player is
      hidden behind an open door while it stands there.
    * Action: Discrete(4), north, south, west, east. A move into a wall does nothing.
    * Reward: 1 for each apple, 10 for the first time on the door (Memory-RL: 5), nothing for the key. 10 of the 22 places have
      an apple, chosen anew for each episode; an eaten one is away for the next 20 observations.
    * Length: D + 13 steps (Memory-RL: D + 25), always; then it terminates, as in Memory-RL, since nothing can be earned later.
    * Success: the door was opened.
    * Random: where the key, the player and the apples are, for each episode.
    * Source: Hung et al. 2019, see ``sb3_shm.envs.grid``; numbers of steps and rewards of Le et al. 2025 and Ni et al. 2023.
    """

    n_draws: ClassVar[int] = 2

    def __init__(
        self, n_envs: int = 1, *, phases: tuple[int, int, int] = (10, 60, 3), reward: float = 10.0, image: bool = False
    ) -> None:
        super().__init__(n_envs, phases=phases, reward=reward, image=image)
        self.has_key = np.zeros(self.n_envs, dtype=bool)
        """Who has taken the key and not yet used it, (N,)."""
        self.key_cells = np.full(self.n_envs, _KEY_CELLS[0])
        """Where the key is or was in the first room, (N,)."""
        self._starts = np.full(self.n_envs, _START_CELLS[0])
        self._lit = np.zeros(self.n_envs, dtype=bool)

    def _draw(self, indices: Array, draws: Array) -> None:
        self.key_cells[indices] = _KEY_CELLS[(draws[:, 0] * len(_KEY_CELLS)).astype(np.int64)]
        self._starts[indices] = _START_CELLS[(draws[:, 1] * len(_START_CELLS)).astype(np.int64)]

    def _rooms(self, indices: Array, last: bool) -> tuple[Array, Array]:
        self._lit[indices] = False
        if last:
            boards = np.tile(_THIRD_BOARD, (len(indices), 1))
            boards[self.has_key[indices], _DOOR_CELL] = Cell.OPEN_DOOR
            return boards, np.full(len(indices), _THIRD_START)
        self.has_key[indices] = False
        boards = np.tile(_FIRST_BOARD, (len(indices), 1))
        boards[np.arange(len(indices)), self.key_cells[indices]] = Cell.KEY
        return boards, self._starts[indices]

    def _act(self, here: Array, rewards: Array) -> None:
        if self._lit.any():
            self.boards[self._lit, _INDICATOR_CELL] = Cell.WALL
            self._lit[:] = False
        taking = here == Cell.KEY
        if taking.any():
            self._cells[self._at[taking]] = Cell.FLOOR
            self.boards[taking, _INDICATOR_CELL] = Cell.INDICATOR
            self._lit = taking
            self.has_key |= taking
        # An opened door stays open, but pays only once
        opening = (here == Cell.OPEN_DOOR) & self.has_key
        if opening.any():
            self._pay(opening, rewards)
            self.has_key &= ~opening

    @property
    def goals(self) -> Array:
        """
        :return: the cell of the door in the third room, (N,)
        """
        return np.full(self.n_envs, _DOOR_CELL)

    def _cue(self, index: int) -> tuple[Cell, bool]:
        return Cell.KEY, bool(self.has_key[index] or self.successes[index])
