"""The decision grid: which form of SHM is the default, because it learns best over all of these tasks and not on one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.base import Experiment, Run
from experiments.figures import table
from experiments.reporting import learning_curves, mean_and_interval
from experiments.settings import training_runs, with_memory
from experiments.variants import SHM_VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame

AGENTS = {
    **{name: with_memory(memory, **kwargs) for name, (memory, kwargs) in SHM_VARIANTS.items()},
    **{name: with_memory(name) for name in ("shm_paper", "gru", "lstm")},
}
# What is reported, and of it what guessing or no memory makes and the most there is: 0 and 1 of the score
TASKS = {
    "CartPole-v1": ("return", 22.0, 500.0),
    "CartPoleNoVel-v0": ("return", 50.0, 500.0),
    "RepeatFirstEasy-v0": ("return", -0.5, 1.0),
    "RepeatPreviousEasy-v0": ("return", -0.5, 1.0),
    "AutoencodeEasy-v0": ("return", -0.5, 1.0),
    "VisualMatch60-v0": ("success", 1 / 3, 1.0),
    "EndlessTMaze-v0": ("return", 0.0, 5.0),
}


def settings(env: str) -> dict[str, Any]:
    """
    :param env: one of ``TASKS``
    :return: arguments of :func:`~experiments.training.train`, the same for every memory
    """
    if env == "CartPole-v1":  # every default of SHMPPO
        return dict(n_envs=1, n_timesteps=20_000, model=dict(policy_kwargs={}))
    if env == "CartPoleNoVel-v0":  # those of sb3-contrib's test of RecurrentPPO
        contrib = dict(learning_rate=7e-4, n_steps=128, batch_size=256, n_epochs=10, max_grad_norm=1.0, gae_lambda=0.98)
        return dict(n_envs=8, n_timesteps=50_000, normalize=True, model=dict(**contrib, policy_kwargs={}))
    model: dict[str, Any] = dict(
        learning_rate="lin_0.001",
        n_steps=64,
        batch_size=1024,
        ent_coef=0.01,
        gae_lambda=0.5,
        vf_coef=0.1,
        policy_kwargs=dict(position="sine"),
    )
    lengths = {"RepeatFirstEasy-v0": 200_000, "RepeatPreviousEasy-v0": 500_000, "VisualMatch60-v0": 3_000_000}
    n_timesteps = lengths.get(env, 1_000_000)
    if env == "AutoencodeEasy-v0":
        model |= dict(n_steps=128)
    elif env == "EndlessTMaze-v0":
        model |= dict(n_steps=128, gae_lambda=0.95)
    elif env == "VisualMatch60-v0":  # whole episodes, and entropy, else one tile is chosen before the colour is known to count
        model |= dict(n_steps=85, batch_size=None, gamma=0.9, gae_lambda=0.9, ent_coef=0.1, n_epochs=5)
    return dict(n_envs=64, n_timesteps=n_timesteps, model=model)


def _runs(budget: str, seeds: int) -> list[Run]:
    # The paper has no such grid: its budget is the small one
    budget = "smoke" if budget == "smoke" else "small"
    # First of all seeds what users compare, then SHM's parts
    memories = [name for name in AGENTS if "," not in name]
    parts = [name for name in AGENTS if "," in name]
    envs = {"small": list(TASKS)}
    return [
        run
        for agents in (memories, parts)
        for run in training_runs("shm_ppo", budget, seeds, envs, {"small": agents}, AGENTS, settings)
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    evaluations = rows[rows["kind"] == "evaluation"]
    envs = [env for env in TASKS if env in set(evaluations["env"])]
    lines = []
    for agent, of_agent in evaluations.groupby("setting", sort=False):
        cells, scores = [], []
        for env in envs:
            measure, low, high = TASKS[env]
            values = of_agent[of_agent["env"] == env].sort_values("seed")[measure].to_numpy(dtype=float)
            cells.append(mean_and_interval(values, 0 if high > 5 else 2) if len(values) else "")
            scores.append((values - low) / (high - low))
        # Of a grid that has not finished: with fewer seeds in one task than in another there is no score yet
        is_complete = len({len(score) for score in scores}) == 1
        mean = sum(scores) / len(scores) if is_complete else np.array([])
        lines.append((mean.mean() if len(mean) else -1.0, [agent, mean_and_interval(mean, 2) if len(mean) else "", *cells]))
    header = ["agent", "score", *(f"{env}, {TASKS[env][0]}" for env in envs)]
    note = (
        "Deterministic policy in new episodes after training: mean over the seeds, 95% interval (bootstrap). Score: the "
        "mean over the tasks of what was reached between guessing, or acting without memory (0), and the most there is (1)."
    )
    best_first = [line for _, line in sorted(lines, key=lambda line: -line[0])]
    return "\n\n".join((table(header, best_first), note, learning_curves(rows, folder)))


EXPERIMENT = Experiment(
    "defaults",
    "Which form of SHM learns best over all of these tasks? Its parts one by one, beside the published form, GRU and LSTM.",
    _runs,
    _report,
)
