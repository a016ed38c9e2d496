"""SHMPPO beside sb3-contrib's RecurrentPPO where velocities are hidden: the same steps and settings, returns and seconds."""

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

ENVS = [
    "CartPoleNoVel-v0",
    "PendulumNoVel-v0",
    "AcrobotNoVel-v0",
    "MountainCarContinuousNoVel-v1",
    "LunarLanderNoVel-v0",
]
AGENTS = {name: with_memory(name) for name in ("shm", "gru", "lstm", "mlp")}
PEER = "RecurrentPPO"


def settings(env: str) -> dict[str, Any]:
    """
    :param env: one of ``ENVS``
    :return: arguments of :func:`~experiments.training.train`, those of the block in ``hyperparams/``, which names all whose
        defaults differ between SHMPPO and RecurrentPPO
    """
    arguments = block_arguments("shm_ppo", env)
    arguments["model"].setdefault("policy_kwargs", {})
    return {**arguments, "eval_episodes": 100}


def _runs(budget: str, seeds: int) -> list[Run]:
    # The paper has no such environments: its budget is the small one
    budget = "smoke" if budget == "smoke" else "small"
    runs = []
    for run in training_runs(
        "shm_ppo",
        budget,
        seeds,
        dict(small=ENVS),
        dict(small=list(AGENTS)),
        AGENTS,
        settings,
    ):
        runs.append(run)
        if run.kwargs["setting"] == "lstm":  # the peer's memory
            kwargs = {**run.kwargs, "setting": PEER}
            runs.append(
                replace(
                    run,
                    id=run.id.replace("_lstm_", f"_{PEER}_"),
                    function="experiments.training:train_recurrent_ppo",
                    kwargs=kwargs,
                )
            )
    return runs


def _report(rows: DataFrame, folder: Path) -> str:
    evaluations = rows[rows["kind"] == "evaluation"]
    lines = []
    for env, of_env in evaluations.groupby("env", sort=False):
        peer = of_env[of_env["setting"] == PEER]["seconds"].median()
        for setting, part in of_env.groupby("setting", sort=False):
            seconds = part["seconds"].median()
            returns = part["return"].to_numpy(dtype=float)
            ratio = "" if np.isnan(peer) else f"{peer / seconds:.1f}"
            lines.append([env, setting, mean_and_interval(returns, 1), f"{seconds:,.0f}", ratio])
    header = ["environment", "agent", "return [95% interval]", "seconds of training", f"times as fast as {PEER}"]
    return f"{table(header, lines)}\n\n{training_report(rows, folder)}"


EXPERIMENT = Experiment(
    "novel",
    f"Environments without velocities, as on the page of sb3-contrib's {PEER}: SHMPPO with several memories beside it.",
    _runs,
    _report,
)
