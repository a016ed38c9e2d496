"""Sharing models on the Hub: what is written, what is read back, and what is refused."""

import io
import json
import pickle
import re
import shutil
import sys
import zipfile
from collections import OrderedDict
from contextlib import redirect_stdout
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from sharing import BOX, ENV, TOKEN, actions, cartpole_model, make_model, nothing_unpickled, push
from small_envs import RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_shm
from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.sharing.__main__ import load_into_logs
from sb3_shm.sharing.folder import load_model_folder, read_config, save_model_folder
from sb3_shm.sharing.hub import load_from_hub, push_to_hub

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")


def test_push_and_load(hub):
    model = cartpole_model()
    assert push(model) == f"{hub.url}/ann/agent"
    folder = hub.root / "ann/agent"
    names = ["README.md", "config.yml", "model.safetensors", "model.zip", "results.json", "sb3_shm.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    hub.requests.clear()
    with nothing_unpickled():
        loaded = load_from_hub("ann/agent")
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == set(names) - {"README.md", "model.zip"}, "only what is read safely may be downloaded"
    np.testing.assert_array_equal(actions(loaded), actions(model))
    results = json.loads((folder / "results.json").read_text())
    assert results["n_eval_episodes"] == len(results["episode_rewards"]) == 2
    assert results["mean_reward"] == np.mean(results["episode_rewards"])


def test_revisions(hub):
    first, second = cartpole_model(), cartpole_model(policy_kwargs=dict(memory="gru"))
    push(first)
    commit = hub.head("ann/agent")
    push(second)
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(second))
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent", revision=commit)), actions(first))
    with pytest.raises(ValueError, match="no model 'ann/agent' with the revision 'v1'"):
        load_from_hub("ann/agent", revision="v1")


def test_trust_gives_the_optimizer_too(hub):
    model = cartpole_model(tensorboard_log=None)
    push(model)
    loaded = load_from_hub("ann/agent", trust=True, env=make_vec_env(ENV, 2))
    np.testing.assert_array_equal(actions(loaded), actions(model))
    ours, theirs = model.policy.optimizer.state_dict()["state"], loaded.policy.optimizer.state_dict()["state"]
    assert ours and all(th.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)


def test_sac_is_pushed_without_its_tape(hub):
    model = make_model(SHMSAC, action_space=BOX, tensorboard_log=str(hub.root / "tensorboard"))
    env = RandomEnv(action_space=BOX)
    push(model, "Random-v0", env)
    assert "replay_buffer" not in json.loads(zipfile.ZipFile(hub.root / "ann/agent/model.zip").read("data"))
    for trust in (False, True):
        np.testing.assert_array_equal(actions(load_from_hub("ann/agent", trust=trust)), actions(model))


def test_no_token_and_no_local_path_is_written(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(cartpole_model(tensorboard_log=str(hub.root / "tensorboard")))
    for path in (hub.root / "ann/agent").iterdir():
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            content += b"".join(zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist())
        assert TOKEN.encode() not in content, path.name
        assert str(hub.root).encode() not in content, path.name


def test_the_card(hub, tmp_path):
    model = cartpole_model()
    logs = tmp_path / "logs"
    callback = EvalCallback(make_vec_env(ENV), log_path=str(logs), eval_freq=16, n_eval_episodes=2, verbose=0)
    model.learn(64, callback=callback, reset_num_timesteps=False)
    push(model, logs=logs)
    card = huggingface_hub.ModelCard.load(hub.root / "ann/agent/README.md")
    results = json.loads((hub.root / "ann/agent/results.json").read_text())
    assert card.data.library_name == "sb3-shm" and card.data.pipeline_tag == "reinforcement-learning" and ENV in card.data.tags
    [result] = card.data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type) == ("reinforcement-learning", ENV, "mean_reward")
    assert result.metric_value == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert f"sb3-shm {sb3_shm.__version__}" in card.text and f"torch {th.__version__}" in card.text
    assert "![Learning curve](learning_curve.png)" in card.text
    assert (hub.root / "ann/agent/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    # A later push without logs leaves no old curve behind
    push(model)
    assert not (hub.root / "ann/agent/learning_curve.png").exists()
    assert "learning_curve" not in (hub.root / "ann/agent/README.md").read_text()


def test_what_the_card_says_to_install(hub):
    pytest.importorskip("popgym")
    push(SHMPPO("MlpSHMPolicy", make_vec_env("RepeatPreviousEasy-v0"), n_steps=16), "RepeatPreviousEasy-v0")
    card = (hub.root / "ann/agent/README.md").read_text()
    install = "pip install -c constraints.txt -e '.[{}]'"  # nobody but us can fetch it by its name
    assert install.format("hub,popgym") in card and install.format("hub,popgym,zoo") in card
    push(cartpole_model())
    card = (hub.root / "ann/agent/README.md").read_text()
    assert install.format("hub") in card and "popgym" not in card


def test_the_code_of_the_card_runs_as_printed(hub):
    env = VecNormalize(make_vec_env(ENV, 2, env_kwargs=dict(sutton_barto_reward=True)))
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16).learn(64)
    push(model, env_kwargs=dict(sutton_barto_reward=True))
    text = (hub.root / "ann/agent/README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    output = io.StringIO()
    with redirect_stdout(output):
        exec(code, {"__name__": "usage"})
    mean, std = map(float, re.findall(r"-?\d+\.\d+", output.getvalue()))
    assert -1.01 <= mean < 0 <= std, "the reward of these environments is -1 at the end of an episode, else 0"
    assert env.training and env.norm_reward, "the user's own environments stay as they are"


def test_normalised_models(hub):
    env = VecNormalize(make_vec_env(ENV, 2))
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16).learn(64)
    mean = env.obs_rms.mean.copy()
    push(model)
    push(model, eval_env=env)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)
    rewards = json.loads((hub.root / "ann/agent/results.json").read_text())["episode_rewards"]
    assert all(reward == int(reward) and reward > 1 for reward in rewards), "rewards must be the environment's own"
    with pytest.warns(UserWarning, match="wants normalised observations"):
        load_from_hub("ann/agent")
    for trust in (False, True):
        loaded = load_from_hub("ann/agent", trust=trust, env=make_vec_env(ENV, 3))
        obs = np.array([[0.1, -0.2]] * 3, np.float32)
        np.testing.assert_array_equal(loaded.get_vec_normalize_env().normalize_obs(obs), env.normalize_obs(obs))
        loaded.get_env().reset()


