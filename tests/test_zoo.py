"""rl-zoo3's commands, run as a user would, for both algorithms."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from test_masks import MaskedEnv

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import GRU, SHM
from sb3_shm.zoo import __main__ as command_line
from sb3_shm.zoo import hyperparams_file, register
from sb3_shm.zoo.arguments import quote_env_kwargs, train_arguments

ROOT = Path(__file__).parent.parent
CLASSES = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC}
# Few steps of the real blocks
PPO = ["--env", "CartPoleNoVel-v0", "-params", "n_envs:2", "n_epochs:1", "n_steps:32", "batch_size:32"]
SAC = ["--algo", "shm_sac", "--env", "WindTrain50-v0", "-params", "n_envs:2", "train_freq:50", "gradient_steps:1"]
SAC += ["learning_starts:200", "batch_size:4", "buffer_size:5000"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, zoo):
    """Run a command in an empty folder, return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sb3-shm", *arguments])
        command_line.main()
        output = capsys.readouterr()
        return output.out + output.err

    return run


def as_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sb3_shm.zoo", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("algo", "arguments", "stem"), [("shm_ppo", PPO, "CartPoleNoVel-v0"), ("shm_sac", SAC, "WindTrain50-v0")]
)
def test_train_enjoy_and_resume(run, tmp_path, algo, arguments, stem):
    common = ["--eval-freq", "200", "--eval-episodes", "1", "--save-freq", "200", "--seed", "3", "--device", "cpu"]
    run("train", *arguments, "-n", "400", "--save-replay-buffer", *common)
    folder = tmp_path / "logs" / algo / f"{stem}_1"
    expected = {f"{stem}.zip", "best_model.zip", "evaluations.npz", "rl_model_400_steps.zip", "0.monitor.csv", "1.monitor.csv"}
    names = {path.name for path in folder.iterdir()}
    assert expected <= names and ("replay_buffer.pkl" in names) == (algo == "shm_sac")
    assert {"config.yml", "args.yml", "command.txt"} <= {path.name for path in (folder / stem).iterdir()}
    assert (folder / stem / "vecnormalize.pkl").exists() == (algo == "shm_ppo")
    model = CLASSES[algo].load(folder / f"{stem}.zip", device="cpu")
    assert model.num_timesteps >= 400 and isinstance(model.policy.pi_trunk.memory, SHM)
    if algo == "shm_sac":
        assert isinstance(model.critic.body.trunk.memory, SHM)
        assert model._n_updates > 0 and model.observation_space.shape == (4,)  # the place and the previous action

    enjoy = ["enjoy", "--algo", algo, "--env", stem, "-f", "logs", "--no-render", "-n", "210", "--device", "cpu"]
    assert "Mean reward: " in run(*enjoy, "--reward-log", "one")
    for more in ("--load-best", "--load-last-checkpoint"):
        assert "Mean reward: " in run(*enjoy, more)
    run(*enjoy, "--reward-log", "two")
    one, two = (load_results(str(tmp_path / name)) for name in ("one", "two"))
    assert len(one) > 1 and one["l"].tolist() == two["l"].tolist() and one["r"].tolist() == two["r"].tolist()

    output = run("train", *arguments, "-n", "300", "-i", str(folder / f"{stem}.zip"), "--eval-freq", "-1", *common[2:])
    assert "Loading pretrained agent" in output and ("Loading replay buffer" in output) == (algo == "shm_sac")
    again = CLASSES[algo].load(folder.with_name(f"{stem}_2") / f"{stem}.zip", device="cpu")
    assert again._n_updates > model._n_updates
    before, after = model.policy.state_dict(), again.policy.state_dict()
    assert before.keys() == after.keys() and any(not before[name].equal(after[name]) for name in before)


