"""
Pictures of a trained agent's Stable Hadamard Memory: the matrices M, C and U beside the environment, step by step, and which
past step is remembered now. With ``plots`` of setup.cfg (matplotlib).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sb3_shm.files import open_atomically, save_figure
from sb3_shm.memory.checks import check_in_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from sb3_shm.callbacks.episodes import Episode, Frame, read_out_weights

_INSTALL = 'Pictures need matplotlib: pip install "sb3-shm[plots]"'


def make_figure(**kwargs: Any) -> Figure:
    """
    :param kwargs: arguments of matplotlib's Figure
    :return: a figure that belongs to no window
    :raises ImportError: matplotlib is missing
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return Figure(**kwargs)


def draw_read_out(episode: Episode, path: Path | str) -> None:
    """
    Draw two triangles, now downwards, past steps to the right: :func:`read_out_weights`, what is read of each past step, and
    :func:`influence`, how far each past input counts. What is read need not count: parts may cancel, or be ignored later.

    :param episode: an episode
    :param path: picture to write, .png or .svg
    """
    figure = make_figure(figsize=(11.6, 5.2), layout="constrained")
    for ax, shares, title, label in zip(
        figure.subplots(1, 2, sharey=True),
        (read_out_weights(episode), episode.influence),
        ("Which past step is read now?", "Which past input counts now?"),
        ("share of what is read that step s wrote", "share of the output's change when input s is exchanged"),
        strict=True,
    ):
        image = ax.imshow(_masked(shares), cmap="viridis", interpolation="nearest", vmin=0)
        ax.set(xlabel="past step s", ylabel="step t", title=title)
        figure.colorbar(image, ax=ax, label=label)
    save_figure(figure, path)


def draw_strip(episode: Episode, path: Path | str, steps: Sequence[int] | None = None) -> None:
    """
    Draw the environment, M, C and U at some steps side by side.

    :param episode: an episode
    :param path: picture to write, .png or .svg
    :param steps: which steps, None for six from the first to the last
    :raises ValueError: no step, or one that the episode does not have
    """
    if steps is None:
        steps = sorted({round(step) for step in np.linspace(0, len(episode) - 1, 6)})
    if not len(steps):
        raise ValueError("steps must be one step or more, got none")
    for step in steps:
        check_in_range(f"each step of an episode of {len(episode)} steps", step, low=0, high=len(episode) - 1, integer=True)
    limits = _limits(episode)
    rows = ["frame"] * bool(episode.frames) + list(limits)
    # A row is as high as its pictures, which are as wide as the matrices
    heights = [frame.shape[0] / frame.shape[1] for frame in episode.frames[:1]] + [1.0] * len(limits)
    figure = make_figure(figsize=(1.9 * len(steps) + 0.8, 1.9 * sum(heights) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), len(steps), squeeze=False, height_ratios=heights)
    for column, step in enumerate(steps):
        for row, name in enumerate(rows):
            ax = axes[row, column]
            if name == "frame":
                _show_frame(ax, episode.frames[step])
            else:
                image = _show_matrix(ax, episode, name, step, limits)
                if column == len(steps) - 1:
                    figure.colorbar(image, ax=ax)
            if column == 0:
                ax.set_ylabel(_NAMES.get(name, "environment"))
            if row == 0:
                ax.set_title(f"step {step}: action {_in_short(episode.actions[step])},\nreward {episode.rewards[step]:+.2g}")
    save_figure(figure, path)


