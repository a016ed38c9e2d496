"""The experiments: each at the smallest budget, their settings, and what the reports say."""

import importlib
import inspect
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from sb3_contrib import RecurrentPPO

from experiments import peer
from experiments.__main__ import EXPERIMENTS, load_experiment
from experiments.folder import ResultsFolder
from experiments.recall import play
from experiments.references import reference_returns
from experiments.reporting import gap_closed, interquartile_mean, interval, learning_curves, mean_and_interval, training_report
from experiments.settings import block_arguments, with_memory
from experiments.training import EpisodeRecorder, train_ppo
from sb3_shm import SHMPPO
from sb3_shm.envs import ENV_IDS, make_batched_env
from sb3_shm.envs.grid.board import COLOURS, Cell
from sb3_shm.envs.oracles import Oracle
from sb3_shm.memory import make_memory
from sb3_shm.zoo import hyperparams_file
from sb3_shm.zoo.blocks import read_blocks

TRAINING = [
    name for name, path in EXPERIMENTS.items() if path.partition(":")[0].endswith(("ppo_experiments", "sac_experiments"))
]


def compute(run):
    """What a process of its own does, in this one."""
    module, _, name = run.function.partition(":")
    return getattr(importlib.import_module(module), name)(**json.loads(json.dumps(run.kwargs)))


# These train as popgym's does, only with other arguments of SHM
LIKE_POPGYM = ("ablation_calibration", "ablation_theta", "memory_size")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_POPGYM else name for name in EXPERIMENTS]
)
def test_smoke(name, tmp_path):
    if name == "minigrid":
        pytest.importorskip("minigrid")
    folder = ResultsFolder(tmp_path, load_experiment(name), "smoke", 1)
    for run in folder.runs:
        folder.record_path(run).write_text(json.dumps(dict(id=run.id, rows=compute(run))))
    report = folder.write_results(["test"])
    assert report.count("\n| ") >= 3, "a table"
    figures = {path.stem for path in tmp_path.glob("*.png")}
    assert figures and figures == {path.stem for path in tmp_path.glob("*.svg")}
    assert all(f"({figure}.png)" in report for figure in figures)
    assert all((tmp_path / f"{figure}.png").stat().st_size > 5000 for figure in figures)
    if name in TRAINING:
        agents = {run.kwargs["setting"] for run in folder.runs}
        assert all(f"| {agent} | 1 |" in report for agent in agents)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs_have_names_that_files_may_have(name):
    for budget in ("smoke", "small", "paper"):
        runs = load_experiment(name).runs(budget, 3)
        names = [run.id for run in runs]
        assert len(set(names)) == len(names)
        assert all(name.isascii() and not set(name) - set("-_.") - set(filter(str.isalnum, name)) for name in names)
        json.dumps([run.kwargs for run in runs])


@pytest.mark.parametrize("name", TRAINING)
def test_grids_are_fair(name):
    """Every agent has the same environments, seeds and settings but for its memory."""
    for budget in ("small", "paper"):
        runs = load_experiment(name).runs(budget, 2)
        grid = {(run.kwargs["env"], run.kwargs["setting"], run.kwargs["seed"]) for run in runs}
        envs, agents, seeds = (set(values) for values in zip(*grid, strict=True))
        assert len(grid) == len(runs) == len(envs) * len(agents) * len(seeds) and seeds == {0, 1} and envs <= set(ENV_IDS)
        for env in envs:
            others = set()
            for run in runs:
                policy_kwargs = run.kwargs["model"]["policy_kwargs"]
                make_memory(policy_kwargs["memory"], 8, policy_kwargs["memory_kwargs"])  # has these arguments
                if run.kwargs["env"] == env:
                    kwargs = json.loads(json.dumps(run.kwargs))
                    for key in [key for key in kwargs["model"]["policy_kwargs"] if "memory" in key]:
                        del kwargs["model"]["policy_kwargs"][key]
                    others.add(json.dumps({key: kwargs[key] for key in kwargs if key not in ("setting", "seed")}))
            assert len(others) == 1


def test_the_paper_budget_is_that_of_the_blocks():
    """Two runs of the release, by hand."""
    runs = {run.id: run.kwargs for name in ("popgym", "meta_rl") for run in load_experiment(name).runs("paper", 1)}
    block = read_blocks(hyperparams_file("shm_ppo", release=True))["AutoencodeEasy-v0"]
    fixed = runs["AutoencodeEasy-v0_shm_paper-fixed-theta_0"]
    assert fixed["n_envs"] == 64 and fixed["n_timesteps"] == 15_000_000
    assert {**fixed["model"], "policy": "MlpSHMPolicy", "n_envs": 64, "n_timesteps": 15_000_000} == block
    wind = runs["WindTrain10-v0_gru-actor-shm_paper-critic_0"]
    assert wind["eval_env"] == "WindEval190-v0" and wind["eval_episodes"] == 190 and wind["n_timesteps"] == 510_000
    assert wind["memory_inputs"] == dict(previous_action=True, previous_reward=False, first_step=False)
    policy = wind["model"]["policy_kwargs"]
    assert policy["memory"] == "shm_paper" and policy["actor_memory"] == "gru"
    gru = runs["PointRobotTrain50-v0_gru_0"]["model"]["policy_kwargs"]
    assert gru["memory"] == "gru" and gru["memory_kwargs"] == dict(hidden_size=128) and "actor_memory" not in gru
    assert "env_wrapper" not in block_arguments("shm_sac", "WindTrain50-v0", release=True)["model"]


