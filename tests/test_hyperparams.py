"""The YAML blocks, the search spaces, and what a wheel holds."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.envs import ENV_IDS
from sb3_shm.zoo import hyperparams_file

optuna = pytest.importorskip("optuna", reason="extra zoo")

ROOT = Path(__file__).parent.parent
CLASSES = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC}
# (algorithm, whether the release's) -> blocks
BLOCKS = {
    (algo, release): yaml.safe_load(hyperparams_file(algo, release).read_text(encoding="utf-8"))
    for algo in CLASSES
    for release in (False, True)
}
# Of environments that are not ours: the package that registers them
FOREIGN = {
    **dict.fromkeys([f"MiniGrid-MemoryS{size}-v0" for size in ("7", "11", "13", "13Random", "17Random")], "minigrid"),
    **dict.fromkeys(["MortarMayhem-v0", "MysteryPath-v0", "SearingSpotlights-v0"], "memory_gym"),
    "LunarLanderNoVel-v0": "Box2D",
}
# rl-zoo3's own keys
NOT_OF_THE_MODEL = {"policy", "n_timesteps", "normalize", "env_wrapper", "n_envs", "learning_rate", "clip_range"}


def build(algo, env_id, folder, release=False):
    """What rl-zoo3 makes of a block."""
    from rl_zoo3.exp_manager import ExperimentManager

    config = str(hyperparams_file(algo, release))
    arguments = dict(n_timesteps=-1, eval_freq=-1, verbose=0, device="cpu", seed=0, config=config)
    manager = ExperimentManager(Namespace(), algo, env_id, str(folder), **arguments)
    model, _ = manager.setup_experiment()
    return model, manager


def test_every_benchmark_has_a_block():
    novel = {"AcrobotNoVel-v0", "MountainCarContinuousNoVel-v1", "LunarLanderNoVel-v0", "CartPoleNoVel-v0", "PendulumNoVel-v0"}
    ours = {env_id for (_, release), blocks in BLOCKS.items() if not release for env_id in blocks} - {"default"}
    released = {env_id for (_, release), blocks in BLOCKS.items() if release for env_id in blocks}
    # The POPGym tasks that are not the paper's get the default
    tasks = ("Autoencode", "Battleship", "Concentration", "RepeatPrevious")
    popgym = {
        f"{task}{level}{suffix}-v0" for task in tasks for level in ("Easy", "Medium", "Hard") for suffix in ("", "PrevAction")
    }
    groups = ("Wind", "PointRobot", "VisualMatch", "KeyToDoor")
    paper = popgym | {env_id for env_id in ENV_IDS if env_id.startswith(groups)}
    assert released == paper and len(popgym) == 24 and len(paper) > 60
    more = {env_id for env_id in ENV_IDS if env_id.startswith(("EndlessTMaze", "ColorCubes", "RepeatFirst1000"))}
    assert ours == paper | more | novel | FOREIGN.keys()
    assert paper | more | novel - {"LunarLanderNoVel-v0"} <= set(ENV_IDS)  # which needs Box2D


def test_the_release_has_the_published_memory_and_ours_is_tuned_to_no_task():
    for (algo, release), blocks in BLOCKS.items():
        for env_id, block in blocks.items():
            policy_kwargs = block.get("policy_kwargs") or {}
            if release:
                assert policy_kwargs["memory"] == "shm_paper" and block.get("normalize_values", False) is False
            else:
                assert not any("memory" in name for name in policy_kwargs), (algo, env_id)


# A few that differ, for every day
SOME = ["AutoencodeMedium-v0", "BattleshipHardPrevAction-v0", "CartPoleNoVel-v0", "PendulumNoVel-v0", "ColorCubesHard-v0"]
SOME += ["AcrobotNoVel-v0", "MountainCarContinuousNoVel-v1", "MiniGrid-MemoryS7-v0"]
SOME += ["WindUpstream-v0", "PointRobotTrain10-v0", "VisualMatch250Image-v0", "KeyToDoor60MemoryRL-v0", "EndlessTMaze50-v0"]
CASES = [
    pytest.param(algo, release, env_id, marks=() if env_id in SOME else pytest.mark.slow)
    for (algo, release), blocks in BLOCKS.items()
    for env_id in blocks
    if env_id != "default"
]


@pytest.mark.parametrize(("algo", "release", "env_id"), CASES)
def test_blocks_construct_their_models(algo, release, env_id, zoo, tmp_path):
    if env_id in FOREIGN:
        pytest.importorskip(FOREIGN[env_id])
    block = BLOCKS[algo, release][env_id]
    model, manager = build(algo, env_id, tmp_path, release)
    assert model.n_envs == block.get("n_envs", 1) and manager.n_timesteps == block["n_timesteps"]
    for name in block.keys() - NOT_OF_THE_MODEL:
        value = getattr(model, name)
        if name == "train_freq":
            value = value.frequency
        assert value == block[name], name
    schedules = {"learning_rate": model.lr_schedule, "clip_range": getattr(model, "clip_range", None)}
    for name, schedule in schedules.items():
        value = block.get(name, 3e-4 if name == "learning_rate" else 0.2)
        is_linear = isinstance(value, str)
        first = float(value.removeprefix("lin_")) if is_linear else value
        if schedule is not None:
            assert schedule(1.0) == first and schedule(0.5) == pytest.approx(first / 2 if is_linear else first), name
    assert (model.get_vec_normalize_env() is not None) == block.get("normalize", False)
    # The policy acts
    obs = model.env.reset()
    actions, _ = model.predict(obs, episode_start=np.ones(model.n_envs, dtype=bool))
    assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("algo", CLASSES)
def test_default_block(algo, zoo, tmp_path):
    env_id = "Pendulum-v1" if algo == "shm_sac" else "Acrobot-v1"
    model, _ = build(algo, env_id, tmp_path)
    assert isinstance(model, CLASSES[algo])


def test_blocks_of_the_meta_tasks_see_what_the_release_sees(zoo, tmp_path):
    wind, _ = build("shm_sac", "WindTrain50-v0", tmp_path, release=True)
    robot, _ = build("shm_sac", "PointRobotTrain50-v0", tmp_path, release=True)
    assert wind.observation_space.shape == (2 + 2,) and robot.observation_space.shape == (3 + 1,)  # actions; a reward
    for model, length, updates in ((wind, 100, 250_000), (robot, 200, 200_000)):
        # n_timesteps: warm-up, then gradient_steps for each train_freq steps of each environment
        steps = model.n_envs * model.train_freq.frequency
        rest = BLOCKS["shm_sac", True][model.env.get_attr("spec")[0].id]["n_timesteps"] - model.learning_starts
        assert rest % steps == 0 and rest // steps * model.gradient_steps == updates
        assert model.learning_starts % length == 0 and model.train_freq.frequency == length


def trials_of(algo, n_trials, n_envs, policy_kwargs=None, **attributes):
    """Trials as rl-zoo3 runs them: the block's hyperparameters are texts in the study."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if policy_kwargs is not None:
        study.set_user_attr("policy_kwargs", str(policy_kwargs))
    for name, value in attributes.items():
        study.set_user_attr(name, str(value))
    result = []
    for _ in range(n_trials):
        trial = study.ask()
        hyperparams = HYPERPARAMS_SAMPLER[algo](trial, 2, n_envs, {})
        assert HYPERPARAMS_CONVERTER[algo](trial.params) == hyperparams
        result.append(hyperparams)
    return result


