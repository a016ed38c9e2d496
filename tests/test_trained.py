"""``trained/``: small agents that anybody can read, that reach what their cards say, and that ``enjoy`` plays from a clone."""

import json
import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from sharing import nothing_unpickled
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

folder = pytest.importorskip("sb3_shm.sharing.folder")
ROOT = Path(__file__).parent.parent
AGENTS = sorted(path.parent for path in (ROOT / "trained").rglob("sb3_shm.json"))


def test_five_small_agents_and_nothing_to_unpickle():
    assert len(AGENTS) == 5
    for agent in AGENTS:
        assert {path.suffix for path in agent.iterdir()} <= {".json", ".md", ".png", ".safetensors", ".yml"}
        assert (agent / "model.safetensors").stat().st_size < 400_000


@pytest.mark.parametrize("agent", AGENTS, ids=lambda path: path.name)
def test_an_agent_reaches_what_its_card_says(agent):
    results = json.loads((agent / "results.json").read_text())
    card = (agent / "README.md").read_text()
    assert f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}" in card and results["n_eval_episodes"] == 100
    page = (ROOT / "trained" / "README.md").read_text(encoding="utf-8")
    assert f"| {results['env_id']} | {results['mean_reward']:.2f} ± {results['std_reward']:.2f} |" in page
    with nothing_unpickled():
        model = folder.load_model_folder(agent, env=make_vec_env(results["env_id"], 5, seed=3), device="cpu")
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
    assert mean > results["mean_reward"] - max(2 * results["std_reward"], 0.1 * abs(results["mean_reward"]))


@pytest.fixture
def command(zoo, monkeypatch, tmp_path, capsys):
    from sb3_shm.sharing.__main__ import main as sharing_main
    from sb3_shm.zoo.__main__ import main as zoo_main

    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert {"sb3-shm": zoo_main, "sharing": lambda: sharing_main(arguments)}[name]() in (None, 0)
        return capsys.readouterr().out

    return run


def test_enjoy_plays_from_a_clone(command):
    arguments = ("--env", "RepeatPreviousEasy-v0", "-f", str(ROOT / "trained"), "--no-render", "-n", "103")
    output = command("sb3-shm", "enjoy", *arguments)
    assert output.count("Episode Length 51") == 2
    assert float(re.search(r"Mean reward: (-?[\d.]+)", output)[1]) > 0.9


def test_enjoy_plays_an_agent_s_own_folder(command, capsys):
    agent = str(ROOT / "trained" / "shm_ppo" / "RepeatPreviousEasy-v0_1")
    output = command("sb3-shm", "enjoy", "--env", "RepeatPreviousEasy-v0", "-f", agent, "--no-render", "-n", "52")
    assert "Episode Length 51" in output
    with pytest.raises(SystemExit):
        command("sb3-shm", "enjoy", "--env", "CartPole-v1", "-f", agent, "--no-render")
    assert f"{agent} holds an agent of --algo shm_ppo --env RepeatPreviousEasy-v0" in capsys.readouterr().err


def as_the_card_says(command, monkeypatch, packed, card):
    """Its command, in its own folder."""
    (line,) = re.findall(r"^python -m sb3_shm.zoo (enjoy .*?) +#", card, flags=re.MULTILINE)
    with monkeypatch.context() as patch:
        patch.chdir(packed)
        assert "Episode Reward" in command("sb3-shm", *line.split(), "--no-render", "-n", "60")


def test_an_environment_of_ones_own(command, monkeypatch, tmp_path, capsys):
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\n\n\n"
        "class Mine(CartPoleEnv):\n    pass\n\n\n"
        'gym.register("Mine-v0", "my_envs:Mine", max_episode_steps=20)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    few = ("-n", "64", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:32", "seq_len:32", "batch_size:32")
    command("sb3-shm", "train", "--env", "Mine-v0", "--gym-packages", "my_envs", *few)
    arguments = ("--env", "Mine-v0", "--n-eval-episodes", "2")
    monkeypatch.delitem(gym.registry, "Mine-v0")
    monkeypatch.delitem(sys.modules, "my_envs")
    with pytest.raises(AssertionError):
        command("sharing", "pack", *arguments)
    assert "Unknown environment 'Mine-v0'" in (said := capsys.readouterr().err) and "--gym-packages PACKAGE" in said
    output = command("sharing", "pack", *arguments, "--gym-packages", "my_envs")
    packed = tmp_path / output.strip()
    card = (packed / "README.md").read_text()
    assert "--gym-packages my_envs" in card and "import my_envs" in card
    as_the_card_says(command, monkeypatch, packed, card)


def test_a_packed_training_is_enjoyed(command, monkeypatch, tmp_path):
    few = ("-n", "64", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:32", "batch_size:32")
    command("sb3-shm", "train", "--env", "CartPoleNoVel-v0", *few)
    (tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_2").mkdir()  # a run that failed
    arguments = ("--env", "CartPoleNoVel-v0", "--n-eval-episodes", "2")
    output = command("sharing", "pack", *arguments)
    assert output.strip() == "trained/shm_ppo/CartPoleNoVel-v0_1"
    packed = tmp_path / output.strip()
    names = {path.name for path in packed.iterdir()}
    assert {"sb3_shm.json", "model.safetensors", "vec_normalize.safetensors", "README.md", "results.json"} <= names
    assert not names & {"model.zip", "vec_normalize.pkl"}
    card = (packed / "README.md").read_text()
    assert "from_hub" not in card
    as_the_card_says(command, monkeypatch, packed, card)
    played = ("enjoy", "--env", "CartPoleNoVel-v0", "-f", "trained", "--no-render", "-n", "60")
    assert "Episode Reward" in command("sb3-shm", *played)
    (packed / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        command("sb3-shm", *played)
