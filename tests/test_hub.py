"""Sharing models: what is written, what is read back, and what is refused. The Hub is a folder here."""

import io
import json
import pickle
import re
import shutil
import sys
import zipfile
from collections import OrderedDict
from contextlib import contextmanager, redirect_stdout
from inspect import signature
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from small_envs import Memoryless, RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import sb3_shm
from sb3_shm import SHM, SHMPPO, SHMSAC
from sb3_shm.hub import load_from_hub, load_into_logs, main, push_to_hub
from sb3_shm.model_folder import load_model_folder, read_config, save_model_folder
from sb3_shm.safe_format import decode_space, encode, encode_space, load_folder, load_vec_normalize, save_folder

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

ENV = "CartPoleNoVel-v0"
TOKEN = "hf_thisIsTheSecretToken"
BOX = spaces.Box(-1, 2, (2,), np.float32)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder in place of the Hub, behind the real signatures of the real client's functions."""
    root = tmp_path / "hub"
    api, snapshot = huggingface_hub.HfApi, huggingface_hub.snapshot_download
    signatures = {
        name: signature(function) for name, function in vars(api).items() if name in ("create_repo", "upload_folder")
    }
    download = signature(snapshot)

    def create_repo(*args, **kwargs):
        arguments = signatures["create_repo"].bind(*args, **kwargs).arguments
        (root / arguments["repo_id"]).mkdir(parents=True, exist_ok=arguments.get("exist_ok", False))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{arguments['repo_id']}")

    def upload_folder(*args, **kwargs):
        arguments = signatures["upload_folder"].bind(*args, **kwargs).arguments
        target = root / arguments["repo_id"]
        for pattern in arguments.get("delete_patterns") or []:
            for path in target.glob(pattern):
                path.unlink()
        shutil.copytree(arguments["folder_path"], target, dirs_exist_ok=True)

    def snapshot_download(*args, **kwargs):
        arguments = download.bind(*args, **kwargs).arguments
        source, target = root / arguments["repo_id"], tmp_path / "cache" / arguments["repo_id"]
        if not source.is_dir():
            import httpx2 as httpx

            response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
            raise huggingface_hub.errors.RepositoryNotFoundError("404 Client Error", response=response)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for pattern in arguments["allow_patterns"]:
            for path in source.glob(pattern):
                shutil.copy(path, target)
        return str(target)

    monkeypatch.setattr(api, "create_repo", create_repo)
    monkeypatch.setattr(api, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    return root


_unpickled: list[str] | None = None


def _audit(event: str, arguments: tuple) -> None:
    if event == "pickle.find_class" and _unpickled is not None:
        _unpickled.append(".".join(map(str, arguments)))


sys.addaudithook(_audit)


@contextmanager
def nothing_unpickled():
    """Fails if anything is unpickled that names a class or a function: whoever unpickles, Python tells."""
    global _unpickled
    _unpickled = []
    try:
        yield
        assert not _unpickled
    finally:
        _unpickled = None


def test_the_watchdog_barks():
    with pytest.raises(AssertionError, match="OrderedDict"), nothing_unpickled():
        pickle.loads(pickle.dumps(OrderedDict()))


def make_model(algorithm=SHMPPO, action_space=None, observation_space=None, policy="MlpSHMPolicy", normalize=None, **kwargs):
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=action_space, observation_space=observation_space))
    if normalize is not None:
        env = VecNormalize(env, **normalize)
    if algorithm is SHMPPO:
        kwargs = dict(n_steps=16) | kwargs
    else:
        kwargs = dict(buffer_size=500, learning_starts=20, seq_len=8) | kwargs
    return algorithm(policy, env, seed=0, **kwargs).learn(64)


def actions(model, steps: int = 20, seed: int = 3) -> np.ndarray:
    space = model.observation_space
    space.seed(seed)
    rng, state, taken = np.random.default_rng(seed), None, []
    for _ in range(steps):
        samples = [space.sample() for _ in range(3)]
        obs = (
            np.stack(samples) if not isinstance(space, spaces.Dict) else {k: np.stack([s[k] for s in samples]) for k in space}
        )
        action, state = model.predict(obs, state, rng.random(3) < 0.2, deterministic=True)
        taken.append(action)
    return np.stack(taken)


def cartpole_model(**kwargs) -> SHMPPO:
    model = SHMPPO("MlpSHMPolicy", make_vec_env(ENV, 2, seed=0), n_steps=16, seed=0, **kwargs)
    return model.learn(64)


