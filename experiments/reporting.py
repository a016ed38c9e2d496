"""Means over seeds with bootstrap confidence intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.figures import COLOURS, make_plots, save, style, table
from experiments.references import reference_returns

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RESAMPLES = 2000
# Lines of what a curve is to be compared with
REFERENCES = {"perfect": "--", "random": ":"}


def interquartile_mean(scores: NDArray[np.float64], axis: int | None = None) -> Any:
    """
    The mean without the lowest and the highest quarter (Agarwal et al., NeurIPS 2021): of all runs of all tasks together.

    :param scores: numbers
    :param axis: over which, None for all
    :return: the mean, or means
    """
    from scipy.stats import trim_mean

    return trim_mean(scores, 0.25, axis=axis)


def interval(scores: Sequence[float] | NDArray[np.float64], statistic: Callable[..., Any] = np.mean) -> tuple[float, float]:
    """
    The 95% confidence interval of a mean over seeds by bootstrap: percentiles of the means of resampled seeds, with the same
    random numbers each time. With few seeds it is narrower than the truth.

    :param scores: one per seed; (seeds, tasks) for the mean over tasks, each task's seeds resampled by themselves (the
        stratified bootstrap of Agarwal et al., NeurIPS 2021)
    :param statistic: ``numpy.mean`` or :func:`interquartile_mean`, of all numbers
    :return: lower and upper end; nan for one seed, which tells nothing
    """
    from scipy.stats import bootstrap

    tasks = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1).T
    if tasks.shape[1] < 2:
        return float("nan"), float("nan")
    result = bootstrap(
        tuple(tasks),
        lambda *samples, axis: statistic(np.concatenate(samples, axis=axis), axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_and_interval(scores: NDArray[np.float64], digits: int, statistic: Callable[..., Any] = np.mean) -> str:
    """
    :param scores: as for :func:`interval`
    :param digits: decimal places
    :param statistic: as for :func:`interval`
    :return: e.g. "0.91 [0.85, 0.96]"
    """
    low, high = interval(scores, statistic)
    bounds = "" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{statistic(scores):.{digits}f}{bounds}"


def learning_curves(rows: DataFrame, folder: Path, measure: str = "return") -> str:
    """
    Draw the mean over the seeds while it trains, and its confidence interval, with lines for random actions and a perfect
    player where they are known: a plot per environment with a line per setting or, of more settings than can be told apart, a
    plot per setting with a line per environment.

    :param rows: of :func:`experiments.training.train`
    :param folder: where the figures go, "learning_curves", "learning_curves_2", ..., with three environments each
    :param measure: "return" or "success", a column of the curves
    :return: Markdown that shows them
    """
    curves = rows[rows["kind"] == "curve"]
    environments, settings = list(dict.fromkeys(curves["env"])), list(dict.fromkeys(curves["setting"]))
    lines = []
    for begin in range(0, len(environments), 3):
        group = environments[begin : begin + 3]
        name = f"learning_curves_{begin // 3 + 1}" if begin else "learning_curves"
        of_group = curves[curves["env"].isin(group)]
        draw = _plot_per_setting if len(settings) > len(COLOURS) else _plot_per_environment
        lines.append(save(draw(of_group, group, settings, measure), folder, name))
    return "\n\n".join(lines)


def _plot_per_environment(curves: DataFrame, environments: Sequence[str], settings: Sequence[str], measure: str) -> Figure:
    figure, axes = make_plots(len(environments), height=4.2)
    for ax, env in zip(axes, environments, strict=True):
        for i, setting in enumerate(settings):
            _draw_curve(ax, curves[(curves["env"] == env) & (curves["setting"] == setting)], setting, style(i), measure)
        _draw_references(ax, env, "grey", measure)
        ax.set(title=env, xlabel="environment steps", ylabel=f"episode {measure} while training")
    # A setting or a line may be in some plots only
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
    return figure


def _plot_per_setting(curves: DataFrame, environments: Sequence[str], settings: Sequence[str], measure: str) -> Figure:
    columns = 5
    rows = -(-len(settings) // columns)
    figure, axes = make_plots(columns, width=2.5, height=2.2, rows=rows, sharex=True, sharey=True)
    for ax, setting in zip(axes, settings, strict=False):
        for i, env in enumerate(environments):
            _draw_curve(ax, curves[(curves["env"] == env) & (curves["setting"] == setting)], env, style(i), measure)
            _draw_references(ax, env, style(i)["color"], measure)
        ax.set_title(setting, fontsize="medium")
    for i in range(len(settings), len(axes)):
        axes[i].remove()
        axes[i - columns].tick_params(labelbottom=True)
    figure.supxlabel("environment steps")
    figure.supylabel(f"episode {measure} while training")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    labels = sorted(handles, key=lambda label: label in REFERENCES)
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside upper center", ncols=len(labels), fontsize="small"
    )
    return figure


def _draw_references(ax: Any, env: str, colour: str, measure: str) -> None:
    if measure != "return":
        return
    for (player, line), value in zip(REFERENCES.items(), map(reference_returns(env).get, REFERENCES), strict=True):
        if value is not None:
            ax.axhline(value, color=colour, linestyle=line, linewidth=1, label=player)


def _draw_curve(ax: Any, curves: DataFrame, label: str, line: dict[str, Any], measure: str) -> None:
    if curves.empty:
        return
    returns = curves.pivot_table(index="timesteps", columns="seed", values=measure)
    from matplotlib.ticker import EngFormatter

    # A seed without an episode in some part of the training is left out there
    bounds = np.array([interval(values[~np.isnan(values)]) for values in returns.to_numpy()])
    ax.plot(returns.index, returns.mean(axis=1), label=label, markevery=max(1, len(returns) // 5), **line)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k instead of 200000
    ax.fill_between(returns.index, bounds[:, 0], bounds[:, 1], color=line["color"], alpha=0.15, linewidth=0)


def training_report(
    rows: DataFrame,
    folder: Path,
    measure: str = "return",
    scale: float = 1.0,
    against: str | None = None,
    paper: Mapping[tuple[str, str], str] | None = None,
    note: str = "",
) -> str:
    """
    Report runs that trained agents: a line per environment and setting, the best first, the mean over the environments if
    there are several, and learning curves.

    :param rows: of :func:`experiments.training.train`
    :param folder: where the figures go
    :param measure: "return" or "success"
    :param scale: factor of what is shown
    :param against: a setting with which the others are compared
    :param paper: (environment id, setting) -> the paper's number
    :param note: what to say below the table
    :return: Markdown
    """
    evaluations = rows[rows["kind"] == "evaluation"].sort_values("seed", kind="stable")
    curves = rows[rows["kind"] == "curve"]
    in_curves = measure if curves[measure].notna().all() else "return"  # some tables have no successes while training
    run = ["env", "setting", "seed"]
    last = curves.sort_values("timesteps").groupby(run)[in_curves].last()
    evaluations = evaluations.join(last.rename("training"), on=run)
    digits = 3 if scale == 1 else 1
    columns = [
        "environment",
        "agent",
        "seeds",
        "steps",
        f"{measure} [95% interval]",
        "per seed",
        f"last {in_curves} in training",
    ]
    if against is not None:
        columns.append(f"minus {against}")
    if paper is not None:
        columns.append("paper")
    lines = []
    for env, of_env in evaluations.groupby("env", sort=False):
        means = of_env.groupby("setting", sort=False)[measure].mean()
        for setting in means.sort_values(ascending=False, kind="stable").index:
            part = of_env[of_env["setting"] == setting]
            scores = part[measure].to_numpy(dtype=np.float64) * scale
            line = [env, setting, len(part), f"{part['timesteps'].iloc[0]:,.0f}", mean_and_interval(scores, digits)]
            line.append(", ".join(f"{score:.{digits}f}" for score in scores))
            line.append(f"{part['training'].mean() * scale:.{digits}f}")
            if against is not None:
                line.append(f"{scores.mean() - means.get(against, np.nan) * scale:+.{digits}f}")
            if paper is not None:
                line.append(paper.get((str(env), str(setting)), ""))
            first = part.iloc[0]
            speed = (part["timesteps"] / part["seconds"]).median()
            lines.append([*line, f"{first['state_size']:,.0f}", f"{first['parameter_count']:,.0f}", f"{speed:,.0f}"])
    parts = [table([*columns, "state", "parameters", "steps/s"], lines)]
    parts.append(_mean_over_environments(evaluations, measure, scale, digits))
    parts.append(
        f"{measure.capitalize()} of the deterministic policy in new episodes after training; in training actions are drawn, "
        "and the last of its 50 parts is shown. Intervals: bootstrap over the seeds. State and parameters: numbers of the "
        "memory alone, of the value's or critic's where there are several. Steps/s: of one process, beside whatever else the "
        "machine did."
    )
    parts += [note, learning_curves(rows, folder, in_curves)]
    return "\n\n".join(part for part in parts if part)


def _mean_over_environments(evaluations: DataFrame, measure: str, scale: float, digits: int) -> str:
    """A table of the settings that have a score for each seed in each environment, if there are several environments."""
    scores = evaluations.pivot(index=["setting", "seed"], columns="env", values=measure).dropna()
    n_seeds = evaluations["seed"].nunique()
    if scores.shape[1] < 2:
        return ""
    complete = {name: part.to_numpy() for name, part in scores.groupby(level="setting", sort=False) if len(part) == n_seeds}
    best_first = sorted(complete.items(), key=lambda item: -item[1].mean())
    statistics = (np.mean, interquartile_mean)
    drawn = evaluations.groupby("setting")["training"].mean() * scale
    cells = [
        [name, *(mean_and_interval(matrix * scale, digits, of) for of in statistics), f"{drawn[name]:.{digits}f}"]
        for name, matrix in best_first
    ]
    header = f"mean {measure} over the {scores.shape[1]} environments [95% interval]"
    return table(["agent", header, "interquartile mean", "mean at the end of training"], cells) if cells else ""


def gap_closed(evaluations: DataFrame, without_memory: str) -> str:
    """
    How much of what memory is to gain each agent gains: 0% is the agent without one, 100% the scripted player that knows
    everything, as POPGym Arcade (arXiv 2503.01450) and POBAX (Tao et al., 2025) compare.

    :param evaluations: rows of kind "evaluation"
    :param without_memory: the setting that has no memory
    :return: a table in Markdown, a line per agent and a column per environment; empty if no environment has both ends
    """
    means = evaluations.pivot_table(index="setting", columns="env", values="return", sort=False)
    if without_memory not in means.index:
        return ""
    low = means.loc[without_memory]
    high = means.columns.to_series().map(lambda env: reference_returns(env).get("perfect", float("nan")))
    shares = (100 * (means - low) / (high - low)).dropna(axis="columns", how="all").drop(index=without_memory)
    if shares.empty:
        return ""
    shares["mean"] = shares.mean(axis=1, skipna=False)
    lines = [
        [agent, *("" if np.isnan(value) else f"{value:.0f}%" for value in line)]
        for agent, line in zip(shares.index, shares.to_numpy(), strict=True)
    ]
    title = f"Share of the gap between `{without_memory}` and a player that knows everything:"
    return f"{title}\n\n{table(['agent', *shares.columns], lines)}"
