"""Small pictures as XHTML: images, heat maps, bars and lines. Numbers of a step are drawn in a millisecond or two."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLUE, ORANGE = "#0072B2", "#D55E00"


def number(value: float) -> str:
    """
    :param value: a number
    :return: with as many digits as a reader wants
    """
    return f"{value:.3g}" if np.isfinite(value) else str(value)


def image(pixels: NDArray[np.uint8], title: str, css_class: str = "picture", height: int = 400) -> str:
    """
    :param pixels: (height, width, 3) or (height, width), 0 to 255
    :param title: what it shows
    :param css_class: how large it is shown
    :param height: about how many pixels high it may be; what is larger is made smaller, by a whole number
    :return: the picture
    """
    from PIL import Image  # comes with matplotlib

    file = BytesIO()
    Image.fromarray(pixels).reduce(max(1, len(pixels) // height)).save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    text = escape(title)
    return f'<img class="{css_class}" alt="{text}" title="{text}" src="data:image/png;base64,{data}"/>'


def heat_map(table: NDArray[np.floating[Any]], limit: float, title: str) -> str:
    """
    :param table: (rows, columns); where it is NaN there is nothing
    :param limit: the number that is as red as can be; its negative is as blue
    :param title: what it shows
    :return: a picture with a scale below it
    """
    from matplotlib import colormaps

    colours = colormaps["RdBu_r"]
    pixels = (255 * colours((np.clip(table / limit, -1, 1) + 1) / 2)[..., :3]).astype(np.uint8)
    pixels[np.isnan(table)] = 255
    scale = image((255 * colours(np.linspace(0, 1, 64))[None, :, :3]).astype(np.uint8), "scale", "scale")
    rows, columns = table.shape
    # A cell is as large as fits, and square
    side = max(1.0, min(16.0, 300 / columns, 300 / rows))
    picture = image(pixels, title, "heat").replace("<img ", f'<img style="width:{side * columns:.0f}px" ')
    return (
        f"<figure><figcaption>{escape(title)}, {rows} × {columns}</figcaption>{picture}"
        f'<div class="legend">{number(-limit)} {scale} {number(limit)}</div></figure>'
    )


def bars(
    values: NDArray[np.floating[Any]],
    names: Sequence[str],
    top: float,
    chosen: int | None = None,
    signed: bool = False,
) -> str:
    """
    A bar for each number, a line each.

    :param values: (n,)
    :param names: of each
    :param top: the number of the longest bar, above 0
    :param chosen: which one is marked
    :param signed: 0 is in the middle, negative numbers go to the left of it
    :return: a table
    """
    rows = []
    for i, (value, name) in enumerate(zip(values.tolist(), names, strict=True)):
        width = min(abs(value) / top, 1) * (50 if signed else 100)
        left = 50 - width * (value < 0) if signed else 0
        style = f"width:{width:.1f}%;margin-left:{left:.1f}%;background:{ORANGE if i == chosen else BLUE}"
        rows.append(
            f"<tr><th>{escape(name)}</th><td class='track{' signed' * signed}'><div class='bar' style='{style}'></div></td>"
            f"<td class='number'>{number(value)}{' ◀' if i == chosen else ''}</td></tr>"
        )
    return f"<table class='bars'>{''.join(rows)}</table>"


def columns(values: NDArray[np.floating[Any]], now: int, top: float, label: str) -> str:
    """
    A column for each step, those up to now filled, with an orange mark at now.

    :param values: (T,)
    :param now: the step that is shown
    :param top: the number at the upper edge
    :param label: what a column's number is, shown when it is pointed at
    :return: the chart
    """
    t, height = len(values), 90
    width = 900 / t
    shapes = [
        f'<rect x="{width * s:.2f}" y="{height * (1 - min(v / top, 1)):.2f}" width="{max(width - 0.6, 0.6):.2f}" '
        f'height="{height * min(v / top, 1):.2f}" fill="{BLUE}"><title>step {s}: {label} {number(v)}</title></rect>'
        for s, v in enumerate(values[: now + 1].tolist())
    ]
    return _chart(shapes, now, t, (number(top), "0"))


def line(values: NDArray[np.floating[Any]], now: int, title: str) -> str:
    """
    :param values: (T,)
    :param now: the step that is marked
    :param title: what it shows
    :return: a line over all steps
    """
    t, height = len(values), 90
    low, high = float(np.min(values)), float(np.max(values))
    spread = max(high - low, 1e-9)
    points = " ".join(
        f"{900 * (s + 0.5) / t:.2f},{height * (1 - (v - low) / spread):.2f}" for s, v in enumerate(values.tolist())
    )
    shape = (
        f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="2"><title>{escape(title)}</title></polyline>'
    )
    return _chart([shape], now, t, (number(high), number(low)))


def _chart(shapes: Sequence[str], now: int, t: int, edges: tuple[str, str]) -> str:
    """:return: shapes on a field of 900 × 90 with what its edges mean, the steps below, and the mark of now"""
    x = 900 * (now + 0.5) / t
    mark = f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="90" stroke="{ORANGE}" stroke-width="1.5" stroke-dasharray="4 3"/>'
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if t / step <= 16)
    ticks = "".join(f'<text x="{900 * (s + 0.5) / t:.2f}" y="104" text-anchor="middle">{s}</text>' for s in range(0, t, every))
    return (
        '<svg class="chart" viewBox="-60 -6 964 114" role="img"><rect x="0" y="0" width="900" height="90" class="field"/>'
        f'<text x="-6" y="8" text-anchor="end">{edges[0]}</text><text x="-6" y="90" text-anchor="end">{edges[1]}</text>'
        f"{''.join(shapes)}{mark}{ticks}</svg>"
    )