@pytest.mark.slow
def test_video(hub):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    push(cartpole_model(), video_length=5)
    assert b"ftyp" in (hub.root / "ann/agent/replay.mp4").read_bytes()[:16]
    assert '<video src="replay.mp4"' in (hub.root / "ann/agent/README.md").read_text()
    with pytest.warns(UserWarning, match="render_mode"):
        push(cartpole_model(), eval_env=gym.make(ENV), video_length=5)
    assert not (hub.root / "ann/agent/replay.mp4").exists()


def test_bad_arguments_of_push(hub):
    model = cartpole_model()
    with pytest.raises(ValueError, match="must be an SHMPPO or an SHMSAC, got a PPO"):
        push(PPO("MlpPolicy", ENV))
    with pytest.raises(ValueError, match="Unknown environment 'CartPoleNoVle-v0', the nearest ids are CartPoleNoVel-v0"):
        push(model, "CartPoleNoVle-v0")
    for env_id in ("module:Env-v0", "../x", "a/b/c", "", ".."):
        with pytest.raises(ValueError, match="env_id must be"):
            push(model, env_id)
    with pytest.raises(ValueError, match="n_eval_episodes must be"):
        push(model, n_eval_episodes=0)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        push(model, "Pendulum-v1")
    with pytest.raises(ValueError, match="must hold evaluations"):
        push(model, logs=hub.root)
    for repo_id in ("agent", "a/b/c", "../x/y", "ann/"):
        with pytest.raises(ValueError, match='repo_id must be "user/name"'):
            push_to_hub(model, repo_id, ENV)
    with pytest.raises(ValueError, match="not logged in"):
        push_to_hub(model, "ann/agent", ENV)
    assert not hub.root.exists(), "nothing may be made on the Hub before all is well"


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    th.manual_seed(0)
    save_model_folder(cartpole_model(), folder, "ann/agent", ENV, n_eval_episodes=1)
    return folder


@pytest.fixture
def folder(shared_folder, hub) -> Path:
    """A model on the Hub, to be spoilt."""
    return Path(shutil.copytree(shared_folder, hub.root / "ann/agent"))


def change(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "sb3_shm.json").read_text())
    (folder / "sb3_shm.json").write_text(json.dumps({**manifest, **changes}))