def test_50_trials_of_ppo_are_legal(zoo):
    base = {"position": "sine", "encoder_arch": [16], "memory_kwargs": {"clip": None}}
    sizes = set()
    for n_envs, n_trials in ((1, 10), (3, 10), (8, 20), (64, 10)):
        env = make_vec_env("CartPole-v1", n_envs=n_envs)
        for hyperparams in trials_of("shm_ppo", n_trials, n_envs, base):
            assert hyperparams["policy_kwargs"].items() >= {"position": "sine", "encoder_arch": [16]}.items()
            memory = hyperparams["policy_kwargs"]["memory_kwargs"]
            assert memory["clip"] is None and memory.keys() == {"clip", "memory_size", "theta"}
            model = SHMPPO("MlpSHMPolicy", env, device="cpu", **hyperparams)  # illegal lengths would be a ValueError
            assert model.policy.pi_trunk.memory.memory_size == memory["memory_size"]
            assert 0 < model.gamma < 1 and 0 < model.gae_lambda < 1
            sizes.add((memory["memory_size"], memory["theta"], model.seq_len, model.n_steps, model.batch_size))
    assert len(sizes) > 40


def test_50_trials_of_sac_are_legal(zoo):
    env = make_vec_env("Pendulum-v1", n_envs=2)
    mixed = {"memory": "shm", "actor_memory": "gru", "actor_memory_kwargs": {"num_layers": 2}}
    sizes = set()
    for hyperparams in trials_of("shm_sac", 40, 2, mixed):
        model = SHMSAC("MlpSHMPolicy", env, buffer_size=300, device="cpu", **hyperparams)
        actor, critic = model.policy.pi_trunk.memory, model.critic.body.trunk.memory
        assert actor.layer.num_layers == 2
        assert model.replay_buffer.seq_len == model.seq_len > model.replay_buffer.burn_in == model.burn_in
        sizes.add((actor.output_size, critic.memory_size, critic.theta, model.seq_len, model.batch_size, model.burn_in))
    assert len(sizes) > 30
    for hyperparams in trials_of("shm_sac", 10, 2, seq_len=None):  # whole episodes stay whole
        assert "seq_len" not in hyperparams and "burn_in" not in hyperparams
        SHMSAC("MlpSHMPolicy", env, buffer_size=500, seq_len=None, device="cpu", **hyperparams)