def push(model, env_id=ENV, eval_env=None, **kwargs) -> str:
    return push_to_hub(model, "ann/agent", env_id, eval_env, token=TOKEN, **(dict(n_eval_episodes=2) | kwargs))


DICT = spaces.Dict(
    OrderedDict(
        z=spaces.Box(np.array([-np.inf, 0, -1], np.float32), np.array([np.inf, np.inf, 0.1], np.float32)),
        image=spaces.Box(0, 255, (3, 36, 36), np.uint8),
        a=spaces.Dict({"card": spaces.Discrete(4), "hand": spaces.MultiDiscrete([2, 3])}),
        flags=spaces.MultiBinary(3),
        wide=spaces.Box(-(2**60), 2**60 + 1, (2, 2), np.int64),
    )
)


@pytest.mark.parametrize("space", [DICT, BOX, spaces.Discrete(5, start=2), spaces.MultiBinary([2, 3]), *DICT.spaces.values()])
def test_spaces(space):
    text = json.dumps(encode_space(space), allow_nan=False)
    again = decode_space(json.loads(text))
    assert again == space and again.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces), "the order decides what the policy sees where"


def test_spaces_that_are_none():
    with pytest.raises(ValueError, match="Only Box, Discrete"):
        encode_space(spaces.Text(3))
    for data in (
        {},
        None,
        [],
        {"type": "Tuple"},
        {"type": "Box"},
        {"type": "Discrete", "n": -1, "start": 0},
        {"type": "Dict"},
    ):
        with pytest.raises(ValueError, match="no space"):
            decode_space(data)


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=4, max_size=4), st.integers(0, 3))
def test_bounds_are_exact(numbers, same):
    numbers = sorted(numbers[: 4 - same] + numbers[:1] * same)
    low = np.array(numbers, np.float32).reshape(2, 2)
    with np.errstate(over="ignore"):
        space = spaces.Box(low, np.full((2, 2), np.inf, np.float32))
    assert decode_space(json.loads(json.dumps(encode_space(space), allow_nan=False))) == space