@pytest.mark.parametrize("env", peer.NOVEL_ENVS + peer.MINIGRID_ENVS)
def test_the_peer_has_the_same_settings(env):
    """Where the defaults of the two algorithms differ, the block says what both of them take."""
    ours, theirs = (inspect.signature(algorithm).parameters for algorithm in (SHMPPO, RecurrentPPO))
    differing = {name for name in ours if name in theirs and ours[name].default != theirs[name].default}
    assert differing and differing <= set(peer.settings(env)["model"])


def test_another_memory_keeps_nothing_of_the_old_one():
    old = dict(memory="shm", memory_kwargs=dict(memory_size=24, clip=None), position="sine", actor_memory="gru")
    assert with_memory("gru", hidden_size=8)(old) == dict(memory="gru", memory_kwargs=dict(hidden_size=8), position="sine")
    kwargs = dict(memory_size=24, clip=None, theta="fixed")
    assert with_memory("shm", theta="fixed")(old) == dict(memory="shm", memory_kwargs=kwargs, position="sine")


def test_training_is_reproducible_and_its_rows_are_right():
    kwargs = load_experiment("ablation_theta").runs("smoke", 1)[0].kwargs
    first, again = train_ppo(**kwargs), train_ppo(**kwargs)
    for rows in (first, again):
        del rows[-1]["seconds"]
    assert first == again
    *curve, evaluation = first
    assert {row["kind"] for row in curve} == {"curve"} and evaluation["kind"] == "evaluation"
    assert evaluation["timesteps"] == 1024 and evaluation["episodes"] == 4
    assert [row["timesteps"] for row in curve] == [204, 409, 614, 819, 1024]  # episodes of 51 steps; multiples of 20.48
    assert evaluation["state_size"] == 32 * 32 + 64


def test_the_colour_is_asked_in_the_last_room_and_was_seen_in_the_first():
    env = make_batched_env("VisualMatch60-v0", 6, seed=0)
    env.reset()
    obs, right, counts = play(env, Oracle("VisualMatch60-v0"), np.random.default_rng(0))
    assert obs.shape == (6, 85, 75) and counts.sum(dim=1).tolist() == [10] * 6 and counts[:, -10:].all()
    assert (right == right[:, :1]).all()
    for episode, colour in zip(obs.numpy(), right[:, 0].tolist(), strict=True):
        sign = COLOURS[Cell.RED_SIGN + colour] / 255
        assert np.isclose(episode[0].reshape(3, 25).T, sign, atol=1e-3).all(axis=1).sum() == 1


def test_curve_by_hand():
    recorder = EpisodeRecorder()
    recorder.num_timesteps, recorder.timesteps, recorder.returns = 100, [10, 20, 21, 100], [1.0, 2.0, 4.0, 8.0]
    # (0, 20], (20, 40], ...
    assert [tuple(point.values()) for point in recorder.curve(5)] == [(20, 1.5), (40, 4.0), (100, 8.0)]
    recorder.successes = [0.0, 1.0, 1.0, 0.0]
    assert recorder.curve(5)[0] == {"timesteps": 20, "return": 1.5, "success": 0.5}


def test_interval():
    values = np.array([0.0, 1.0])
    assert interval(values) == (0.0, 1.0)  # a quarter of the resamples has two zeros
    assert all(math.isnan(end) for end in interval(values[:1]))
    # The normal approximation of a mean of 400
    many = np.random.default_rng(1).normal(3, 2, size=400)
    half = 1.96 * many.std() / 20
    assert np.allclose(interval(many), (many.mean() - half, many.mean() + half), atol=0.03)
    # Two tasks, of which one varies: its interval, halved
    low, high = interval(np.stack([many, np.full(400, 5.0)], axis=1))
    assert np.allclose((low, high), (np.array(interval(many)) + 5) / 2, atol=0.03)


def test_interquartile_mean():
    scores = np.array([[0.0, 100.0], [1.0, 2.0], [3.0, 4.0], [-50.0, 5.0]])  # without -50, 0 and 5, 100
    assert interquartile_mean(scores) == 2.5
    assert mean_and_interval(scores[:1], 1, interquartile_mean) == "50.0"
    low, high = interval(scores, interquartile_mean)
    assert -50 < low < 2.5 < high < 100
    assert interval(np.full((3, 2), 7.0), interquartile_mean) == (7.0, 7.0)


