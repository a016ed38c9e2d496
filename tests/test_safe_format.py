"""A model as JSON and safetensors: all of it arrives, and nothing is unpickled."""

import json
import pickle
from collections import OrderedDict
from inspect import signature

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sharing import BOX, actions, make_model, nothing_unpickled
from small_envs import Memoryless, RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_shm import SHM, SHMSAC
from sb3_shm.policies.pictures import SmallCNN
from sb3_shm.sharing.encoding import decode_space, encode, encode_space
from sb3_shm.sharing.safe_format import load_folder, save_folder
from sb3_shm.sharing.statistics import load_vec_normalize

pytest.importorskip("safetensors")
pytest.importorskip("yaml")


def test_the_watchdog_barks():
    with pytest.raises(AssertionError, match="OrderedDict"), nothing_unpickled():
        pickle.loads(pickle.dumps(OrderedDict()))


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


def test_an_environment_that_does_not_fit(tmp_path):
    """Nothing is wrong with the file."""
    save_folder(make_model(), tmp_path, {}, None)
    with pytest.raises(ValueError, match=r"^The environment does not fit the model in .*: Observation spaces do not match"):
        load_folder(tmp_path, make_vec_env("CartPole-v1", 1))


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
    "ppo-shm": dict(policy_kwargs=dict(memory_kwargs=dict(memory_size=5, keys="softmax", read_gain=None)), clip_range_vf=0.3),
    "ppo-gru-two": dict(
        action_space=BOX,
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        policy_kwargs=dict(
            memory="gru", share_memory=False, position="sine", activation_fn=nn.SiLU, net_arch=[9], encoder_arch=()
        ),
    ),
    "ppo-dict": dict(policy="MultiInputSHMPolicy", observation_space=spaces.Dict({k: DICT[k] for k in ("flags", "image")})),
    "ppo-small-picture": dict(
        policy="MultiInputSHMPolicy",
        observation_space=spaces.Dict(view=spaces.Box(0, 255, (3, 7, 7), np.uint8), image=DICT["image"], flags=DICT["flags"]),
        policy_kwargs=dict(normalize_images=False, features_extractor_kwargs=dict(n_values=4)),
    ),
    "sac-small-picture": dict(
        algorithm=SHMSAC,
        policy="CnnSHMPolicy",
        observation_space=spaces.Box(0, 255, (3, 7, 7), np.uint8),
        policy_kwargs=dict(features_extractor_class=SmallCNN),
    ),
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
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "whoever may read one file may read all"
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
        "unavailable",
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
    with pytest.raises(ValueError, match=r"class test_safe_format\.OwnMemory, .* pass classes=.*trust=True"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"class test_safe_format\.OwnExtractor"):
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
    model = make_model(learning_rate=lambda progress: 0.001 * progress)
    model._current_progress_remaining = 0  # as after a training, where this schedule has an illegal value
    with pytest.warns(UserWarning, match="learning_rate is a schedule that cannot be written"):
        save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    assert load_folder(tmp_path).learning_rate == pytest.approx(0.001)


def test_nothing_is_clipped(tmp_path):
    model = make_model(normalize=dict(clip_obs=np.inf, clip_reward=float("inf")))
    save_folder(model, tmp_path, dict(id="X", kwargs={}), model.get_vec_normalize_env())
    loaded = load_vec_normalize(tmp_path)
    assert loaded.clip_obs == loaded.clip_reward == np.inf
    text = (tmp_path / "sb3_shm.json").read_text()
    for wrong in ('"-inf"', '"nan"', "-1"):
        (tmp_path / "sb3_shm.json").write_text(text.replace('"clip_obs": "inf"', f'"clip_obs": {wrong}'))
        with pytest.raises(ValueError, match="clip_obs must be"):
            load_vec_normalize(tmp_path)


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