def draw_film(episode: Episode, path: Path | str, fps: float = 4.0) -> None:
    """
    Film the episode: the environment, M, C and U, and which past steps are read.

    :param episode: an episode
    :param path: film to write, .gif or .mp4 (which needs moviepy)
    :param fps: steps per second, 0.01 to 100
    :raises ValueError: another kind of file, or ``fps`` out of range
    """
    check_in_range("fps", fps, low=0.01, high=100)  # a GIF counts hundredths of a second, 65,535 at most
    suffix = Path(path).suffix.lower()
    if suffix == ".gif":
        from PIL import Image  # comes with matplotlib

        pictures = [Image.fromarray(picture).quantize(64) for picture in _film(episode)]
        with open_atomically(path) as file:
            pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
    elif suffix == ".mp4":
        try:
            from moviepy import ImageSequenceClip
        except ImportError as error:
            raise ImportError('.mp4 needs moviepy, write a .gif or: pip install "sb3-shm[zoo]"') from error
        clip = ImageSequenceClip(list(_film(episode)), fps=fps)
        with open_atomically(path) as file:  # its name does not say what it is
            clip.write_videofile(file.name, codec="libx264", ffmpeg_params=["-f", "mp4"], logger=None)
    else:
        raise ValueError(f"A film must be a .gif or an .mp4, got {path}")


_NAMES = {"matrix": "memory M", "calibration": "calibration C", "update": "update U"}


def _limits(episode: Episode) -> dict[str, tuple[float, float]]:
    """Range of colours of each matrix, around 0 or, for C, around 1; one outlier must not make all the rest pale."""
    limits = {}
    for name, centre in (("matrix", 0.0), ("calibration", 1.0), ("update", 0.0)):
        reach = max(float(np.quantile((getattr(episode, name) - centre).abs().numpy(), 0.995)), 1e-6)
        limits[name] = (centre - reach, centre + reach)
    return limits


def _in_short(action: Any) -> str:
    return np.array2string(np.asarray(action), precision=2, separator=", ")


def _masked(weights: NDArray[np.float64]) -> Any:
    """The triangle of the past; the future is left blank."""
    return np.ma.masked_array(weights, np.triu(np.ones(weights.shape, dtype=bool), 1))


def _show_frame(ax: Any, frame: Frame) -> Any:
    ax.set(xticks=[], yticks=[])
    return ax.imshow(frame)


def _show_matrix(ax: Any, episode: Episode, name: str, step: int, limits: dict[str, tuple[float, float]]) -> Any:
    low, high = limits[name]
    ax.set(xticks=[], yticks=[])
    return ax.imshow(getattr(episode, name)[step].numpy(), cmap="RdBu_r", vmin=low, vmax=high, interpolation="nearest")


def _film(episode: Episode) -> Iterator[Frame]:
    """:return: a picture per step, (height, width, 3)"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    weights = read_out_weights(episode)
    limits = _limits(episode)
    figure = make_figure(figsize=(9.6, 4.8), dpi=80, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    panels = ["frame"] * bool(episode.frames) + list(limits)
    mosaic = figure.subplot_mosaic([[*panels], ["bars"] * len(panels)], height_ratios=[2.2, 1])
    images = {}
    for name in panels:
        ax: Any = mosaic[name]
        if name == "frame":
            images[name] = _show_frame(ax, episode.frames[0])
        else:
            images[name] = _show_matrix(ax, episode, name, 0, limits)
            figure.colorbar(images[name], ax=ax, location="bottom", shrink=0.9)
            ax.set_title(_NAMES[name])
    axis = mosaic["bars"]
    bars = axis.bar(np.arange(len(episode)), weights[0], width=1.0, color="#0072B2")
    axis.set(xlabel="past step", ylabel="share of the read-out", xlim=(-0.5, len(episode) - 0.5), ylim=(0, 1))
    now = axis.axvline(0, color="#D55E00", label="now")
    axis.legend(loc="upper right")
    for step in range(len(episode)):
        for name, image in images.items():
            image.set_data(episode.frames[step] if name == "frame" else getattr(episode, name)[step].numpy())
        now.set_xdata([step, step])
        for bar, height in zip(bars, weights[step], strict=True):
            bar.set_height(height)
        figure.suptitle(f"step {step}, action {episode.actions[step]}, reward {episode.rewards[step]:+.3g}")
        canvas.draw()
        figure.set_layout_engine("none")  # the places are found, finding them again takes most of the time
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