MODELS = {
    "ppo-shm": dict(policy_kwargs=dict(memory_kwargs=dict(memory_size=5, time_scales=(1, 9))), clip_range_vf=0.3),
    "ppo-gru-two": dict(
        action_space=BOX,
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        policy_kwargs=dict(
            memory="gru", share_memory=False, position="sine", activation_fn=nn.SiLU, net_arch=[9], encoder_arch=()
        ),
    ),
    "ppo-dict": dict(policy="MultiInputSHMPolicy", observation_space=spaces.Dict({k: DICT[k] for k in ("flags", "image")})),
    "sac-box": dict(algorithm=SHMSAC, action_space=BOX, train_freq=(2, "step"), policy_kwargs=dict(memory=SHM)),
    "sac-discrete": dict(
        algorithm=SHMSAC,
        ent_coef=0.1,
        policy_kwargs=dict(share_memory=True, memory="lstm", optimizer_class=th.optim.AdamW, optimizer_kwargs={}),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_safe_format_is_the_whole_model(kind, tmp_path):
    model = make_model(**MODELS[kind])
    save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "sb3_shm.json"]
    with nothing_unpickled():
        loaded = load_folder(tmp_path)
    np.testing.assert_array_equal(actions(loaded), actions(model))
    ours, theirs = model.policy.state_dict(), loaded.policy.state_dict()
    assert list(ours) == list(theirs) and all(th.equal(ours[name], theirs[name]) for name in ours)
    for name in model._get_torch_save_params()[1]:
        assert th.equal(getattr(loaded, name), getattr(model, name))
    assert loaded.num_timesteps == model.num_timesteps
    for name in set(signature(type(model)).parameters) - {
        "policy",
        "env",
        "policy_kwargs",
        "stats_window_size",
        "_init_setup_model",
    }:
        ours, theirs = getattr(model, name), getattr(loaded, name)
        if callable(ours):
            assert [ours(x) for x in (1, 0.7, 0)] == [theirs(x) for x in (1, 0.7, 0)]
        else:
            assert ours == theirs, name
    # What is optimised is what acts, with the settings of the original, so that training can go on
    env = make_vec_env(
        RandomEnv, 3, env_kwargs=dict(action_space=model.action_space, observation_space=model.observation_space)
    )
    loaded = load_folder(tmp_path, env)
    before = [parameter.clone() for parameter in loaded.policy.parameters()]
    loaded.learn(96, reset_num_timesteps=False)
    assert any(not th.equal(a, b) for a, b in zip(before, loaded.policy.parameters(), strict=True))


class OwnMemory(Memoryless):
    """Of a user."""


class OwnExtractor(FlattenExtractor):
    """Of a user."""


def test_classes_of_the_user_are_named_but_not_imported(tmp_path):
    model = make_model(policy_kwargs=dict(memory=OwnMemory, features_extractor_class=OwnExtractor))
    save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    with pytest.raises(ValueError, match=r"class test_hub\.OwnMemory, .* pass classes=.*trust=True"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"class test_hub\.OwnExtractor"):
        load_folder(tmp_path, classes=[OwnMemory])
    np.testing.assert_array_equal(actions(load_folder(tmp_path, classes=[OwnMemory, OwnExtractor])), actions(model))
    manifest = json.loads((tmp_path / "sb3_shm.json").read_text())
    manifest["policy_kwargs"]["memory"] = {"__class__": "os.system"}
    (tmp_path / "sb3_shm.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"class os\.system"):
        load_folder(tmp_path, classes=[OwnMemory, OwnExtractor])
    with pytest.raises(ValueError, match=r"policy_kwargs\['f'\]\[0\] cannot be written as JSON"):
        encode(dict(f=[lambda x: x]), "policy_kwargs")


def test_a_schedule_of_the_user(tmp_path):
    model = make_model(learning_rate=lambda progress: 0.001 * (1 + progress))
    with pytest.warns(UserWarning, match="learning_rate is a schedule that cannot be written"):
        save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    assert load_folder(tmp_path).learning_rate == pytest.approx(0.001 * (1 + model._current_progress_remaining))


@pytest.mark.parametrize("observation_space", [None, spaces.Dict({"b": BOX, "a": BOX})])
def test_vec_normalize(observation_space, tmp_path):
    settings = dict(clip_obs=0.7, gamma=0.9, epsilon=1e-3, norm_obs_keys=None if observation_space is None else ["a"])
    policy = "MlpSHMPolicy" if observation_space is None else "MultiInputSHMPolicy"
    model = make_model(observation_space=observation_space, policy=policy, normalize=settings)
    original = model.get_vec_normalize_env()
    save_folder(model, tmp_path, dict(id="X", kwargs={}), original)
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=observation_space))
    with nothing_unpickled():
        both = load_vec_normalize(tmp_path), load_vec_normalize(tmp_path, env)
    for loaded in both:
        assert not loaded.training and not loaded.norm_reward
        obs = env.observation_space.sample()
        ours, theirs = original.normalize_obs(obs), loaded.normalize_obs(obs)
        for key in ours if isinstance(ours, dict) else [...]:
            np.testing.assert_array_equal(ours[key], theirs[key])
            assert ours[key].dtype == theirs[key].dtype
        assert loaded.ret_rms.var == original.ret_rms.var and loaded.ret_rms.count == original.ret_rms.count
        assert loaded.gamma == 0.9 and loaded.clip_obs == 0.7
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        load_vec_normalize(tmp_path, make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=DICT["flags"])))


