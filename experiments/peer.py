"""SHMPPO beside sb3-contrib's RecurrentPPO: the same steps and settings, returns and seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.base import Experiment, Run
from experiments.figures import table
from experiments.reporting import mean_and_interval, training_report
from experiments.settings import block_arguments, training_runs, with_memory

if TYPE_CHECKING:
    from pandas import DataFrame

NOVEL_ENVS = [
    "CartPoleNoVel-v0",
    "PendulumNoVel-v0",
    "AcrobotNoVel-v0",
    "MountainCarContinuousNoVel-v1",
    "LunarLanderNoVel-v0",
]
# The small budget has the first
MINIGRID_ENVS = [f"MiniGrid-Memory{size}-v0" for size in ("S7", "S11", "S13", "S17Random")]
AGENTS = {name: with_memory(name) for name in ("shm", "gru", "lstm", "mlp")}
PEER = "RecurrentPPO"


def settings(env: str) -> dict[str, Any]:
    """
    :param env: one of ``NOVEL_ENVS`` or ``MINIGRID_ENVS``
    :return: arguments of :func:`~experiments.training.train`, those of the block in ``hyperparams/``, which names all whose
        defaults differ between SHMPPO and RecurrentPPO
    """
    arguments = block_arguments("shm_ppo", env)
    arguments["model"].setdefault("policy_kwargs", {})
    return {**arguments, "eval_episodes": 100}


def _runs(budget: str, seeds: int, envs: list[str], agents: list[str], beside: str) -> list[Run]:
    # The paper has no such environments: its budget is the small one
    budget = "smoke" if budget == "smoke" else "small"
    runs = []
    for run in training_runs("shm_ppo", budget, seeds, dict(small=envs), dict(small=agents), AGENTS, settings):
        runs.append(run)
        if run.kwargs["setting"] == beside:
            name = run.id.replace(f"_{beside}_", f"_{PEER}_")
            function = "experiments.training:train_recurrent_ppo"
            runs.append(replace(run, id=name, function=function, kwargs={**run.kwargs, "setting": PEER}))
    return runs


def _novel_runs(budget: str, seeds: int) -> list[Run]:
    return _runs(budget, seeds, NOVEL_ENVS, ["shm", "gru", "lstm", "mlp"], beside="lstm")


def _minigrid_runs(budget: str, seeds: int) -> list[Run]:
    envs = MINIGRID_ENVS if budget == "paper" else MINIGRID_ENVS[:1]
    return _runs(budget, seeds, envs, ["shm", "gru", "mlp"], beside="gru")


def _report(rows: DataFrame, folder: Path) -> str:
    evaluations = rows[rows["kind"] == "evaluation"]
    lines = []
    for env, of_env in evaluations.groupby("env", sort=False):
        peer = of_env[of_env["setting"] == PEER]["seconds"].median()  # NaN if it has not run
        for setting, part in of_env.groupby("setting", sort=False):
            seconds = part["seconds"].median()
            returns = part["return"].to_numpy(dtype=float)
            ratio = f"{peer / seconds:.1f}" if seconds > 0 and not np.isnan(peer) else ""
            lines.append([env, setting, mean_and_interval(returns, 1), f"{seconds:,.0f}", ratio])
    header = [
        "environment",
        "agent",
        "return [95% interval]",
        "the processor's seconds of training",
        f"times as fast as {PEER}",
    ]
    return f"{table(header, lines)}\n\n{training_report(rows, folder)}"


NOVEL = Experiment(
    "novel",
    f"Environments without velocities, as on the page of sb3-contrib's {PEER}: SHMPPO with several memories beside it.",
    _novel_runs,
    _report,
)

MINIGRID = Experiment(
    "minigrid",
    f"MiniGrid-Memory: SHMPPO beside {PEER}. 0.5 is guessing which of two objects was seen.",
    _minigrid_runs,
    _report,
)
