"""
Can a memory hold what a task asks for? The supervised twin of a task: the trunk that PPO trains, and cross-entropy on the
right answer in place of a reward. Without exploration and its noise a memory is judged in minutes.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from experiments.base import Experiment, Rows, Run
from experiments.figures import make_plots, save, table
from experiments.reporting import mean_and_interval
from experiments.variants import SHM_VARIANTS
from sb3_shm.envs import make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.grid.visual_match import VisualMatch
from sb3_shm.envs.oracles import Oracle
from sb3_shm.memory import MEMORIES
from sb3_shm.policies.trunk import MemoryTrunk

if TYPE_CHECKING:
    from pandas import DataFrame

MODELS: dict[str, tuple[str, dict[str, Any]]] = {**SHM_VARIANTS, **{name: (name, {}) for name in MEMORIES if name != "shm"}}
# Gradient steps of 64 episodes each, by budget
TASKS = {
    "RepeatFirstEasy-v0": dict(small=200, paper=1000),
    "RepeatPreviousEasy-v0": dict(small=400, paper=2000),
    "AutoencodeEasy-v0": dict(small=800, paper=4000),
}
CURVE_POINTS = 20


def play(env: BatchedVecEnv, oracle: Oracle, rng: np.random.Generator) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    One episode of each copy. All episodes have the same length. An oracle plays; in Visual Match, where its way would betray
    the colour, random actions do, and the answer is the colour itself, at each step in the last room.

    :param env: environments that have just begun an episode; they are at the beginning of the next one afterwards
    :param oracle: plays them
    :param rng: draws the random actions
    :return: observations, (N, T, ...); the right answers, (N, T) int64; and the steps that count, (N, T) bool
    """
    obs: Any = env.task.observe()
    task = env.task
    steps = []
    ended = np.zeros(env.num_envs, bool)
    while not ended.any():
        if isinstance(task, VisualMatch):
            actions, answers, asked = rng.integers(4, size=env.num_envs), task.colours.copy(), task.rooms == 2
        else:
            answers = actions = oracle.act(env)
        env.step_async(actions)
        new_obs, rewards, ended, _ = env.step_wait()
        steps.append((obs, answers, asked if isinstance(task, VisualMatch) else rewards != 0))
        obs = new_obs
    assert ended.all(), "episodes of one length"
    seen, right, counts = (th.as_tensor(np.stack(arrays, axis=1)) for arrays in zip(*steps, strict=True))
    return seen, right.long(), counts


def train_supervised(
    env: str,
    setting: str,
    seed: int,
    memory: str,
    memory_kwargs: dict[str, Any],
    steps: int,
    batch_size: int,
    n_test: int,
    normalize: bool = False,
) -> Rows:
    """
    Train a trunk with a linear layer (Adam, 1e-3 falling to 0) on fresh episodes, then test it on others.

    :param env: environment id: Discrete actions, episodes of one length whose observations no action changes
    :param setting: what the report calls it
    :param seed: of the weights and the episodes
    :param memory: a name of ``sb3_shm.memory.MEMORIES``
    :param memory_kwargs: its arguments
    :param steps: gradient steps
    :param batch_size: episodes in each
    :param n_test: episodes of the test, in which the memory draws nothing at random
    :param normalize: whether observations are made to have mean 0 and variance 1, entry by entry, by those of the first batch,
        and bounded to 10, as VecNormalize does
    :return: a row per twentieth of the training, and one of the test; "return" is 2 * share of right answers - 1, as the tasks
        reward them
    """
    th.manual_seed(seed)
    envs, tests = make_batched_env(env, batch_size, seed), make_batched_env(env, n_test, seed + 10_000)
    oracle, rng = Oracle(env), np.random.default_rng(seed)
    obs_space: Any = envs.observation_space
    action_space: Any = envs.action_space
    trunk = MemoryTrunk(int(np.prod(obs_space.shape)), memory, memory_kwargs, position="sine")
    head = nn.Linear(trunk.output_size, int(action_space.n))
    optimizer = th.optim.Adam([*trunk.parameters(), *head.parameters()], lr=1e-3)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)

    mean, std = th.zeros(1), th.ones(1)

    def answer(obs: th.Tensor, deterministic: bool = False) -> th.Tensor:
        state = trunk.initial_state(len(obs))
        starts = th.zeros(obs.shape[:2], dtype=th.bool)
        context = trunk.draw_context(state, starts, deterministic)
        features = ((obs.flatten(2).float() - mean) / std).clamp(-10, 10)
        y, _ = trunk(features, state, starts, context)
        logits: th.Tensor = head(y)
        return logits

    rows: Rows = []
    common = dict(env=env, setting=setting, seed=seed)
    recent: list[float] = []
    begin = time.perf_counter()
    envs.reset()
    for step in range(1, steps + 1):
        obs, right, counts = play(envs, oracle, rng)
        if normalize and step == 1:
            features = obs.flatten(0, 1).flatten(1).float()
            mean, std = features.mean(dim=0), features.std(dim=0) + 1e-4
        logits = answer(obs)
        loss = F.cross_entropy(logits[counts], right[counts])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*trunk.parameters(), *head.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        recent.append((logits.argmax(-1) == right)[counts].double().mean().item())
        if step * CURVE_POINTS // steps > (step - 1) * CURVE_POINTS // steps:
            rows.append(dict(kind="curve", **common, steps=step, **{"return": 2 * float(np.mean(recent)) - 1}))
            recent = []
    seconds = time.perf_counter() - begin

    tests.reset()
    with th.no_grad():
        obs, right, counts = play(tests, oracle, rng)
        accuracy = (answer(obs, deterministic=True).argmax(-1) == right)[counts].double().mean().item()
    parameters = trunk.memory.parameter_count
    test = dict(kind="test", **common, steps=steps, parameter_count=parameters, state_size=trunk.memory.state_size())
    return [*rows, {**test, "return": 2 * accuracy - 1, "seconds": round(seconds, 1)}]