def test_push_and_load(hub):
    model = cartpole_model()
    assert push(model) == "https://huggingface.co/ann/agent"
    folder = hub / "ann/agent"
    names = ["README.md", "config.yml", "model.safetensors", "model.zip", "results.json", "sb3_shm.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with nothing_unpickled():
        loaded = load_from_hub("ann/agent")
    assert sorted(path.name for path in (hub.parent / "cache/ann/agent").iterdir()) == [
        name for name in names if name not in ("README.md", "model.zip")
    ], "only what is read safely may be downloaded"
    np.testing.assert_array_equal(actions(loaded), actions(model))
    results = json.loads((folder / "results.json").read_text())
    assert results["n_eval_episodes"] == len(results["episode_rewards"]) == 2
    assert results["mean_reward"] == np.mean(results["episode_rewards"])


def test_trust_gives_the_optimizer_too(hub):
    model = cartpole_model(tensorboard_log=None)
    push(model)
    loaded = load_from_hub("ann/agent", trust=True, env=make_vec_env(ENV, 2))
    np.testing.assert_array_equal(actions(loaded), actions(model))
    ours, theirs = model.policy.optimizer.state_dict()["state"], loaded.policy.optimizer.state_dict()["state"]
    assert ours and all(th.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)


def test_sac_is_pushed_without_its_tape(hub, monkeypatch):
    model = make_model(SHMSAC, action_space=BOX, tensorboard_log=str(hub / "tensorboard"))
    env = RandomEnv(action_space=BOX)
    push(model, "Random-v0", env)
    assert "replay_buffer" not in json.loads(zipfile.ZipFile(hub / "ann/agent/model.zip").read("data"))
    for trust in (False, True):
        np.testing.assert_array_equal(actions(load_from_hub("ann/agent", trust=trust)), actions(model))


def test_no_token_and_no_local_path_is_written(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(cartpole_model(tensorboard_log=str(hub / "tensorboard")))
    for path in (hub / "ann/agent").iterdir():
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            content += b"".join(zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist())
        assert TOKEN.encode() not in content, path.name
        assert str(hub).encode() not in content, path.name


def test_the_card(hub, tmp_path):
    model = cartpole_model()
    logs = tmp_path / "logs"
    callback = EvalCallback(make_vec_env(ENV), log_path=str(logs), eval_freq=16, n_eval_episodes=2, verbose=0)
    model.learn(64, callback=callback, reset_num_timesteps=False)
    push(model, logs=logs)
    card = huggingface_hub.ModelCard.load(hub / "ann/agent/README.md")
    results = json.loads((hub / "ann/agent/results.json").read_text())
    assert card.data.library_name == "sb3-shm" and card.data.pipeline_tag == "reinforcement-learning" and ENV in card.data.tags
    [result] = card.data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type) == ("reinforcement-learning", ENV, "mean_reward")
    assert result.metric_value == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert f"sb3-shm {sb3_shm.__version__}" in card.text and f"torch {th.__version__}" in card.text
    assert "![Learning curve](learning_curve.png)" in card.text
    assert (hub / "ann/agent/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    # A later push without logs leaves no old curve behind
    push(model)
    assert not (hub / "ann/agent/learning_curve.png").exists()
    assert "learning_curve" not in (hub / "ann/agent/README.md").read_text()


def test_the_code_of_the_card_runs_as_printed(hub):
    env = VecNormalize(make_vec_env(ENV, 2, env_kwargs=dict(sutton_barto_reward=True)))
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16).learn(64)
    push(model, env_kwargs=dict(sutton_barto_reward=True))
    text = (hub / "ann/agent/README.md").read_text()
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
    rewards = json.loads((hub / "ann/agent/results.json").read_text())["episode_rewards"]
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
    assert b"ftyp" in (hub / "ann/agent/replay.mp4").read_bytes()[:16]
    assert '<video src="replay.mp4"' in (hub / "ann/agent/README.md").read_text()
    with pytest.warns(UserWarning, match="render_mode"):
        push(cartpole_model(), eval_env=gym.make(ENV), video_length=5)
    assert not (hub / "ann/agent/replay.mp4").exists()


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
        push(model, logs=hub)
    for repo_id in ("agent", "a/b/c", "../x/y", "ann/"):
        with pytest.raises(ValueError, match='repo_id must be "user/name"'):
            push_to_hub(model, repo_id, ENV)
    with pytest.raises(ValueError, match="not logged in"):
        push_to_hub(model, "ann/agent", ENV)
    assert not hub.exists(), "nothing may be made on the Hub before all is well"


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    th.manual_seed(0)
    save_model_folder(cartpole_model(), folder, "ann/agent", ENV, n_eval_episodes=1)
    return folder


@pytest.fixture
def folder(shared_folder, hub) -> Path:
    """A model on the Hub, to be spoilt."""
    return Path(shutil.copytree(shared_folder, hub / "ann/agent"))


def change(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "sb3_shm.json").read_text())
    (folder / "sb3_shm.json").write_text(json.dumps({**manifest, **changes}))


def test_damaged_models(folder):
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
        (dict(format=2, version="9.1.0"), r"sb3-shm 9\.1\.0 made this model, in format 2"),
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


