"""Every memory of the package at the same small budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_shm.experiments.base import Experiment, Run
from sb3_shm.experiments.drawing import table
from sb3_shm.experiments.reporting import learning_curves, mean_and_interval
from sb3_shm.memory import MEMORIES

if TYPE_CHECKING:
    from pandas import DataFrame

ENVS = ("RepeatFirstEasy-v0", "RepeatPreviousEasy-v0")
# Settings with which a GRU learns both tasks; gae_lambda is low because a reward depends on the latest action only
SMALL_PPO: dict[str, Any] = dict(
    learning_rate="lin_0.001", n_steps=64, batch_size=1024, n_epochs=10, gae_lambda=0.5, ent_coef=0.01
)
STEPS = {"smoke": 512, "small": 204_800, "paper": 15_000_000}


def runs(budget: str, seeds: int) -> list[Run]:
    """
    :param budget: one of :data:`~sb3_shm.experiments.base.BUDGETS`
    :param seeds: number of seeds
    :return: every memory on every task: same encoder, position input, heads and settings of PPO
    """
    smoke = budget == "smoke"
    return [
        Run(
            f"{env}_{memory}_{seed}",
            "sb3_shm.experiments.training:train_ppo",
            dict(
                env=env,
                setting=memory,
                seed=seed,
                n_envs=8 if smoke else 64,
                n_timesteps=STEPS[budget],
                eval_episodes=5 if smoke else 200,
                model=dict(
                    **{**SMALL_PPO, **(dict(batch_size=128, n_epochs=1) if smoke else {})},
                    policy_kwargs=dict(memory=memory, position="sine"),
                ),
            ),
        )
        for seed in range(seeds)
        for env in (ENVS[:1] if smoke else ENVS)
        for memory in MEMORIES
    ]


def report(rows: DataFrame, folder: Path) -> str:
    """
    :param rows: of the finished runs
    :param folder: where the figures go
    :return: a table with a line for each memory and task
    """
    figure = learning_curves(rows, folder)
    evaluations = rows[rows["kind"] == "evaluation"]
    lines = []
    for env, of_env in evaluations.groupby("env", sort=False):
        base = of_env.loc[of_env["setting"] == "mlp", "return"].mean()
        means = of_env.groupby("setting")["return"].mean().sort_values(ascending=False)
        for memory in means.index:
            part = of_env[of_env["setting"] == memory].sort_values("seed")
            first = part.iloc[0]
            lines.append(
                [
                    env,
                    memory,
                    mean_and_interval(part["return"]),
                    f"{part['return'].mean() - base:+.3f}",
                    ", ".join(f"{score:.3f}" for score in part["return"]),
                    f"{first['state_size']:,.0f}",
                    f"{first['parameter_count']:,.0f}",
                    f"{(part['timesteps'] / part['seconds']).median():,.0f}",
                ]
            )
    steps = evaluations["timesteps"].max()
    cells = table(
        ["task", "memory", "return [95% interval]", "against mlp", "per seed", "state", "parameters", "steps/s"], lines
    )
    return (
        f"{steps:,.0f} environment steps each. Return of the deterministic policy on new episodes after training, mean over "
        f"the seeds. State: floating-point numbers per environment. Parameters: of the memory alone.\n\n{cells}\n\n{figure}"
    )


EXPERIMENT = Experiment("memories", "What does each memory learn at the same small budget?", runs, report)