def _run(env: str, setting: str, seed: int, budget: str, model: tuple[str, dict[str, Any]], steps: int, **more: Any) -> Run:
    smoke = budget == "smoke"
    kwargs = dict(env=env, setting=setting, seed=seed, memory=model[0], memory_kwargs=model[1], **more)
    sizes = dict(steps=20, batch_size=4, n_test=4) if smoke else dict(steps=steps, batch_size=64, n_test=512)
    name = re.sub("[^A-Za-z0-9_]+", "-", setting.replace("θ", "theta"))
    return Run(f"{env}_{name}_{seed}", "experiments.recall:train_supervised", {**kwargs, **sizes})


def _runs(budget: str, seeds: int) -> list[Run]:
    smoke = budget == "smoke"
    return [
        _run(env, model, seed, budget, MODELS[model], 0 if smoke else TASKS[env][budget])
        for seed in range(seeds)
        for env in (["RepeatPreviousEasy-v0"] if smoke else TASKS)
        for model in (["shm", "shm_paper", "gru"] if smoke else MODELS)
    ]


# Which memory can carry a colour so far at all?
COLOUR_MEMORIES = (
    "shm",
    "shm_paper",
    "shm, C = 1",
    "shm, θ fixed",
    "shm, keys sum",
    "gru",
    "lstm",
    "ffm",
    "mlstm",
    "lru",
    "mlp",
)
RAW = ", observations as they are"


def _colour_runs(budget: str, seeds: int) -> list[Run]:
    smoke = budget == "smoke"
    distances = {"smoke": (60,), "small": (60, 250, 500), "paper": (60, 250, 500, 1000)}[budget]
    models = ("shm", "gru") if smoke else COLOUR_MEMORIES
    return [
        _run(f"VisualMatch{distance}-v0", model + raw, seed, budget, MODELS[model], 300, normalize=not raw)
        for seed in range(seeds)
        for distance in distances
        for raw in ("", RAW)
        for model in (models if not raw else models[:2])
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    tests = rows[rows["kind"] == "test"]
    envs = list(dict.fromkeys(tests["env"]))
    means = tests.pivot_table(index="setting", columns="env", values="return", sort=False)
    order = list(means.mean(axis=1).sort_values(ascending=False).index)
    lines = []
    for setting in order:
        line: list[Any] = [setting]
        for env in envs:
            scores = tests[(tests["setting"] == setting) & (tests["env"] == env)]["return"].to_numpy(dtype=np.float64)
            line.append(mean_and_interval(scores, 2) if len(scores) else "")
        of_setting = tests[tests["setting"] == setting]
        medians = of_setting.groupby("env")["seconds"].median()
        seconds = [f"{medians[env]:.0f}" if env in medians else "-" for env in envs]
        first = of_setting.iloc[0]
        lines.append([*line, " / ".join(seconds), f"{first['state_size']:,.0f}", f"{first['parameter_count']:,.0f}"])
    colours = envs[0].startswith("VisualMatch")
    figure, axes = make_plots(len(envs), height=1.2 + 0.24 * len(order), sharey=True)
    for ax, env in zip(axes, envs, strict=True):
        of_env = tests[tests["env"] == env]
        for i, setting in enumerate(order):
            scores = of_env[of_env["setting"] == setting]["return"]
            ax.barh(i, scores.mean(), color="#0072B2" if setting.startswith("shm") else "#999999", alpha=0.7)
            ax.plot(scores, [i] * len(scores), "k.", markersize=4)
        ax.axvline(-1 / 3 if colours else 0, color="black", linewidth=0.8)
        ax.set(title=env, xlabel="2 · share of right answers − 1", xlim=(-0.6, 1.02))
    axes[0].set_yticks(range(len(order)), order, fontsize="small")
    axes[0].invert_yaxis()
    header = ["memory", *envs, "seconds", "state", "parameters"]
    note = (
        "2 · share of right answers − 1 on 512 new episodes, as the tasks reward them; guessing makes "
        f"{'−0.33' if colours else '−0.5'}. Intervals: bootstrap over the seeds. Seconds: of the training, one thread. State "
        "and parameters: numbers of the memory alone."
    )
    return "\n\n".join((table(header, lines), note, save(figure, folder, "recall")))


EXPERIMENT = Experiment(
    "recall",
    "Can each memory hold what a task asks for, when it is told the right answer? SHM's parts one by one.",
    _runs,
    _report,
)
COLOUR = Experiment(
    "recall_colour",
    "Visual Match's colour, told at the end: which memory can carry it 60, 250 or 500 steps? 300 gradient steps.",
    _colour_runs,
    _report,
)