def test_gap_closed_by_hand():
    """The perfect player makes 1 on RepeatPrevious; of an environment that is not ours nothing is known."""
    returns = {"mlp": -0.5, "gru": 1.0, "shm": 0.25}
    rows = [
        {"env": env, "setting": setting, "seed": seed, "return": value + (seed - 0.5) * 0.1}
        for env in ("RepeatPreviousEasy-v0", "Elsewhere-v0")
        for setting, value in returns.items()
        for seed in (0, 1)
    ]
    shares = gap_closed(pd.DataFrame(rows), "mlp")
    assert "| agent | RepeatPreviousEasy-v0 | mean |" in shares
    assert "| gru | 100% | 100% |" in shares and "| shm | 50% | 50% |" in shares and "| mlp |" not in shares
    assert gap_closed(pd.DataFrame(rows), "lstm") == gap_closed(pd.DataFrame(rows[6:]), "mlp") == ""


def test_report_by_hand(tmp_path):
    rows = []
    for env, agent, scores in [
        ("A", "one", [0.1, 0.3]),
        ("A", "two", [0.5, 0.7]),
        ("B", "one", [0.2, 0.2]),
        ("B", "two", [0.0, 0.1]),
    ]:
        for seed, score in enumerate(scores):
            common = dict(env=env, setting=agent, seed=seed, timesteps=1000)
            rows.append({"kind": "curve", **common, "return": score - 0.1})
            rows.append({"kind": "curve", **common, "timesteps": 500, "return": 9.0})  # not the last
            rows.append(
                {"kind": "evaluation", **common, "return": score, "state_size": 8, "parameter_count": 1234, "seconds": 2}
            )
    report = training_report(pd.DataFrame(rows), tmp_path, scale=100, against="one", paper={("A", "two"): "61"}, note="Note.")
    lines = report.splitlines()
    assert lines[2] == "| A | two | 2 | 1,000 | 60.0 [50.0, 70.0] | 50.0, 70.0 | 50.0 | +40.0 | 61 | 8 | 1,234 | 500 |"
    assert lines[3] == "| A | one | 2 | 1,000 | 20.0 [10.0, 30.0] | 10.0, 30.0 | 10.0 | +0.0 |  | 8 | 1,234 | 500 |"
    assert lines[5] == "| B | two | 2 | 1,000 | 5.0 [0.0, 10.0] | 0.0, 10.0 | -5.0 | -15.0 |  | 8 | 1,234 | 500 |"
    # Without the quarters at the ends: of 0, 10, 50, 70 and of 10, 20, 20, 30
    assert "| two | 32.5 [25.0, 40.0] | 30.0 [25.0, 40.0] | 22.5 |" in report
    assert "| one | 20.0 [15.0, 25.0] | 20.0 " in report and "Note." in lines
    # A grid that was stopped: no mean over environments for an agent that lacks some of them
    part = pd.DataFrame([row for row in rows if not (row["env"] == "B" and row["setting"] == "two" and row["seed"] == 1)])
    assert "| two | 32" not in training_report(part, tmp_path) and "| one | 0.200 " in training_report(part, tmp_path)


def test_references():
    """Of four suits a quarter is guessed: +1 for those, -1 for the others."""
    returns = reference_returns("RepeatPreviousEasy-v0")
    assert returns["random"] == pytest.approx(-0.5, abs=0.05) and returns["perfect"] == pytest.approx(1)
    assert reference_returns("MountainCar-v0") == {}


def test_many_settings_have_a_plot_each(tmp_path):
    rows = [
        {"kind": "curve", "env": env, "setting": f"agent {i}", "seed": 0, "timesteps": 10 * t, "return": 0.1 * t}
        for env in ("RepeatFirstEasy-v0", "RepeatPreviousEasy-v0")
        for i in range(8)
        for t in range(3)
    ]
    learning_curves(pd.DataFrame(rows), tmp_path)
    svg = (tmp_path / "learning_curves.svg").read_text()
    labels = re.findall("<!-- (.*?) -->", svg)
    assert [label for label in labels if label.startswith("agent")] == [f"agent {i}" for i in range(8)]
    assert [label for label in labels if not re.match(r"agent|[−\d.]+$", label)] == [
        "environment steps",
        "episode return while training",
        "RepeatFirstEasy-v0",
        "RepeatPreviousEasy-v0",
        "perfect",
        "random",
    ]


def test_three_environments_in_a_figure(tmp_path):
    """A seed may lack some parts of the training."""
    rows = [
        {"kind": "curve", "env": f"env {i}", "setting": agent, "seed": seed, "timesteps": 10 * t, "return": 0.1 * t}
        for i in range(4)
        for agent in ("one", "two")
        for seed in range(2)
        for t in range(1, 3 + seed)
    ]
    text = learning_curves(pd.DataFrame(rows), tmp_path)
    assert text == "![learning_curves](learning_curves.png)\n\n![learning_curves_2](learning_curves_2.png)"
    first, second = ((tmp_path / f"learning_curves{suffix}.svg").read_text() for suffix in ("", "_2"))
    assert [first.count(f"env {i}") > 0 for i in range(4)] == [True, True, True, False] and "env 3" in second
