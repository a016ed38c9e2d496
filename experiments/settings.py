"""From environments, agents, a budget and seeds to runs that train agents."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from experiments.base import Run
from sb3_shm.zoo.blocks import read_blocks
from sb3_shm.zoo.registration import hyperparams_file

Agent: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the policy_kwargs of a budget to those of this agent."""
ALGORITHMS = {"shm_ppo": "train_ppo", "shm_sac": "train_sac"}
# Each task of the release is trained on some variants and evaluated on the others
EVALUATION = {f"{task}Train{n}-v0": (f"{task}Eval{200 - n}-v0", 200 - n) for task in ("Wind", "PointRobot") for n in (50, 10)}
# What becomes of the arguments of the small budget for a run of some seconds
SMOKE_MODEL: dict[str, dict[str, Any]] = {
    "shm_ppo": dict(n_steps=64, batch_size=128, n_epochs=1),
    "shm_sac": dict(batch_size=2, learning_starts=200, train_freq=50, gradient_steps=1, buffer_size=10_000),
}
SMOKE_RUN = {"shm_ppo": dict(n_envs=4, n_timesteps=1024), "shm_sac": dict(n_envs=2, n_timesteps=600)}


def with_memory(memory: str, **memory_kwargs: Any) -> Agent:
    """
    :param memory: a name of ``sb3_shm.memory.MEMORIES``, for all networks
    :param memory_kwargs: its arguments; of the memory that a budget has already, or of its published form, those that differ
    :return: the agent
    """

    def change(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in policy_kwargs.items() if key not in ("actor_memory", "actor_memory_kwargs")}
        names = {memory, policy_kwargs.get("memory")}
        old = policy_kwargs.get("memory_kwargs", {}) if len(names) == 1 or names == {"shm", "shm_paper"} else {}
        return {**kept, "memory": memory, "memory_kwargs": {**old, **memory_kwargs}}

    return change


@cache
def _blocks(algo: str, release: bool) -> Any:
    return read_blocks(hyperparams_file(algo, release=release))


def block_arguments(algo: str, env: str, release: bool = False) -> dict[str, Any]:
    """
    :param algo: "shm_ppo" or "shm_sac"
    :param env: environment id
    :param release: whether the block in ``hyperparams/release/<algo>.yml`` is meant, if it has one
    :return: arguments of :func:`~experiments.training.train`, from the block in ``hyperparams/<algo>.yml`` or in release's
    """
    model = copy.deepcopy((_blocks(algo, False) | (_blocks(algo, True) if release else {}))[env])
    del model["policy"]
    arguments: dict[str, Any] = dict(n_envs=model.pop("n_envs", 1), n_timesteps=int(model.pop("n_timesteps")))
    if model.pop("normalize", False):
        arguments["normalize"] = True
    wrappers = model.pop("env_wrapper", [])
    if isinstance(wrappers, str):
        arguments["env_wrapper"] = wrappers
    else:
        for wrapper in wrappers:
            (arguments["memory_inputs"],) = wrapper.values()
    return {**arguments, "model": model}


def training_runs(
    algo: str,
    budget: str,
    seeds: int,
    envs: Mapping[str, Sequence[str]],
    agents: Mapping[str, Sequence[str]],
    definitions: Mapping[str, Agent],
    small: Callable[[str], dict[str, Any]],
) -> list[Run]:
    """
    :param algo: "shm_ppo" or "shm_sac"
    :param budget: one of :data:`~experiments.base.BUDGETS`
    :param seeds: number of seeds
    :param envs: environment ids for "small" and "paper"; smoke takes the first one of small
    :param agents: names of agents for "small" and "paper"; smoke takes those of small
    :param definitions: agents by name
    :param small: environment id -> arguments of :func:`~experiments.training.train` for the budget small
    :return: every agent in every environment, seed after seed, so that a part of the grid is a fair comparison, too
    """
    smoke = budget == "smoke"
    runs = []
    for seed in range(seeds):
        for env in envs["small"][:1] if smoke else envs[budget]:
            for agent in agents["small" if smoke else budget]:
                arguments = block_arguments(algo, env, release=True) if budget == "paper" else copy.deepcopy(small(env))
                model = arguments["model"]
                if env in EVALUATION:
                    arguments["eval_env"], arguments["eval_episodes"] = EVALUATION[env]
                if smoke:
                    arguments.update(SMOKE_RUN[algo], eval_episodes=4)
                    model.update(SMOKE_MODEL[algo])
                model["policy_kwargs"] = definitions[agent](model["policy_kwargs"])
                kwargs = dict(env=env, setting=agent, seed=seed, **arguments)
                name = re.sub("[^A-Za-z0-9_]+", "-", agent.replace("θ", "theta"))
                runs.append(Run(f"{env}_{name}_{seed}", f"experiments.training:{ALGORITHMS[algo]}", kwargs))
    return runs
