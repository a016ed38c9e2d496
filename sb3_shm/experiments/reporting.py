"""Means over seeds with bootstrap confidence intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sb3_shm.experiments.drawing import make_figure, save, style

if TYPE_CHECKING:
    from pandas import DataFrame

RESAMPLES = 2000
LINES = ("-", "--", ":")


def interval(scores: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """
    The 95% confidence interval of a mean over seeds by bootstrap: percentiles of the means of resampled seeds, with the same
    random numbers each time. With few seeds it is narrower than the truth.

    :param scores: one per seed; (seeds, tasks) for the mean over tasks, each task's seeds resampled by themselves (the
        stratified bootstrap of Agarwal et al., NeurIPS 2021)
    :return: lower and upper end; nan for one seed, which tells nothing
    """
    from scipy.stats import bootstrap

    tasks = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1).T
    if tasks.shape[1] < 2:
        return float("nan"), float("nan")
    result = bootstrap(
        tuple(tasks),
        lambda *samples, axis: np.mean([sample.mean(axis=axis) for sample in samples], axis=0),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


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


def learning_curves(rows: DataFrame, folder: Path, name: str = "learning_curves") -> str:
    """
    Draw a plot per environment: the mean return over the seeds of each setting while it trains, and its confidence interval.

    :param rows: of :func:`sb3_shm.experiments.training.train`
    :param folder: where the figures go
    :param name: their name without suffix
    :return: a line of Markdown that shows the figure
    """
    curves = rows[rows["kind"] == "curve"]
    environments, settings = list(dict.fromkeys(curves["env"])), list(dict.fromkeys(curves["setting"]))
    figure, axes = make_figure(len(environments), height=4.2)
    for ax, env in zip(axes, environments, strict=True):
        for i, setting in enumerate(settings):
            part = curves[(curves["env"] == env) & (curves["setting"] == setting)]
            if part.empty:
                continue
            returns = part.pivot_table(index="timesteps", columns="seed", values="return")
            # A seed without an episode in some part of the training is left out there
            bounds = np.array([interval(values[~np.isnan(values)]) for values in returns.to_numpy()])
            line = {**style(i), "markevery": 10, "linestyle": LINES[i // 7 % len(LINES)]}
            ax.plot(returns.index, returns.mean(axis=1), label=setting, **line)
            ax.fill_between(returns.index, bounds[:, 0], bounds[:, 1], color=line["color"], alpha=0.15, linewidth=0)
        ax.set(title=env, xlabel="environment steps", ylabel="episode return while training")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return save(figure, folder, name)