def test_says_how_long_a_training_takes(zoo, capsys, monkeypatch):
    from sb3_shm.zoo import manager
    from sb3_shm.zoo.manager import TimeEstimate

    model = SHMPPO("MlpSHMPolicy", "CartPoleNoVel-v0", n_steps=64, policy_kwargs=dict(memory="mlp"))
    monkeypatch.setattr(manager, "time", SimpleNamespace(monotonic=lambda: model.num_timesteps / 16))
    model.learn(64 * 6, callback=TimeEstimate(seconds=8))  # the first rollout does not count, the next two last 8 seconds
    (said,) = re.findall(r"^.* left$", capsys.readouterr().out, re.MULTILINE)
    assert said == "16 steps/s: about 0:00:12 h:m:s left"
    callback = TimeEstimate(seconds=1)
    callback.n_calls, callback.model, callback._begin = 1, SimpleNamespace(_total_timesteps=10**30), (0.0, 0)
    callback.num_timesteps = model.num_timesteps
    callback.on_rollout_start()  # for ever: stopped by hand
    assert "999999999 days" in capsys.readouterr().out
    model = SHMSAC("MlpSHMPolicy", "CartPoleNoVel-v0", learning_starts=200, policy_kwargs=dict(memory="mlp"))
    model.learn(150, callback=TimeEstimate(seconds=0))
    assert "left" not in capsys.readouterr().out, "it has not begun to learn"


def test_memory_of_another_kind(run, tmp_path):
    run("train", *PPO, "-n", "64", "--eval-freq", "-1", "--memory", "gru", "hidden_size:24", "--device", "cpu")
    folder = tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_1"
    memory = SHMPPO.load(folder / "CartPoleNoVel-v0.zip", device="cpu").policy.pi_trunk
    assert isinstance(memory.memory, GRU) and memory.output_size == 24
    config = dict(yaml.unsafe_load((folder / "CartPoleNoVel-v0" / "config.yml").read_text()))
    block = yaml.safe_load(hyperparams_file("shm_ppo").read_text())["CartPoleNoVel-v0"]
    assert config["policy_kwargs"] == {"memory": "gru", "memory_kwargs": {"hidden_size": 24}}
    assert config["gae_lambda"] == block["gae_lambda"] and config["n_envs"] == 2


def parsed(arguments: list[str]) -> dict[str, str]:
    """Option -> its last value, what argparse takes of options that are given twice."""
    return {option: value for option, value in zip(arguments, [*arguments[1:], ""], strict=True) if option.startswith("-")}


def test_train_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yml").write_text("default:\n  policy: MlpSHMPolicy\n")
    for algo in CLASSES:
        assert parsed(train_arguments(["--algo", algo]))["--conf-file"] == str(hyperparams_file(algo))
    assert parsed(train_arguments([]))["--algo"] == "shm_ppo"
    for given in (["--conf-file", "own.yml"], ["-conf", "own.yml"], ["--conf-file=own.yml"], ["--conf", "own.yml"]):
        assert parsed(train_arguments([*given, "-n", "10"]))["--conf-file"] == "own.yml"
    other = train_arguments(["--algo", "ppo", "--env", "CartPole-v1", "-P", "--eval-freq", "-1", "--env-kwargs", "g:1"])
    assert other == ["--algo", "ppo", "--env", "CartPole-v1", "-P", "--eval-freq", "-1", "--env-kwargs", "g:1"]
    both = train_arguments(
        ["--env", "EndlessTMaze-v0", "-params", "n_steps:8", "gamma:0.9", "--memory", "lstm", "-tags", "a", "b"]
    )
    assert both[-3:-1] == ["n_steps:8", "gamma:0.9"] and both[4:7] == ["-tags", "a", "b"]
    assert eval(both[-1].removeprefix("policy_kwargs:")) == {"position": "sine", "memory": "lstm", "memory_kwargs": {}}
    # The same kind of memory keeps its other arguments
    for name in ("shm", "shm_paper"):
        arguments = ["--release", "--env", "AutoencodeHard-v0", "--memory", name, "theta:random", "memory_size:8"]
        same = train_arguments(arguments)
        assert parsed(same)["--conf-file"] == str(hyperparams_file("shm_ppo", release=True)) and "--release" not in same
        kwargs = eval(same[-1].removeprefix("policy_kwargs:"))
        assert kwargs["memory"] == name
        assert kwargs["memory_kwargs"] == {"memory_size": 8, "output_size": 1024, "theta": "random", "clip": None}
    # Wind's actor stays a GRU, as released
    wind = train_arguments(["--algo", "shm_sac", "--release", "--env", "WindEval150-v0", "--memory", "lstm"])[-1]
    kwargs = eval(wind.removeprefix("policy_kwargs:"))
    assert kwargs["memory"] == "lstm" and kwargs["memory_kwargs"] == {} and kwargs["actor_memory"] == "gru"