def zoo_logs(root: Path, model: SHMPPO) -> Path:
    """What rl-zoo3's train leaves, as far as it concerns us."""
    path = root / "shm_ppo" / f"{ENV}_1"
    (path / ENV).mkdir(parents=True)
    model.save(path / ENV)
    model.get_vec_normalize_env().save(str(path / ENV / "vecnormalize.pkl"))
    hyperparams = OrderedDict(n_envs=2, normalize=True, policy="MlpSHMPolicy")
    (path / ENV / "config.yml").write_text(yaml.dump(hyperparams))
    (path / ENV / "args.yml").write_text(yaml.dump(OrderedDict(algo="shm_ppo", env_kwargs=None, folder="logs")))
    (path / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n1.0,5,0.1\n3.0,6,0.2\n2.5,4,0.3\n')
    return path


def test_commands(hub, tmp_path, monkeypatch, capsys):
    model = SHMPPO("MlpSHMPolicy", VecNormalize(make_vec_env(ENV, 2)), n_steps=16).learn(64)
    path = zoo_logs(tmp_path / "logs", model)
    arguments = [
        "push",
        "ann/agent",
        "--algo",
        "shm_ppo",
        "--env",
        ENV,
        "-f",
        str(tmp_path / "logs"),
        "--n-eval-episodes",
        "1",
    ]
    assert main(arguments) == 1
    assert "You are not logged in" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "https://huggingface.co/ann/agent\n"
    assert yaml.safe_load((hub / "ann/agent/config.yml").read_text()) == dict(n_envs=2, normalize=True, policy="MlpSHMPolicy")
    assert (hub / "ann/agent/learning_curve.png").is_file()
    assert main([*arguments, "--load-best"]) == 1
    assert "There is no model" in capsys.readouterr().err
    (path / ENV / "config.yml").write_text(yaml.dump(dict(frame_stack=3)))
    assert main(arguments) == 1
    assert "frame_stack: push the model from Python" in capsys.readouterr().err

    for number in (2, 3):
        assert main(["load", "ann/agent", "-f", str(tmp_path / "logs")]) == 0
        assert capsys.readouterr().out.strip().endswith(f"{ENV}_{number}")
    assert main(["load", "ann/agent", "-f", str(tmp_path / "logs"), "--exp-id", "3"]) == 1
    assert "exists: choose another exp_id" in capsys.readouterr().err
    assert main(["load", "ann/nothing"]) == 1
    assert "The Hub has no model" in capsys.readouterr().err


@pytest.mark.parametrize("trust", [False, True])
def test_what_arrives_in_the_logs_is_the_model(hub, tmp_path, trust):
    env = VecNormalize(make_vec_env(ENV, 2), clip_obs=0.5)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16).learn(64)
    push(model)
    path = load_into_logs("ann/agent", tmp_path / "logs", trust)
    assert path == tmp_path / "logs" / "shm_ppo" / f"{ENV}_1"
    np.testing.assert_array_equal(actions(SHMPPO.load(path / f"{ENV}.zip")), actions(model))
    normalizer = VecNormalize.load(str(path / ENV / "vecnormalize.pkl"), make_vec_env(ENV))
    obs = np.array([[0.3, -0.2]], np.float32)
    np.testing.assert_array_equal(normalizer.normalize_obs(obs), env.normalize_obs(obs))
    assert yaml.safe_load((path / ENV / "config.yml").read_text())["normalize"] == {"norm_obs": True, "norm_reward": False}
    assert yaml.safe_load((path / ENV / "args.yml").read_text()) == {"env_kwargs": {}}


@pytest.mark.slow
def test_rl_zoo3_enjoys_a_shared_model(hub, tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    import rl_zoo3.enjoy
    from rl_zoo3.utils import ALGOS

    model = SHMPPO("MlpSHMPolicy", VecNormalize(make_vec_env(ENV, 2)), n_steps=16).learn(64)
    push(model)
    load_into_logs("ann/agent", tmp_path / "logs")
    monkeypatch.setitem(ALGOS, "shm_ppo", SHMPPO)
    arguments = f"enjoy --algo shm_ppo --env {ENV} -f {tmp_path / 'logs'} -n 60 --no-render --deterministic"
    monkeypatch.setattr(sys, "argv", arguments.split())
    rl_zoo3.enjoy.enjoy()


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_printed(hub, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    page = Path(__file__).parent.parent / "docs" / "sharing.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(code, {"__name__": "page"})
    assert {"agent.onnx", "agent.pt2"} <= {path.name for path in tmp_path.iterdir()}


def test_folder_without_the_hub(shared_folder):
    assert load_model_folder(shared_folder).num_timesteps == 64
    with pytest.raises(AttributeError, match="push_to_nowhere"):
        sb3_shm.push_to_nowhere  # noqa: B018
    assert sb3_shm.push_to_hub is push_to_hub and sb3_shm.load_from_hub is load_from_hub
