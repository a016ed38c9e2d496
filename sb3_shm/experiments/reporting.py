"""Tables and figures of several runs: means over seeds with bootstrap confidence intervals, by rliable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RESAMPLES = 2000


def interval(scores: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """
    The 95% confidence interval of a mean over seeds: rliable's bootstrap (Agarwal et al., NeurIPS 2021), percentiles of the
    means of resampled seeds, always with the same random numbers. With few seeds it is narrower than the truth.

    :param scores: one per seed; (seeds, tasks) for the mean over tasks, each task resampled by itself
    :return: lower and upper end; nan for one seed, which tells nothing
    """
    from rliable.library import get_interval_estimates

    matrix = np.asarray(scores, dtype=np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if len(matrix) < 2:
        return float("nan"), float("nan")
    _, intervals = get_interval_estimates(
        {"": matrix}, lambda resampled: np.array([resampled.mean()]), reps=RESAMPLES, random_state=np.random.RandomState(0)
    )
    low, high = intervals[""][:, 0]
    return float(low), float(high)


def mean_and_interval(scores: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """
    :param scores: one per seed
    :param scale: factor of what is shown
    :param digits: decimal places
    :return: e.g. "0.91 [0.85, 0.96]"
    """
    values = np.asarray(scores, dtype=np.float64) * scale
    low, high = interval(values)
    bounds = "" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{values.mean():.{digits}f}{bounds}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """
    :param columns: titles
    :param rows: cells, as many as columns
    :return: a table in Markdown
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """
    :param figure: to be written as PNG and SVG, then closed
    :param folder: where
    :param name: name without suffix
    """
    import matplotlib.pyplot as plt

    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=120)
    plt.close(figure)


def learning_curves(rows: DataFrame, folder: Path, name: str = "learning_curves") -> None:
    """
    Draw a panel per environment: the mean return over the seeds of each setting while it trains, and its confidence interval.

    :param rows: of :func:`sb3_shm.experiments.training.train`
    :param folder: where the figures go
    :param name: their name without suffix
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = rows[rows["kind"] == "curve"]
    environments, settings = list(dict.fromkeys(curves["env"])), list(dict.fromkeys(curves["setting"]))
    n_columns = min(len(environments), 3)
    n_lines = -(-len(environments) // n_columns)
    figure, axes = plt.subplots(n_lines, n_columns, figsize=(5.5 * n_columns + 1.5, 4 * n_lines), squeeze=False)
    colours = [plt.get_cmap("tab20" if len(settings) > 10 else "tab10")(i) for i in range(len(settings))]
    for axis in axes.flat[len(environments) :]:
        axis.axis("off")
    for axis, env in zip(axes.flat, environments, strict=False):
        for setting, colour in zip(settings, colours, strict=True):
            part = curves[(curves["env"] == env) & (curves["setting"] == setting)]
            table = part.pivot_table(index="timesteps", columns="seed", values="return")
            if table.empty:
                continue
            axis.plot(table.index, table.mean(axis=1), color=colour, label=setting)
            bounds = np.array([interval(values[~np.isnan(values)]) for values in table.to_numpy()])
            axis.fill_between(table.index, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.15, linewidth=0)
        axis.set_title(env)
        axis.set_xlabel("environment steps")
        axis.set_ylabel("episode return while training")
        axis.grid(alpha=0.3)
    axes.flat[len(environments) - 1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(figure, folder, name)
