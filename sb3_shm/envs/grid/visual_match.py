"""Visual Match: remember a colour."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sb3_shm.envs.batched import Array, Generators
from sb3_shm.envs.grid.board import Cell, board_of, cells_of
from sb3_shm.envs.grid.world import GridTask

_FIRST_ROOM = (
    "           ",
    "    sss    ",
    "    s+s    ",
    "    sss    ",
    "           ",
    "           ",
    "           ",
)
_THIRD_ROOM = (
    "###########",
    "# b  c  e #",
    "#         #",
    "#         #",
    "####   ####",
    "   # + #   ",
    "   #####   ",
)
_FIRST_BOARD = board_of(_FIRST_ROOM, s=Cell.WALL)
_FIRST_START = cells_of(_FIRST_ROOM, "+")[0]
_SIGN_CELLS = cells_of(_FIRST_ROOM, "s")
_THIRD_BOARD = board_of(_THIRD_ROOM)
_THIRD_START = cells_of(_THIRD_ROOM, "+")[0]
_TILE_CELLS = np.concatenate([cells_of(_THIRD_ROOM, symbol) for symbol in "bce"])


class VisualMatch(GridTask):
    """
    Remember a colour (ids ``VisualMatch<D>-v0``, ``...Image-v0``, ``...MemoryRL-v0``, ``...MemoryRLImage-v0``; D = 60, 100,
    250, 500 or 1000).

    For 15 steps the player is walled in by eight cells, one of which is red, green or blue. Then it eats apples for D steps.
    At last it stands in a room with one tile of each colour, and has 10 steps (Memory-RL: 15) to walk on the one whose colour
    it saw. When it walks on any of them all three are gone.

    :param n_envs: N, number of copies
    :param phases: number of steps in each of the three rooms
    :param reward: for the right colour, above 0
    :param image: whether an observation is a picture, else a flat vector
    :raises ValueError: an argument is out of range

    * Observation: the 5×5 cells around the player. Flat: Box(0, 1, (75,)), float32, first the red of all cells row by row,
      then green, then blue. Image: Box(0, 255, (3, 5, 5)), uint8; the flat numbers are these divided by 255.
    * Action: Discrete(4), north, south, west, east. A move into a wall does nothing.
    * Reward: 1 for each apple, 10 for the right colour (Memory-RL: 5). 10 of the 22 places have an apple, chosen anew for each
      episode; an eaten one is away for the next 20 observations.
    * Length: D + 25 steps (Memory-RL: D + 30), always; then it terminates, as in Memory-RL, since nothing can be earned later.
    * Success: the right colour was reached.
    * Random: the colour, its cell and the apples, for each episode; which tile has which colour, once for each seed.
    * Source: Hung et al. 2019, see ``sb3_shm.envs.grid``; numbers of steps and rewards of Le et al. 2025 and Ni et al. 2023.
    """

    n_draws: ClassVar[int] = 2

    def __init__(
        self, n_envs: int = 1, *, phases: tuple[int, int, int] = (15, 60, 10), reward: float = 10.0, image: bool = False
    ) -> None:
        super().__init__(n_envs, phases=phases, reward=reward, image=image)
        self.colours = np.zeros(self.n_envs, dtype=np.int64)
        """The colour to remember, (N,), 0 to 2 for red, green and blue."""
        self.orders = np.tile(np.arange(3), (self.n_envs, 1))
        """The colours of the three tiles from west to east, (N, 3)."""
        self._sign_cells = np.full(self.n_envs, _SIGN_CELLS[0])
        # Whose first draw the order is: it is drawn again when a copy was seeded, which gives it a new generator
        self._order_of: list[np.random.Generator | None] = [None] * self.n_envs

    def reset(self, indices: Array, generators: Generators) -> None:
        for i in indices:
            if generators[i] is not self._order_of[i]:
                self._order_of[i] = generators[i]
                self.orders[i] = generators[i].permutation(3)
        super().reset(indices, generators)

    def _draw(self, indices: Array, draws: Array) -> None:
        self.colours[indices] = (draws[:, 0] * 3).astype(np.int64)
        self._sign_cells[indices] = _SIGN_CELLS[(draws[:, 1] * len(_SIGN_CELLS)).astype(np.int64)]

    def _rooms(self, indices: Array, last: bool) -> tuple[Array, Array]:
        rows = np.arange(len(indices))
        if last:
            boards = np.tile(_THIRD_BOARD, (len(indices), 1))
            boards[rows[:, None], _TILE_CELLS] = Cell.RED_TILE + self.orders[indices]
            return boards, np.full(len(indices), _THIRD_START)
        boards = np.tile(_FIRST_BOARD, (len(indices), 1))
        boards[rows, self._sign_cells[indices]] = Cell.RED_SIGN + self.colours[indices]
        return boards, np.full(len(indices), _FIRST_START)

    def _act(self, here: Array, rewards: Array) -> None:
        touching = (here >= Cell.RED_TILE) & (here <= Cell.BLUE_TILE)
        if touching.any():
            self._pay(touching & (here == Cell.RED_TILE + self.colours), rewards)
            (rows,) = touching.nonzero()
            self.boards[rows[:, None], _TILE_CELLS] = Cell.FLOOR

    @property
    def goals(self) -> Array:
        """
        :return: the cells of the tiles with the right colour in the third room, (N,)
        """
        tiles: Array = _TILE_CELLS[(self.orders == self.colours[:, None]).argmax(axis=1)]
        return tiles

    def _cue(self, index: int) -> tuple[Cell, bool]:
        return Cell(Cell.RED_TILE + int(self.colours[index])), True