def test_what_is_no_model_s_folder(folder, tmp_path):
    for path, message in (
        (tmp_path / "nowhere", "nowhere does not exist"),
        (folder.parent, rf"The folder {re.escape(str(folder.parent))}: this is no model"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model_folder(path)
    shutil.copytree(folder, tmp_path / "packed" / "shm_ppo" / "One-v0_1")
    with pytest.raises(ValueError, match=r"packed holds models: give one, .*One-v0_1: this is no model"):
        load_model_folder(tmp_path / "packed")
    (tmp_path / "model.zip").touch()
    with pytest.raises(ValueError, match=r"model\.zip is a file: write SHMPPO\.load or SHMSAC\.load"):
        load_model_folder(tmp_path / "model.zip")


def test_damaged_models(folder, hub):
    (hub.root / "ann/words").mkdir()
    (hub.root / "ann/words/pytorch_model.bin").write_bytes(b"of another library")
    with pytest.raises(ValueError, match=r"no model of sb3-shm, as it has no file sb3_shm\.json"):
        load_from_hub("ann/words")
    with pytest.raises(ValueError, match="The Hub has no model 'ann/other'"):
        load_from_hub("ann/other")
    for name, trust in (("model.safetensors", False), ("model.zip", True), ("sb3_shm.json", False)):
        content = (folder / name).read_bytes()
        for rest in (content[: len(content) // 2], b"", b"<html>not found</html>"):
            (folder / name).write_bytes(rest)
            with pytest.raises(ValueError, match=f"{name} is"):
                load_from_hub("ann/agent", trust=trust)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=name):
            load_from_hub("ann/agent", trust=trust)
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("readme.txt", "someone's holiday")
    with pytest.raises(ValueError, match=r"it has no data, policy\.pth"):
        load_from_hub("ann/agent", trust=True)
    load_from_hub("ann/agent")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(format=3, version="9.1.0"), r"sb3-shm 9\.1\.0 made this model, in format 3"),
        (dict(library="other"), "damaged or not of sb3-shm"),
        (dict(algorithm="ppo"), "Unknown algorithm 'ppo', the known ones are shm_ppo, shm_sac"),
        (dict(arguments=dict(n_steps=-1)), "n_steps must be an integer"),
        (dict(arguments=dict(colour=1)), "colour"),
        (dict(arguments=dict(device="cuda:7")), "no arguments of a shared model: device"),
        (dict(policy="OtherPolicy"), "sb3_shm.json is missing, damaged or does not fit"),
        (dict(policy_kwargs=dict(memory="elephant")), "Unknown memory 'elephant'"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(memory_size=3))), "model.safetensors is missing, damaged or does not fit"),
        (dict(observation_space={"type": "Tuple"}), "This is no space"),
    ],
)
def test_manifests_that_are_wrong(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_from_hub("ann/agent")


def test_another_version_is_a_warning(folder):
    change(folder, version="0.0.1")
    with pytest.warns(UserWarning, match=r"sb3-shm 0\.0\.1 made this model, this is"):
        load_from_hub("ann/agent")


class Executes:
    def __reduce__(self):
        return (sys.exit, ("executed",))


def test_yaml_and_paths_of_strangers(folder, tmp_path):
    logs = tmp_path / "logs"
    config = (folder / "config.yml").read_text()
    (folder / "config.yml").write_text(yaml.dump({"n_envs": Executes()}))
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"config\.yml must be YAML of plain values"):
            load_into_logs("ann/agent", logs, trust)
    (folder / "config.yml").write_text("just words")
    with pytest.raises(ValueError, match=r"config\.yml must be a mapping"):
        load_into_logs("ann/agent", logs)
    (folder / "config.yml").write_text(config + "env_wrapper: os.system\n")
    with pytest.raises(ValueError, match=r"makes rl-zoo3 import .*os\.system"):
        load_into_logs("ann/agent", logs)
    # Strings that rl-zoo3 would evaluate do not arrive
    (folder / "config.yml").write_text(
        config + "normalize: __import__('os').system('x')\npolicy_kwargs: dict(a=1)\nframe_stack: 2\n"
    )
    path = load_into_logs("ann/agent", logs)
    assert not any(isinstance(value, str) for value in read_config(path / ENV / "config.yml").values())
    assert read_config(path / ENV / "config.yml")["frame_stack"] == 2
    (folder / "config.yml").write_text(config)
    for env_id in ("../../escaped-v0", "/tmp/escaped-v0", "evil:Env-v0", "..", None, 3):
        change(folder, environment=dict(id=env_id, kwargs={}))
        with pytest.raises(ValueError, match="env_id must be"):
            load_into_logs("ann/agent", logs)
    change(folder, environment="CartPole")
    with pytest.raises(ValueError, match="env_id must be"):
        load_into_logs("ann/agent", logs)


def test_the_pickles_of_strangers_stay_closed(folder, tmp_path):
    for name in ("model.zip", "vec_normalize.pkl"):
        (folder / name).write_bytes(pickle.dumps(Executes()))
    with nothing_unpickled():
        load_from_hub("ann/agent")
        load_into_logs("ann/agent", tmp_path / "logs")
    with pytest.raises(ValueError, match=r"model\.zip is missing, damaged"):
        load_from_hub("ann/agent", trust=True)  # no zip at all


def test_configuration_of_rl_zoo3(tmp_path):
    hyperparams = OrderedDict(policy="MlpSHMPolicy", n_envs=4, normalize="dict(norm_obs=True)", net=(1, 2))
    (tmp_path / "config.yml").write_text(yaml.dump(hyperparams))
    assert "OrderedDict" in (tmp_path / "config.yml").read_text()
    assert read_config(tmp_path / "config.yml") == {**hyperparams, "net": [1, 2]}


def test_folder_without_the_hub(shared_folder):
    assert load_model_folder(shared_folder).num_timesteps == 64
    with pytest.raises(AttributeError, match="push_to_nowhere"):
        sb3_shm.push_to_nowhere  # noqa: B018
    assert sb3_shm.push_to_hub is push_to_hub and sb3_shm.load_from_hub is load_from_hub
