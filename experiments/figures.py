"""What the figures and tables of the experiments have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_shm.files import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (jfly.uni-koeln.de/color): told apart by colour-blind readers, too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style(i: int) -> dict[str, Any]:
    """
    :param i: number of a line in its figure
    :return: arguments of ``plot``: a colour and a marker of its own, from the eighth line on dashed
    """
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    return dict(color=colour, marker=marker, markersize=4, linewidth=1.5, linestyle="-" if i < len(COLOURS) else "--")


def make_plots(
    columns: int = 1, width: float = 5.0, height: float = 3.8, rows: int = 1, **kwargs: Any
) -> tuple[Figure, list[Any]]:
    """
    :param columns: number of plots side by side
    :param width: of each plot, in inches
    :param height: of each plot, in inches
    :param rows: number of plots one below the other
    :param kwargs: further arguments of matplotlib's ``Figure.subplots``
    :return: the figure, which belongs to no window, and its plots, row by row
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def save(figure: Figure, folder: Path, name: str) -> str:
    """
    :param figure: figure
    :param folder: where to write ``name``.png and ``name``.svg
    :param name: name of the figure
    :return: a line of Markdown that shows it
    """
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"{name}.{suffix}")
    return f"![{name}]({name}.png)"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """
    :param header: names of the columns
    :param rows: cells of each row
    :return: a table in Markdown
    """
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