def test_policy_kwargs_that_cannot_be_sampled_upon(zoo):
    for text in ("{'activation_fn': <class 'torch.nn.modules.activation.ReLU'>}", "3"):
        with pytest.raises(ValueError, match="policy_kwargs must be a dict of numbers, texts, lists and dicts"):
            trials_of("shm_ppo", 1, 4, text)


def test_tune_and_train_with_the_result(zoo, tmp_path, monkeypatch, capsys):
    from sb3_shm.zoo.__main__ import main

    monkeypatch.chdir(tmp_path)
    study = ["train", "--env", "PendulumNoVel-v0", "--storage", "study.log", "--study-name", "one", "--device", "cpu"]
    few = ["-n", "64", "--eval-freq", "-1", "--eval-episodes", "1", "--n-evaluations", "1", "--seed", "1"]
    few += ["-params", "n_envs:1"]
    tune = ["-optimize", "--n-trials", "2", "--sampler", "random", "--pruner", "none", "--no-optim-plots"]
    monkeypatch.setattr(sys, "argv", ["sb3-shm", *study, *few, *tune, "--memory", "lstm"])
    main()
    assert "Number of finished trials:  2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sb3-shm", *study, *few, "--trial-id", "1"])
    main()
    (path,) = tmp_path.glob("logs/shm_ppo/PendulumNoVel-v0_*/PendulumNoVel-v0.zip")
    model = SHMPPO.load(path, device="cpu")
    trial = optuna.load_study(
        study_name="one", storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    ).trials[1]
    assert model.policy.pi_trunk.output_size == trial.params["hidden_size"]
    assert model.seq_len == 2 ** trial.params["seq_len_pow"] and model.policy_kwargs["memory"] == "lstm"


@pytest.mark.slow
@pytest.mark.posix
def test_wheel(tmp_path):
    source = tmp_path / "source"
    names = ["sb3_shm", "hyperparams", "setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
    for name in names:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        for algo, release in BLOCKS:
            name = f"sb3_shm/hyperparams/{'release/' * release}{algo}.yml"
            assert archive.read(name) == hyperparams_file(algo, release).read_bytes()
    assert "sb3-shm = sb3_shm.zoo.__main__:main" in entry_points
    assert {"sb3_shm/version.txt", "sb3_shm/py.typed", "sb3_shm/zoo/__main__.py"} <= set(names)
    # In an environment of its own, which shares nothing but the dependencies, the command finds its own file
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True, timeout=300)
    command = [environment / "bin" / "sb3-shm", "train", "--env", "CartPoleNoVel-v0", "-n", "64", "--eval-freq", "-1"]
    command += ["-params", "n_envs:2", "n_steps:32", "batch_size:32"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    arguments = (tmp_path / "logs/shm_ppo/CartPoleNoVel-v0_1/CartPoleNoVel-v0/args.yml").read_text()
    assert str(site / "sb3_shm" / "hyperparams" / "shm_ppo.yml") in arguments
