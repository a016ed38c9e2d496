"""What a room of the grid worlds is made of: cells, their colours, boards of them."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Cell(IntEnum):
    """What a cell of a board holds."""

    FLOOR = 0
    WALL = 1
    OUTSIDE = 2  # looks like floor, but nobody can go there
    APPLE = 3
    KEY = 4
    INDICATOR = 5
    DOOR = 6
    OPEN_DOOR = 7
    # Three colours that are looked at, then three that are walked on
    RED_SIGN = 8
    GREEN_SIGN = 9
    BLUE_SIGN = 10
    RED_TILE = 11
    GREEN_TILE = 12
    BLUE_TILE = 13
    PLAYER = 14


_FLOOR = (800, 800, 800)
_DOOR = (529, 808, 922)
_RED, _GREEN, _BLUE = (1000, 0, 0), (0, 1000, 0), (0, 0, 1000)
# In thousandths, in the order of Cell. pycolab cuts the fraction off
_THOUSANDTHS = [
    *(_FLOOR, (100, 100, 100), _FLOOR, (550, 700, 0), (627, 321, 176), (1000, 1000, 1000), _DOOR, _DOOR),
    *(_RED, _GREEN, _BLUE, _RED, _GREEN, _BLUE, (898, 584, 430)),
]
COLOURS = (np.array(_THOUSANDTHS) * 255 // 1000).astype(np.uint8)
"""Red, green and blue of each cell, (15, 3)."""

SOLID = np.isin(
    np.arange(len(Cell)),
    [Cell.WALL, Cell.OUTSIDE, Cell.INDICATOR, Cell.DOOR, Cell.RED_SIGN, Cell.GREEN_SIGN, Cell.BLUE_SIGN],
)
"""Which cells nobody can enter, (15,)."""

# What is seen where the player is: the player, but doors are drawn over it
SEEN_AT_PLAYER = np.full(len(Cell), Cell.PLAYER)
SEEN_AT_PLAYER[Cell.OPEN_DOOR] = Cell.OPEN_DOOR

ROWS, COLUMNS = 7, 11
VIEW = 5
RIM = VIEW // 2
# A board has a rim as wide as one can see beyond its edge. Its cells are numbered row by row, rim included
WIDTH = COLUMNS + 2 * RIM
N_CELLS = (ROWS + 2 * RIM) * WIDTH
MOVES = np.array([-WIDTH, WIDTH, -1, 1])
"""What an action (north, south, west, east) adds to a cell's number."""
WINDOW = (np.arange(-RIM, RIM + 1)[:, None] * WIDTH + np.arange(-RIM, RIM + 1)).ravel()


def cells_of(room: tuple[str, ...], symbol: str) -> NDArray[np.int64]:
    """
    :param room: a room's rows as text
    :param symbol: one character
    :return: the numbers of the cells that hold it, row by row
    """
    rows, columns = np.nonzero(np.array([list(row) for row in room]) == symbol)
    return (rows + RIM) * WIDTH + columns + RIM


def board_of(room: tuple[str, ...], **symbols: Cell) -> NDArray[np.int64]:
    """
    :param room: a room's rows as text; "#" is a wall
    :param symbols: what other characters stand for, floor if they are not named
    :return: the board, (N_CELLS,), Cell numbers
    """
    board = np.full(N_CELLS, Cell.OUTSIDE, dtype=np.int64)
    board.reshape(-1, WIDTH)[RIM:-RIM, RIM:-RIM] = Cell.FLOOR
    board[cells_of(room, "#")] = Cell.WALL
    for symbol, cell in symbols.items():
        board[cells_of(room, symbol)] = cell
    return board