def test_illegal_arguments(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "list.yml").write_text("- a list\n")
    (tmp_path / "old.zip").touch()
    (tmp_path / "many.yml").write_text("default:\n  n_envs: two\n  policy: MlpSHMPolicy\n  n_timesteps: 100\n")
    (tmp_path / "short.yml").write_text("default:\n  n_envs: 2\n")
    (tmp_path / "rate.yml").write_text("default:\n  n_timesteps: 9\n  policy: MlpPolicy\n  learning_rate: 3e-4\n")
    (tmp_path / "text.md").touch()
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "text.yml").write_text(
        "default:\n  n_timesteps: 10\n  policy: MlpSHMPolicy\n  policy_kwargs: dict(memory='shm')\n"
    )
    for arguments, words in (
        (["trian"], "'train', 'enjoy'"),
        (["train", "--algo", "shm_pop"], "'ppo_lstm', 'shm_ppo', 'shm_sac'"),
        (["enjoy", "--algo", "shm_pop"], "'shm_ppo', 'shm_sac'"),
        (["train", "--memory", "grue"], "one of shm, shm_paper, gru, lstm"),
        (["train", "--release", "--env", "CartPoleNoVel-v0"], "the release has settings of shm_ppo for AutoencodeEasy-v0"),
        (["train", "--release", "--conf-file", "own.yml"], "excludes --conf-file"),
        (["train", "--release", "--algo", "ppo"], "--release needs --algo shm_ppo or shm_sac"),
        (["train", "--memory", "gru", "memory_size:3"], "GRU has no argument 'memory_size', its arguments are"),
        (["train", "--memory", "gru", "hidden_size=3"], "ARGUMENT:VALUE, got 'hidden_size=3'"),
        (["train", "--memory", "gru", "--algo", "ppo"], "needs --algo shm_ppo or shm_sac"),
        (["train", "--memory", "gru", "-params", "policy_kwargs:dict()"], "exclude each other"),
        (["train", "--memory", "gru", "--conf-file", "none.yml"], "none.yml cannot be read"),
        (["train", "--memory", "gru", "--conf-file", "list.yml"], "list.yml must hold a mapping"),
        (["train", "--memory", "gru", "--conf-file", "text.yml"], "text.yml is none"),
        (["train", "-n", "-5"], "--n-timesteps must be an integer, at least 1; got -5"),
        (["train", "-optimize", "--n-trials", "0"], "--n-trials must be an integer, at least 1; got 0"),
        (["train", "--device", "gpu"], "--device must be auto, cpu, cuda"),
        (["train", "-i", "none.zip"], "there is no none.zip"),
        (["train", "-i", "text.yml"], "must be the .zip of a model"),
        (["train", "-i", "old.zip", "--memory", "gru"], "has a policy and memory already: leave out --memory"),
        (["train", "-i", "old.zip", "-params", "policy_kwargs:dict()"], "leave out --hyperparams policy_kwargs"),
        (["train", "--gym-packages", "json", "minigri"], "there is no package 'minigri': install it"),
        (["train", "--trial-id", "0"], "give its --storage and --study-name"),
        (["train", "--trial-id", "-1"], "--trial-id must be an integer, at least 0"),
        (["train", "-params", "learning_rate:abc"], "learning_rate must be a number, or lin_NUMBER"),
        (["train", "-params", "learning_rate:lin_x"], "learning_rate must be a number, or lin_NUMBER"),
        (["train", "-params", "normalize:maybe"], "normalize must be true, false, or arguments of VecNormalize"),
        (["train", "-params", "n_envs:0"], "n_envs must be a whole number, 1 or more, got 0"),
        (["train", "--conf-file", "many.yml"], "many.yml, line 2: n_envs must be a whole number, 1 or more, got 'two'"),
        (["train", "--conf-file", "short.yml"], "short.yml, line 2: the block of CartPole-v1 must have n_timesteps"),
        (["train", "--conf-file", "short.yml", "-n", "9"], "short.yml, line 2: the block of CartPole-v1 must have policy"),
        (["train", "-params", "n_envs:1.5"], "n_envs must be a whole number"),
        (["train", "-params", "n_envs:2.0"], "n_envs must be a whole number"),
        (["train", "-params", "env_wrapper:5"], "env_wrapper must be a class with its module, got 5"),
        (["train", "-params", "env_wrapper:foo.Bar"], "env_wrapper must be a class with its module, got 'foo.Bar'"),
        (["train", "-params", "vec_env_wrapper:foo"], "vec_env_wrapper must be a class with its module, got 'foo'"),
        (["train", "-params", "callback:sb3_shm.callbacks.Nope"], "sb3_shm.callbacks has no Nope"),
        (["train", "--conf-file", "rate.yml"], "learning_rate must be a number, which YAML reads if one writes 3.0e-4"),
        (["train", "--conf-file", "text.md"], "--conf-file must be a .yml or .py file"),
        (["train", "--conf-file", "nowhere"], "--conf-file must be a .yml or .py file"),
        (["train", "--env-kwargs", "foo"], "--env-kwargs takes KEY:VALUE"),
        (["train", "--log-interval", "0"], "--log-interval must be an integer, at least 1"),
        (["train", "--eval-episodes", "0"], "--eval-episodes must be an integer, at least 1"),
        (["train", "--n-eval-envs", "0"], "--n-eval-envs must be an integer, at least 1"),
        (["train", "-f", "text.yml"], "--log-folder must be a folder"),
        (["enjoy", "-f", "text.yml"], "--folder must be a folder"),
        (["train", "--track"], "--track needs wandb"),
        (["all_plots", "-a", "shm_ppo", "-e", "CartPole-v1", "-f", "nowhere"], "there is no folder nowhere"),
        (["plot_train", "-a", "shm_ppo", "-e", "CartPole-v1", "-f", "."], "no run of shm_ppo in CartPole-v1, but of nothing"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2 and words in capsys.readouterr().err, arguments
    for env_id, nearest in (
        ("AutoencodeEsy-v0", "AutoencodeEasy-v0"),
        ("VisualMatch251-v0", "VisualMatch250-v0"),
    ):
        with pytest.raises(SystemExit):
            run("train", "--env", env_id)
        assert re.search(f"{env_id} not found .* you maybe meant {nearest}", capsys.readouterr().err)
    # Before popgym is imported its own id is not found, afterwards its observations are refused: both name the id to use
    with pytest.raises(SystemExit) as stop:
        run("train", "--env", "popgym-AutoencodeEasy-v0")
    assert re.search("(you maybe meant|use the id) '?AutoencodeEasy-v0", f"{stop.value.code} {capsys.readouterr().err}")
    for command in ("enjoy", "record_video"):
        with pytest.raises(SystemExit):
            run(command, "--env", "CartPoleNoVel-v0", "-f", "none")
        assert "no agent of --algo shm_ppo --env CartPoleNoVel-v0 in none, which has no agent" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            run(command, "--env", "CartPolNoVel-v0", "-f", str(ROOT / "trained"))
        said = capsys.readouterr().err
        assert "--algo shm_ppo --env CartPoleNoVel-v0\n" in said and "--algo shm_sac --env PendulumNoVel-v0\n" in said
    with pytest.raises(ValueError, match="hyperparameters of shm_ppo, shm_sac, got 'ppo'"):
        hyperparams_file("ppo")


def test_what_an_algorithm_refuses_is_one_line_and_leaves_nothing(run, tmp_path):
    for more, words in (
        (["gamma:2"], "gamma must be"),
        (["policy:Nope"], "Unknown policy 'Nope'"),
        (["seq_len:7"], "seq_len"),
        (["--env-kwargs", "foo:bar"], "unexpected keyword argument 'foo'"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("train", *PPO, *more, "--eval-freq", "-1")
        assert str(stop.value.code).startswith("sb3-shm train: error: ") and words in str(stop.value.code)
        assert "\n" not in str(stop.value.code)
    assert not list((tmp_path / "logs" / "shm_ppo").glob("*"))


def test_the_users_own_errors_keep_their_traceback(run):
    class Broken(gym.Env):
        def __init__(self):
            raise ValueError("mine")

    gym.register("Broken-v0", Broken)
    try:
        with pytest.raises(ValueError, match="mine"):
            run("train", "--env", "Broken-v0", "-params", "n_envs:1", "--eval-freq", "-1")
    finally:
        del gym.registry["Broken-v0"]


def test_each_trial_of_a_study_can_be_trained(run, tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="one", storage=storage)

    def objective(trial):
        from sb3_shm.zoo.samplers import sample_shm_ppo_params

        sample_shm_ppo_params(trial, 0, 2, {})
        return 0.0

    study.optimize(objective, n_trials=2)
    common = ["train", "--env", "CartPoleNoVel-v0", "-n", "16", "--eval-freq", "-1", "--storage", "study.log"]
    common += ["--study-name", "one", "-params", "n_envs:1", "n_steps:16", "seq_len:16", "batch_size:16"]
    for trial in (0, 1):
        assert "Loading from Optuna study" in run(*common, "--trial-id", str(trial))
        model = SHMPPO.load(tmp_path / f"logs/shm_ppo/CartPoleNoVel-v0_{trial + 1}/CartPoleNoVel-v0.zip")
        assert 1 - model.gamma == pytest.approx(study.trials[trial].params["one_minus_gamma"])
    with pytest.raises(SystemExit, match="has no trial 7; they count from 0"):
        run(*common, "--trial-id", "7")
    with pytest.raises(SystemExit, match="There is no study onne in"):
        run(*common, "--trial-id", "0", "--study-name", "onne")


def test_which_model_is_there(run, tmp_path, capsys):
    run("train", *PPO, "-n", "128", "--save-freq", "32", "--eval-freq", "-1")
    folder = tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_1"
    (folder / "CartPoleNoVel-v0.zip").rename(folder / "elsewhere")  # as if it was killed
    for more in ([], ["--load-best"], ["--load-checkpoint", "5"]):
        with pytest.raises(SystemExit):
            run("enjoy", "--env", "CartPoleNoVel-v0", "-n", "10", "--no-render", *more)
        said = capsys.readouterr().err
        assert "CartPoleNoVel-v0_1 holds no " in said
        assert "but checkpoints (--load-last-checkpoint, or --load-checkpoint 32, 64, 96, 128)" in said
    enjoy = ["enjoy", "--env", "CartPoleNoVel-v0", "-n", "100", "--no-render", "--load-last-checkpoint"]
    assert "Mean reward" in run(*enjoy)
    for more, words in (
        (["--exp-id", "7"], "with --exp-id 7 (1) in logs"),
        (["-f", str(folder)], f"of one run: write --algo shm_ppo --env CartPoleNoVel-v0 -f {tmp_path / 'logs'} --exp-id 1"),
    ):
        with pytest.raises(SystemExit):
            run(*enjoy, *more)
        assert words in capsys.readouterr().err
    # Without its statistics an agent does not know what it sees, and without the configuration they are not read
    statistics, configuration = (folder / "CartPoleNoVel-v0" / name for name in ("vecnormalize.pkl", "config.yml"))
    configuration.rename(folder / "config.yml")
    with pytest.raises(SystemExit):
        run(*enjoy)
    assert "has no config.yml, without which enjoy would not normalise" in capsys.readouterr().err
    (folder / "config.yml").rename(configuration)
    whole = statistics.read_bytes()
    statistics.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="is damaged"):
        run(*enjoy)
    statistics.write_bytes(whole)
    moved = shutil.copy(folder / "rl_model_128_steps.zip", tmp_path / "moved.zip")
    train = ["train", *PPO, "-n", "64", "--eval-freq", "-1"]
    with pytest.raises(SystemExit, match="is missing, which says how moved"):
        run(*train, "-i", str(moved))
    (tmp_path / "CartPole").mkdir()
    shutil.copy(statistics, tmp_path / "CartPole")
    with pytest.raises(SystemExit, match=r"copy .*CartPole.vecnormalize\.pkl there"):
        run(*train, "-i", str(moved))
    assert not folder.with_name("CartPoleNoVel-v0_2").exists()
    run("train", "-n", "64", "--eval-freq", "-1", "-i", str(moved), *PPO, "normalize:False")
    with pytest.raises(SystemExit):
        run("record_video", "--env", "CartPoleNoVel-v0", "-f", str(ROOT / "trained"))
    assert "is a packed agent, which record_video cannot read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("enjoy", "--env", "CartPoleNoVel-v0", "-f", str(ROOT / "trained"), "--load-best")
    assert "a packed agent holds one model: leave out --load-best" in capsys.readouterr().err
    (tmp_path / "logs" / "first").mkdir()
    (tmp_path / "logs" / "first" / "model.zip").touch()
    with pytest.raises(SystemExit):
        run("enjoy", "--env", "RepeatPreviousEasy-v0")
    assert "model.zip is from an example: python examples/act_with_memory.py --model" in capsys.readouterr().err


def test_nothing_to_draw_or_to_read(run, tmp_path, capsys):
    checkpoint = tmp_path / "logs" / "shm_ppo" / "RepeatPreviousEasy-v0_1" / "RepeatPreviousEasy-v0.zip"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for arguments, words in (
        (["record_video", "--env", "RepeatPreviousEasy-v0"], "draws no pictures: `sb3-shm watch --env RepeatPreviousEasy-v0`"),
        (["plot_from_file", "-i", "nope.pkl", "-iqm"], "there is no nope.pkl, which --input names"),
        (["benchmark", "--log-dir", "nope"], "there is no nope, which --log-dir names"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert words in capsys.readouterr().err


def test_texts_among_the_arguments_of_an_environment(tmp_path):
    texts = ["CartPole-v1", "/tmp/x.xml", "12:30", "rgb_array", "eval"]
    plain = ["3", "[1,2]", "None", "'text'", "np.inf", "dict(a=1)"]
    given = [f"key:{value}" for value in texts + plain]
    quoted = quote_env_kwargs("train", ["--env", "X", "--env-kwargs", *given])
    assert quoted == ["--env", "X", "--env-kwargs", *(f"key:{value!r}" for value in texts), *given[len(texts) :]]


def test_a_folder_that_looks_like_one_of_a_run(run, tmp_path, capsys):
    run("train", *PPO, "-n", "64", "--eval-freq", "-1", "-f", "exp_1")
    shutil.copy(tmp_path / "exp_1/shm_ppo/CartPoleNoVel-v0_1/CartPoleNoVel-v0.zip", tmp_path / "exp_1/model.zip")
    assert "Mean reward" in run("enjoy", "--env", "CartPoleNoVel-v0", "-f", "exp_1", "-n", "60", "--no-render")


def test_hyperparameters_of_rl_zoo3_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parsed(train_arguments(["-conf", "ppo_lstm.yml", "--env", "CartPoleNoVel-v1"]))["--conf-file"]
    assert Path(found).is_file() and Path(found).parent.name == "hyperparams"


def test_rl_zoo3_has_another_cartpole_without_velocities(run):
    arguments = ["-n", "16", "--eval-freq", "-1", "-params", "n_envs:1", "n_steps:16", "seq_len:16", "batch_size:16"]
    output = run("train", "--env", "CartPoleNoVel-v1", *arguments)
    assert "environment is CartPoleNoVel-v0; CartPoleNoVel-v1 is another one" in output and "Using 'default'" in output
    assert "another one" not in run("train", "--env", "CartPoleNoVel-v0", *arguments)
    ours, theirs = gym.make("CartPoleNoVel-v0"), gym.make("CartPoleNoVel-v1")
    assert ours.observation_space.shape == (2,) and theirs.observation_space.shape == (4,)


def test_plots(run, tmp_path):
    logs = tmp_path / "logs" / "shm_ppo"
    for number in (1, 2):
        folder = logs / f"CartPoleNoVel-v0_{number}"
        folder.mkdir(parents=True)
        results = np.arange(12.0).reshape(4, 3) * number
        np.savez(folder / "evaluations.npz", timesteps=np.arange(1, 5) * 100, results=results, ep_lengths=results)
        rows = "".join(f"{step % 7}.0,20,{step}.0\n" for step in range(1, 30))
        (folder / "0.monitor.csv").write_text(f'#{{"t_start": 0.0, "env_id": "CartPoleNoVel-v0"}}\nr,l,t\n{rows}')
    arguments = ["-e", "CartPoleNoVel-v0", "-f", "logs"]
    run("plot_train", "-a", "shm_ppo", *arguments, "-w", "5")
    table = run("all_plots", "-a", "shm_ppo", *arguments, "-l", "SHM", "-o", "results", "--no-display")
    assert "|CartPoleNoVel-v0|15 +/- 4|" in table  # mean of 10 and 20
    assert "keys: ['SHM_PPO-SHM']" in run("plot_from_file", "-i", "results.pkl", "-o", "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_windows_and_films(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    run("train", *SAC, "-n", "110", "--eval-freq", "-1", "--device", "cpu")
    arguments = ["--algo", "shm_sac", "--env", "WindTrain50-v0", "-f", "logs"]
    assert "1 Episodes" in run("enjoy", *arguments, "-n", "100")
    (tmp_path / "logs" / "shm_sac" / "WindTrain50-v0_2").mkdir()  # a run that failed
    run("record_video", *arguments, "-n", "5", "-o", "films")
    (film,) = (tmp_path / "films").iterdir()
    assert film.name == "final-model-shm_sac-WindTrain50-v0-step-0-to-step-5.mp4" and film.stat().st_size > 500


def test_film_of_a_training_without_ffmpeg(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        run("record_training", "--env", "CartPoleNoVel-v0", "-f", "logs")
    assert "record_training needs the program ffmpeg" in capsys.readouterr().err


def test_processes_that_rl_zoo3_starts():
    ours = [sys.executable, "-m", "sb3_shm.zoo"]
    assert command_line._with_our_commands(["python", "enjoy.py", "-n", "3"]) == [*ours, "enjoy", "-n", "3"]
    film = command_line._with_our_commands(["python", "-m", "rl_zoo3.record_video", "-n", "3"])
    assert film == [*ours, "record_video", "-n", "3"]
    assert command_line._with_our_commands(("ls", "-l")) == ["ls", "-l"]


def test_without_rl_zoo3(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rl_zoo3.utils", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-shm\[zoo\]"'):
        register()
    with pytest.raises(SystemExit):
        run("train")
    assert 'pip install "sb3-shm[zoo]"' in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "rl_zoo3.enjoy", raising=False)
    monkeypatch.delitem(sys.modules, "rl_zoo3.load_from_hub", raising=False)
    monkeypatch.setitem(sys.modules, "requests.exceptions", None)
    monkeypatch.setitem(sys.modules, "requests", None)
    model = tmp_path / "logs/shm_ppo/CartPole-v1_1/CartPole-v1.zip"  # there is something to be played
    model.parent.mkdir(parents=True)
    model.touch()
    monkeypatch.setattr(sys, "argv", ["sb3-shm", "enjoy", "-f", str(tmp_path / "logs")])
    with pytest.raises(SystemExit):
        command_line.main()
    assert 'enjoy needs requests: pip install "sb3-shm[zoo]"' in capsys.readouterr().err


def test_the_package_needs_no_rl_zoo3():
    code = "import sys, sb3_shm, sb3_shm.zoo; print([n for n in ('rl_zoo3', 'optuna', 'yaml') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "[]", result.stderr


def test_as_a_process(tmp_path):
    result = as_process(tmp_path, "train", "--help")
    assert result.returncode == 0 and "shm_ppo,shm_sac" in result.stdout and "--trained-agent" in result.stdout, result.stderr


@pytest.mark.slow
def test_environments_in_processes(tmp_path):
    result = as_process(tmp_path, "train", *PPO, "-n", "64", "--eval-freq", "-1", "--vec-env", "subproc")
    assert result.returncode == 0 and "Saving to logs/shm_ppo/CartPoleNoVel-v0_1" in result.stdout, result.stderr
    assert "sb3_shm.zoo train --env" in (tmp_path / "logs/shm_ppo/CartPoleNoVel-v0_1/CartPoleNoVel-v0/command.txt").read_text()


@pytest.mark.slow
def test_benchmark(run, tmp_path):
    run("train", *SAC, "-n", "110", "--eval-freq", "-1", "--device", "cpu")
    run("train", *PPO, "-n", "64", "--eval-freq", "-1", "--device", "cpu")
    (tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_2" / "CartPoleNoVel-v0").mkdir(parents=True)  # a run that failed
    result = as_process(tmp_path, "benchmark", "--log-dir", "logs", "--benchmark-dir", "results", "--no-hub", "-n", "200")
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "benchmark.md").read_text()
    assert "|shm_ppo|CartPoleNoVel-v0|" in table and "|shm_sac|WindTrain50-v0" in table


class Masked(MaskedEnv):
    """An illegal action raises."""

    metadata = dict(render_modes=["rgb_array"], render_fps=10)  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)


@pytest.mark.filterwarnings("error:predict.. got no action masks")
def test_action_masks(run, tmp_path):
    """Evaluations while training, games and films choose legal actions alone."""
    gym.register("Masked-v0", Masked)
    small = "dict(encoder_arch=[8], memory_kwargs=dict(memory_size=4))"
    block = dict(n_timesteps=64, policy="MlpSHMPolicy", n_steps=32, n_envs=2, n_epochs=1, policy_kwargs=small)
    (tmp_path / "masked.yml").write_text(yaml.dump({"Masked-v0": block}))
    try:
        common = ["--env", "Masked-v0", "--device", "cpu"]
        run("train", *common, "-conf", "masked.yml", "--eval-freq", "32", "--eval-episodes", "8")
        with np.load(tmp_path / "logs/shm_ppo/Masked-v0_1/evaluations.npz") as evaluations:
            assert evaluations["ep_lengths"].tolist() == [[7] * 8] * 2
        assert "Mean episode length: 7.00" in run("enjoy", *common, "-f", "logs", "-n", "100", "--no-render", "--stochastic")
        run("record_video", *common[:2], "-f", "logs", "-n", "30", "-o", "films")
        assert len(list((tmp_path / "films").iterdir())) == 1
    finally:
        del gym.registry["Masked-v0"]
    with pytest.raises(UserWarning, match="got no action masks"):  # and afterwards rl-zoo3 is as it was
        evaluate_policy(SHMPPO("MlpSHMPolicy", Monitor(MaskedEnv())), MaskedEnv(), warn=False)
