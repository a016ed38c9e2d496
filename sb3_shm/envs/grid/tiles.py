"""
Boards of coloured tiles, for the ``render()`` of card and board games.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import ArrayLike

from sb3_shm.envs.drawing import Image

PAPER = (240, 240, 240)
INK = (40, 40, 40)
FACE_DOWN = (150, 160, 175)
SUITS = np.array([INK, (40, 90, 220), (30, 150, 60), (215, 40, 40)], dtype=np.uint8)
"""Colours of a four-colour deck: spades, diamonds, clubs, hearts; (4, 3)."""


def hues(number: int) -> Image:
    """
    :param number: how many
    :return: colours that differ as much as possible, (number, 3)
    """
    colours = [colorsys.hsv_to_rgb(i / number, 0.85, (0.95, 0.65)[i % 2]) for i in range(number)]
    return (255 * np.array(colours)).astype(np.uint8)


def tiles(colours: ArrayLike, frames: ArrayLike | None = None, size: int = 24) -> Image:
    """
    :param colours: of each tile, (rows, columns, 3), 0 to 255
    :param frames: which tiles get an orange frame, (rows, columns) bool
    :param size: of a tile in pixels, 8 or more
    :return: the board, (rows * size, columns * size, 3)
    """
    board = np.asarray(colours, dtype=np.uint8)
    rows, columns = board.shape[:2]
    image = np.empty((rows, size, columns, size, 3), dtype=np.uint8)
    image[:] = PAPER
    if frames is not None:
        framed_rows, framed_columns = np.asarray(frames).nonzero()
        image[framed_rows, :, framed_columns] = (255, 150, 0)
    image[:, 2:-2, :, 2:-2] = board[:, None, :, None]
    return image.reshape(rows * size, columns * size, 3)
