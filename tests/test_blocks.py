"""What is wrong with a user's hyperparameters is said in one line, with file and line."""

import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import yaml

from sb3_shm.zoo.registration import ALGORITHMS, hyperparams_file

pytest.importorskip("rl_zoo3", reason="extra zoo")

from sb3_shm.zoo.arguments import train_arguments
from sb3_shm.zoo.blocks import check_block, read_blocks
from sb3_shm.zoo.folders import unpacked

GOOD = """\
default: &default
  n_envs: 2
  n_timesteps: 100
  policy: MlpPolicy
  policy_kwargs:
    memory: gru
CartPole-v1:
  <<: *default
  n_steps: 8
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  n_env: 2", "line 10: unknown key 'n_env', did you mean 'n_envs'?"),
        ("  polcy: MlpPolicy", "line 10: unknown key 'polcy', did you mean 'policy'?"),
        ("  policy_kwargs:\n    memry: gru", "line 11: unknown key 'memry' in policy_kwargs, did you mean 'memory'?"),
        ("  policy_kwargs: {memory: gur}", "line 10: memory must be one of shm, .*, got 'gur', did you mean 'gru'?"),
        ("  qqq: 1", "line 10: unknown key 'qqq'$"),
        ("  use_sde: true\n  normalize: true\n  env_wrapper: gymnasium.wrappers.RescaleAction", None),
        ("  policy_kwargs: dict(memory='gru')", None),  # rl-zoo3 evaluates texts
        ("  policy: mine.Policy\n  policy_kwargs: {extra: 1}", None),  # a policy of one's own
    ],
)
def test_keys(line, message, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(GOOD + line + "\n")
    if message is None:
        check_block(file, "CartPole-v1", "shm_ppo")
    else:
        with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
            check_block(file, "CartPole-v1", "shm_ppo")
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_rl_zoo3_has_a_block_for_all_atari_games(tmp_path):
    (tmp_path / "mine.yml").write_text("atari: {n_envs: 8}")
    check_block(tmp_path / "mine.yml", "PongNoFrameskip-v4", "shm_ppo")


def test_files_that_are_none(tmp_path):
    for text, message in (
        ("a: [", "cannot be read: while parsing"),
        ("- 1", "must hold a mapping"),
        ("Pong-v5: {n_envs: 1}", "neither a block for Pong-v4 nor a default, did you mean 'Pong-v5'"),
    ):
        file = tmp_path / "mine.yml"
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            check_block(file, "Pong-v4", "shm_ppo")
    with pytest.raises(ValueError, match="cannot be read"):
        check_block(tmp_path / "none.yml", "Pong-v4", "shm_ppo")


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_our_own_blocks_pass(algo, release):
    file = hyperparams_file(algo, release)
    for env_id in read_blocks(file):
        lacks = env_id.startswith("MiniGrid") and find_spec("minigrid") is None  # whose wrapper its block names
        with pytest.raises(ValueError, match="No module named 'minigrid'") if lacks else nullcontext():
            check_block(file, env_id, algo)


def test_blocks_of_ppo_lstm_pass():
    from importlib.resources import files

    file = files("rl_zoo3").joinpath("hyperparams/ppo_lstm.yml")
    for env_id in yaml.safe_load(file.read_text()):
        check_block(file, env_id, "shm_ppo")


@pytest.mark.parametrize(
    ("pair", "given"),
    [
        ("learning_rate:lin_0.001", "learning_rate:'lin_0.001'"),
        ("learning_rate:lin_3e-4", "learning_rate:'lin_3e-4'"),
        ("policy:MlpSHMPolicy", "policy:'MlpSHMPolicy'"),
        ("n_steps:64", "n_steps:64"),
        ("normalize:True", "normalize:True"),
        ("policy_kwargs:dict(memory='gru')", "policy_kwargs:dict(memory='gru')"),
        ("seq_len:None", "seq_len:None"),
    ],
)
def test_texts_need_no_quotes(pair, given):
    assert train_arguments(["-params", pair])[-1] == given


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["n_step:64"], "--hyperparams: unknown key 'n_step', did you mean 'n_steps'?"),
        (["n_steps"], "--hyperparams takes KEY:VALUE, such as learning_rate:0.001, got 'n_steps'"),
        (["n_steps:3 4"], "--hyperparams n_steps:3 4: the value is neither Python nor a word"),
    ],
)
def test_pairs_that_are_wrong(pairs, message, capsys):
    with pytest.raises(SystemExit):
        train_arguments(["-params", *pairs])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (["gru", "memory_size:64"], "--memory gru memory_size:64: GRU has no argument 'memory_size', its arguments are"),
        (["shm", "theta:some"], "--memory shm theta:some: Unknown theta 'some', choose one of"),
        (["shm", "memory_size:0"], "memory_size must be"),
    ],
)
def test_memories_that_are_wrong(memory, message, capsys):
    """Before anything is written."""
    with pytest.raises(SystemExit):
        train_arguments(["--env", "CartPoleNoVel-v0", "--memory", *memory])
    assert message in capsys.readouterr().err


def test_help_version_and_hub():
    def run(*arguments):
        command = [sys.executable, "-m", "sb3_shm.zoo", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    for arguments, text in (
        ((), "rl-zoo3's commands with the algorithms of sb3-shm"),
        (("--version",), "sb3-shm 0."),
        (("hub", "--help"), "Share models on the Hugging Face Hub"),
        (("train", "--help"), "--memory NAME"),
    ):
        process = run(*arguments)
        assert process.returncode == 0 and text in process.stdout, process


@pytest.mark.parametrize(
    ("folders", "more", "exp_id"),
    [
        ({1: "CartPole-v1.zip", 2: None}, [], "1"),
        ({1: "rl_model_10_steps.zip", 2: None, 10: None}, [], "1"),
        ({1: "CartPole-v1.zip", 2: "best_model.zip"}, [], None),
        ({1: "CartPole-v1.zip", 2: None}, ["--exp-id", "2"], None),  # as asked for: rl-zoo3 says what is missing
        ({1: None}, [], None),
    ],
)
def test_enjoy_passes_over_folders_without_a_model(folders, more, exp_id, tmp_path, capsys):
    for number, file in folders.items():
        folder = tmp_path / "shm_ppo" / f"CartPole-v1_{number}"
        folder.mkdir(parents=True)
        if file is not None:
            (folder / file).touch()
    arguments = ["--env", "CartPole-v1", "-f", str(tmp_path), *more]
    with unpacked(arguments) as given:
        assert given == (arguments if exp_id is None else [*arguments, "--exp-id", exp_id])
    assert ("holds no model" in capsys.readouterr().out) == (exp_id is not None)
