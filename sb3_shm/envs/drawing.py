"""
Drawing on RGB images with numpy alone, for ``render()``, and boards of coloured tiles. Rows count from the top,
columns from the left; what lies outside the image is cut off. The functions draw in place.
"""

from __future__ import annotations

import colorsys
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Image: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

PAPER = (240, 240, 240)
INK = (40, 40, 40)
FACE_DOWN = (150, 160, 175)
SUITS = np.array([INK, (40, 90, 220), (30, 150, 60), (215, 40, 40)], dtype=np.uint8)
"""Colours of a four-colour deck: spades, diamonds, clubs, hearts; (4, 3)."""


def blank(height: int, width: int, colour: Colour = (255, 255, 255)) -> Image:
    """
    :param height: pixels
    :param width: pixels
    :param colour: red, green and blue, 0 to 255 each
    :return: an image of one colour, (height, width, 3)
    """
    return np.full((height, width, 3), colour, dtype=np.uint8)


def fill_rectangle(image: Image, top: int, left: int, bottom: int, right: int, colour: Colour) -> None:
    """
    :param image: (height, width, 3)
    :param top: first row
    :param left: first column
    :param bottom: the row after the last
    :param right: the column after the last
    :param colour: red, green and blue, 0 to 255 each
    """
    # A negative bound would count from the other side of the image
    image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour


def fill_disc(image: Image, row: float, column: float, radius: float, colour: Colour) -> None:
    """
    :param image: (height, width, 3)
    :param row: of the centre
    :param column: of the centre
    :param radius: in pixels; every pixel whose centre is no further away is filled
    :param colour: red, green and blue, 0 to 255 each
    """
    rows = np.arange(len(image))[:, None] - row
    columns = np.arange(image.shape[1]) - column
    image[rows**2 + columns**2 <= radius**2] = colour


def draw_line(image: Image, points: ArrayLike, colour: Colour, thickness: int = 1) -> None:
    """
    A line through two or more points; a single point makes a dot.

    :param image: (height, width, 3)
    :param points: row and column of each, (n, 2)
    :param colour: red, green and blue, 0 to 255 each
    :param thickness: pixels
    """
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if not len(corners):
        return
    # One step per pixel of the longer axis leaves no gap
    lengths = np.ceil(np.abs(np.diff(corners, axis=0)).max(axis=1, initial=0)).astype(int)
    pieces = [
        np.linspace(start, end, max(n, 1), endpoint=False)
        for start, end, n in zip(corners[:-1], corners[1:], lengths, strict=True)
    ]
    pixels = np.rint(np.concatenate([*pieces, corners[-1:]])).astype(int) - (thickness - 1) // 2
    brush = np.stack(np.meshgrid(np.arange(thickness), np.arange(thickness), indexing="ij"), axis=-1).reshape(-1, 2)
    rows, columns = (pixels[:, None] + brush).reshape(-1, 2).T
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    image[rows[inside], columns[inside]] = colour


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
    image[:, 2:-2, :, 2:-2] = board[:, None, :, None]
    if frames is not None:  # wider than what is between tiles, so that they are seen in a small picture, too
        framed = np.asarray(frames).nonzero()
        inner = slice(max(3, size // 6), -max(3, size // 6))
        image[framed[0], :, framed[1]] = (255, 150, 0)
        image[framed[0], inner, framed[1], inner] = board[framed][:, None, None]
    return image.reshape(rows * size, columns * size, 3)
