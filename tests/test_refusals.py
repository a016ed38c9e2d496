"""What cannot work is refused before anything else happens, with what to write instead. The same for both algorithms."""

import os
import signal
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from small_envs import RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize, VecTransposeImage
from torch import nn

from sb3_shm import SHMPPO, SHMSAC, StatefulPredictor

TRAINED = Path(__file__).parent.parent / "trained"
PPO_KWARGS = dict(n_steps=8, n_epochs=1)
SAC_KWARGS = dict(seq_len=2, learning_starts=4, buffer_size=100, batch_size=2)
SMALL = dict(memory_kwargs=dict(memory_size=4), encoder_arch=[6], net_arch=[5])
BOX = spaces.Box(-1, 1, (2,), np.float32)
both = pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])


def make(algorithm, env, policy="MlpSHMPolicy", **kwargs):
    defaults = PPO_KWARGS if algorithm is SHMPPO else SAC_KWARGS
    return algorithm(policy, env, **{"policy_kwargs": SMALL, **defaults, **kwargs})


@both
@pytest.mark.parametrize(
    "space, message",
    [
        (spaces.Text(5), r"got Text.*; wrap it: gymnasium\.wrappers\.FlattenObservation"),
        (spaces.Graph(BOX, None), "got Graph.*; let the environment give arrays of one shape"),
        (spaces.Sequence(BOX), "got Sequence.*; let the environment give arrays of one shape"),
        (spaces.OneOf([BOX, BOX]), r"got OneOf.*; wrap it: gymnasium\.wrappers\.FlattenObservation"),
        (spaces.Dict(a=BOX, b=spaces.Text(5)), "got Dict"),
        (spaces.Dict(a=spaces.Dict(b=BOX)), r"got Dict.*; wrap it: gymnasium\.wrappers\.FlattenObservation"),
        (spaces.Box(-1, 1, (0,), np.float32), "none of length 0.*; let the environment give"),
        (spaces.Dict(a=spaces.Box(-1, 1, (3, 0), np.float32)), "none of length 0"),
    ],
)
def test_observation_spaces(algorithm, space, message):
    with pytest.raises(ValueError, match=f"The observation space must be Box .*{message}"):
        make(algorithm, RandomEnv(observation_space=space))


@both
@pytest.mark.parametrize(
    "space, message",
    [
        (spaces.MultiBinary([2, 3]), r"write MultiBinary\(6\), and reshape"),
        (spaces.Box(-1, 1, (0,), np.float32), "must be .* none of length 0"),
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite bounds .*: write the bounds that are meant"),
        (spaces.Box(-1, 1, (), np.float32), r"write Box\(-1.0, 1.0, \(1,\)\)"),
        (spaces.Dict(a=BOX), "write MultiDiscrete of all choices, or a Box"),
        (spaces.Text(5), "The action space must be"),
        (spaces.Sequence(BOX), "The action space must be"),
        (spaces.OneOf([BOX, BOX]), "The action space must be"),
    ],
)
def test_action_spaces(algorithm, space, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, RandomEnv(action_space=space))


@both
@pytest.mark.parametrize("n_envs", [1, 3])
def test_multi_binary_observations_of_two_dimensions(algorithm, n_envs):
    env = make_vec_env(RandomEnv, n_envs, env_kwargs=dict(observation_space=spaces.MultiBinary([2, 3])))
    model = make(algorithm, env).learn(24)
    assert model._n_updates
    assert model.predict(np.ones((2, 3), np.int8))[0].shape == ()


@both
def test_policies(algorithm):
    names = "'MlpSHMPolicy', 'CnnSHMPolicy', 'MultiInputSHMPolicy' or a subclass of"
    for name in ("MlpGruPolicy", ""):
        with pytest.raises(ValueError, match=f"Unknown policy '{name}', choose one of {names}"):
            make(algorithm, RandomEnv(), name)
    with pytest.raises(ValueError, match=r"The policy must be a .*, got 3"):
        make(algorithm, RandomEnv(), 3)
    with pytest.raises(ValueError, match=r"no argument 'lstm_hidden_size': write memory='lstm', memory_kwargs=dict\(hidden"):
        make(algorithm, RandomEnv(), policy_kwargs=dict(lstm_hidden_size=8))
    with pytest.raises(ValueError, match=r"no argument 'size'; the arguments in policy_kwargs are net_arch, .* memory, "):
        make(algorithm, RandomEnv(), "CnnSHMPolicy", policy_kwargs=dict(size=8))
    with pytest.raises(ValueError, match="no argument 'lr_schedule'"):
        make(algorithm, RandomEnv(), policy_kwargs=dict(lr_schedule=3))

    class Own(algorithm.policy_aliases["MlpSHMPolicy"]):
        def __init__(self, *args, extra, **kwargs):
            super().__init__(*args, **kwargs)

    make(algorithm, RandomEnv(), Own, policy_kwargs=dict(extra=1, **SMALL))  # arguments of one's own are legal


@both
def test_environments(algorithm):
    with pytest.raises(ValueError, match=r"CartPole-v1.*NEXT_STEP.*make_vec_env of Stable-Baselines3"):
        make(algorithm, gym.make_vec("CartPole-v1", 2))
    several = r"<.*: of a function that makes one, or of several, DummyVecEnv\(\[function, ...\]\) makes a VecEnv"
    for wrong, got in (
        (RandomEnv, r".*: write RandomEnv\(\)"),
        (lambda: RandomEnv(), several),
        ([RandomEnv()], r"\[" + several),
        (3, "3$"),
    ):
        with pytest.raises(
            ValueError,
            match=r"env must be a gymnasium environment \(single or vector\), the id of one or a VecEnv of .*, got " + got,
        ):
            make(algorithm, wrong)
    with pytest.raises(ValueError, match=r"env must be .*, got None \(only load\(\) needs none\)"):
        make(algorithm, None)


@both
def test_pictures(algorithm):
    def pictures(size, channels_last=True):
        return spaces.Box(0, 255, (size, size + 1, 3) if channels_last else (3, size + 1, size), np.uint8)

    for policy, extractor, space in (
        ("CnnSHMPolicy", NatureCNN, pictures(35)),
        ("MultiInputSHMPolicy", CombinedExtractor, spaces.Dict(a=BOX, b=pictures(8, False))),
    ):
        with pytest.raises(ValueError, match=r"NatureCNN.*needs 36 x 36 pixels at least, got Box.*'MultiInputSHMPolicy'"):
            make(algorithm, RandomEnv(space), policy, policy_kwargs=dict(features_extractor_class=extractor, **SMALL))
    with pytest.raises(ValueError, match=r"SmallCNN reads pictures from 3 x 3 pixels on, got Box.*'MlpSHMPolicy'"):
        make(algorithm, RandomEnv(spaces.Box(0, 255, (1, 2, 4), np.uint8)), "CnnSHMPolicy")
    make(algorithm, RandomEnv(pictures(36)), "CnnSHMPolicy").predict(np.zeros((36, 37, 3), np.uint8))
    make(algorithm, RandomEnv(pictures(8)))  # flattened
    floats = spaces.Box(0, 1, (3, 20, 20), np.float32)
    with pytest.raises(ValueError, match=r"NatureCNN.*reads pictures .*: write 'MlpSHMPolicy'"):
        make(algorithm, RandomEnv(floats), "CnnSHMPolicy")
    for wrong in (1, 2.5):
        with pytest.raises(ValueError, match=r"n_values, how many numbers .* must be an integer, at least 2"):
            kwargs = dict(features_extractor_kwargs=dict(n_values=wrong), **SMALL)
            make(algorithm, RandomEnv(pictures(8)), "CnnSHMPolicy", policy_kwargs=kwargs)


@pytest.mark.parametrize(
    "algorithm, kwargs, message",
    [
        (SHMPPO, dict(rollout_buffer_class=dict), "SHMPPO has no rollout_buffer_class"),
        (SHMPPO, dict(rollout_buffer_kwargs=dict(a=1)), "set n_steps and seq_len instead"),
        (SHMSAC, dict(optimize_memory_usage=True), "SHMSAC has no optimize_memory_usage.*never stores an observation twice"),
        (SHMSAC, dict(replay_buffer_class=dict), "hindsight experience replay .HER. is not available"),
        (SHMSAC, dict(replay_buffer_kwargs=dict(n_sampled_goal=4)), "set seq_len and burn_in instead"),
    ],
)
def test_features_that_do_not_exist(algorithm, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, RandomEnv(), **kwargs)


def test_features_that_are_switched_off():
    make(SHMPPO, RandomEnv(), sde_sample_freq=-1, rollout_buffer_class=None, rollout_buffer_kwargs=None)
    off = dict(optimize_memory_usage=False, n_steps=1, replay_buffer_class=None, replay_buffer_kwargs=None)
    make(SHMSAC, RandomEnv(), sde_sample_freq=-1, use_sde_at_warmup=False, **off)
    for algorithm in (SHMPPO, SHMSAC):
        for name, instead in (
            ("learning_rat", "did you mean 'learning_rate'"),
            ("memory", r"write policy_kwargs=dict\(memory=...\)"),
            ("memory_size", r"in policy_kwargs, write memory_kwargs=dict\(memory_size=...\)"),
            ("lstm_hidden_size", r"in policy_kwargs, write memory='lstm', memory_kwargs=dict\(hidden_size=...\)"),
            ("qqq", "its arguments are policy, env, learning_rate, .* seed"),
        ):
            with pytest.raises(TypeError, match=f"{algorithm.__name__} has no argument '{name}': {instead}"):
                make(algorithm, RandomEnv(), **{name: 3})
        for name, instead in (
            ("memroy", "did you mean 'memory';"),
            ("memory_size", r"write memory_kwargs=dict\(memory_size=...\);"),
            ("qqq", "the arguments in policy_kwargs are net_arch, .* memory_kwargs"),
        ):
            with pytest.raises(ValueError, match=f"has no argument '{name}'[:;] {instead}"):
                make(algorithm, RandomEnv(), policy_kwargs={name: 3})
    with pytest.raises(ValueError, match=r"has no argument 'actor_memory': write memory=\.\.\., or"):
        make(SHMPPO, RandomEnv(), policy_kwargs=dict(actor_memory="gru"))
    for name in ("ortho_init", "share_features_extractor"):
        with pytest.raises(ValueError, match=f"has no argument '{name}': SHMPPO's policies alone have it"):
            make(SHMSAC, RandomEnv(), policy_kwargs={name: True})
        make(SHMPPO, RandomEnv(), policy_kwargs={name: True})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(n_step=3), TypeError, "SHMPPO has no argument 'n_step': did you mean 'n_steps'"),
        (dict(monitor_wrapper=True), TypeError, "SHMPPO has no argument 'monitor_wrapper': its arguments are"),
        (dict(verbose=-1), ValueError, "verbose must be"),
        (dict(gamma=5), ValueError, "gamma must be"),
        (dict(clip_range="a"), ValueError, "clip_range must be"),
        (dict(kl_target=0.01), ValueError, "kl_coef must be above 0"),
    ],
)
def test_arguments_of_load_are_checked_as_the_constructors(kwargs, error, message, tmp_path):
    SHMPPO("MlpPolicy", "CartPole-v1", n_steps=8).save(tmp_path / "model")
    with pytest.raises(error, match=message):
        SHMPPO.load(tmp_path / "model", env="CartPole-v1", **kwargs)
    loaded = SHMPPO.load(
        tmp_path / "model", env="CartPole-v1", gamma=0.5, kl_coef=0.2, kl_target=0.01, clip_range=lambda _: 0.1
    )
    assert loaded.gamma == 0.5 and loaded.kl_target == 0.01 and loaded.clip_range(1) == 0.1
    # What a model has, as Stable-Baselines3 takes it, and a class with policies of its own names
    assert SHMPPO.load(tmp_path / "model", num_timesteps=3, lr_schedule=lambda _: 0.1).num_timesteps == 3

    class Own(SHMPPO):
        policy_aliases: ClassVar = {"Own": SHMPPO.policy_aliases["MlpPolicy"]}

    assert Own.load(tmp_path / "model", seed=3).seed == 3


def test_no_device_but_the_one_that_is_asked_for(tmp_path, monkeypatch):
    SHMPPO("MlpPolicy", "CartPole-v1", n_steps=8).save(tmp_path / "model")
    asked = []
    monkeypatch.setattr("sb3_shm.training.arguments.get_device", lambda device: asked.append(device) or th.device("cpu"))
    SHMPPO.load(tmp_path / "model", device="cpu", seed=1)
    assert set(map(str, asked)) == {"cpu"}


def test_files_that_hold_no_whole_model(tmp_path):
    SHMPPO("MlpPolicy", "CartPole-v1", n_steps=8).save(tmp_path / "model")
    whole = (tmp_path / "model.zip").read_bytes()
    for n in (0, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "part.zip").write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"part.zip is no \.zip file of a model, or cut off"):
            SHMPPO.load(tmp_path / "part.zip")
    for name in ("nowhere", "nowhere.zip"):
        with pytest.raises(FileNotFoundError, match=r"There is no model .*[/]nowhere.zip$"):
            SHMPPO.load(tmp_path / name)


def test_models_that_cannot_be_loaded(tmp_path):
    for name, of in (("ppo", SHMPPO), ("sac", SHMSAC), ("sb3", PPO), ("contrib", RecurrentPPO)):
        model = (
            make(of, RandomEnv()) if of in (SHMPPO, SHMSAC) else of("MlpPolicy" if of is PPO else "MlpLstmPolicy", RandomEnv())
        )
        model.save(tmp_path / name)
    for algorithm, own in ((SHMPPO, "ppo"), (SHMSAC, "sac")):
        for name in {"ppo", "sac", "sb3", "contrib"} - {own}:
            with pytest.raises(
                ValueError, match=rf"{name}(\.zip)? is no model of {algorithm.__name__} .* by the algorithm that saved it"
            ):
                algorithm.load(tmp_path / name)
        (tmp_path / own).mkdir()  # save("ppo") writes ppo.zip beside it
        with open(tmp_path / f"{own}.zip", "rb") as file:
            of_file = algorithm.load(file)
        for model in (algorithm.load(tmp_path / own), of_file):
            with pytest.raises(ValueError, match=r"no environment to learn in: write load\(path, env=env\)"):
                model.learn(10)
        with pytest.raises(
            IsADirectoryError, match=r"is a folder, name the file; .zip files in it: contrib\.zip, ppo\.zip, sac\.zip"
        ):
            algorithm.load(str(tmp_path))
        with pytest.raises(IsADirectoryError, match="packed agent: write load_model_folder"):
            algorithm.load(TRAINED / "shm_ppo" / "CartPole-v1_1")


def test_predictors_of_what_is_no_model():
    for wrong in (None, "model.zip"):
        with pytest.raises(TypeError, match=r"must be a trained model, for example SHMPPO.load\(path\), got"):
            StatefulPredictor(wrong)


@both
@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(seed=-1), "seed must be an integer, at least 0"),
        (dict(verbose="x"), "verbose must be an integer, at least 0"),
        (dict(stats_window_size=0), "stats_window_size must be an integer, at least 1"),
        (dict(use_sde="no"), "use_sde must be True or False, got 'no'"),
        (dict(device="tpu"), 'device must be "auto" or one that torch has here, such as "cpu", got \'tpu\''),
        (dict(device="meta:x"), "device must be"),
        (dict(n_sampled_goal=4), r"has no n_sampled_goal, leave it out: .*hindsight experience replay \(HER\)"),
        (dict(goal_selection_strategy="future"), "has no goal_selection_strategy, leave it out: .*HER"),
        (dict(policy_kwargs=[1]), r"policy_kwargs must be a dict, got \[1\]"),
        (dict(policy_kwargs=dict(optimizer_kwargs="x")), "optimizer_kwargs must be a dict, got 'x'"),
        (dict(policy_kwargs=dict(memory_kwargs=[1])), r"memory_kwargs must be a dict, got \[1\]"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(shortcut=2))), "shortcut must be True or False, got 2"),
        (dict(policy_kwargs=dict(share_memory=2)), "share_memory must be True or False, got 2"),
        (dict(policy_kwargs=dict(net_arch=[0])), "each size of net_arch must be an integer, at least 1"),
        (
            dict(policy_kwargs=dict(net_arch=dict(pi=[4], xf=[4]))),
            "net_arch must be a list of layer sizes or a dict of such for",
        ),
        (dict(batch_size=True), "batch_size .*must be an integer"),
        (dict(seq_len=np.bool_(True)), "seq_len .*must be an integer"),
    ],
)
def test_arguments(algorithm, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, RandomEnv(), **kwargs)


@both
@pytest.mark.parametrize(
    "policy_kwargs, message",
    [
        (dict(hidden_size=8), r"has no argument 'hidden_size': write memory='gru', memory_kwargs=dict\(hidden_size=...\)"),
        (dict(memory="gru", hidden_size=8), r"has no argument 'hidden_size': write memory_kwargs=dict\(hidden_size=...\)"),
        (
            dict(memory_kwargs=dict(hidden_size=8)),
            "SHM has no argument 'hidden_size', .*; hidden_size is one of 'gru', 'lstm'",
        ),
        (dict(gamma=0.9), r"'gamma': it is an argument of the algorithm, SHM(PPO|SAC)\(..., gamma=...\)"),
        (dict(seq_len=8), r"'seq_len': it is an argument of the algorithm, SHM(PPO|SAC)\(..., seq_len=...\)"),
        (dict(activation_fn=nn.ReLU()), r"activation_fn must be a class .*, got ReLU\(\): give the class, ReLU"),
        (dict(activation_fn="relu"), "activation_fn must be a class such as torch.nn.ReLU, got 'relu'"),
        (dict(features_extractor_class="NatureCNN"), "must be a class such as .*NatureCNN, got 'NatureCNN'"),
        (dict(net_arch=[dict(pi=[8], vf=[8])]), r"net_arch is a dict without a list around it, such as {'\w+': \[64\]"),
        (dict(memory="GRU"), "Unknown memory 'GRU', did you mean 'gru', choose one of"),
    ],
)
def test_arguments_of_the_policy(algorithm, policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, "CartPole-v1", policy_kwargs=policy_kwargs)


def test_ppos_and_sacs_habits_in_shmsac():
    """Its batch_size counts windows, and its n_steps are rewards in a target."""
    with pytest.raises(ValueError, match=r"n_steps must be at most seq_len = 128, .* got 2048"):
        SHMSAC("MlpSHMPolicy", "CartPole-v1", n_steps=2048)
    with pytest.warns(UserWarning, match=r"256 windows of seq_len = 128 are 32,768 transitions .* 256 are 2 windows"):
        SHMSAC("MlpSHMPolicy", "CartPole-v1", batch_size=256, policy_kwargs=SMALL)


@both
def test_ids_where_environments_are_meant(algorithm, tmp_path):
    make(algorithm, "CartPole-v1").save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", env="CartPole-v1")
    assert model.get_env().num_envs == 1
    model.set_env("CartPole-v1")
    model.learn(16)


@both
def test_predict_that_forgets_is_said(algorithm):
    model = make(algorithm, "CartPole-v1")
    obs = model.get_env().reset()
    with pytest.warns(UserWarning, match="3 calls of predict.* write action, state = ") as caught:
        for _ in range(9):
            model.predict(obs)
    assert len(caught) == 1
    model.predict(obs, episode_start=[True])
    with pytest.warns(UserWarning, match="neither a state nor an episode's start"):
        for _ in range(9):
            model.predict(obs, episode_start=[False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            model.predict(obs, episode_start=[True])
        state = None
        for _ in range(9):
            _, state = model.predict(obs, state)


@both
def test_a_gpu_that_is_missing_is_said(algorithm, monkeypatch):
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="torch finds no GPU: the model is on the CPU"):
        assert make(algorithm, RandomEnv(), device="cuda").device.type == "cpu"


@both
def test_numpy_integers(algorithm, tmp_path):
    """They become Python's, which do not overflow: an int8 of 64 steps times 4 environments would be 0."""
    if algorithm is SHMPPO:
        kwargs = dict(
            n_steps=np.int8(64), batch_size=np.int8(32), seq_len=np.uint8(16), n_epochs=np.int64(1), seed=np.int64(0)
        )
    else:
        names = ("buffer_size", "learning_starts", "batch_size", "train_freq", "gradient_steps", "seq_len", "burn_in", "seed")
        kwargs = dict(zip((*names, "target_update_interval"), np.int8([100, 8, 4, 2, 1, 3, 1, 0, 2]), strict=True))
    sizes = dict(memory_kwargs=dict(memory_size=np.int64(4)), encoder_arch=[np.int32(6)], net_arch=[np.int64(5)])
    model = make(algorithm, make_vec_env(RandomEnv, 4), stats_window_size=np.int64(9), policy_kwargs=sizes, **kwargs)
    model.learn(64)
    assert model._n_updates
    for name, value in kwargs.items():
        if name not in ("train_freq", "burn_in"):
            assert type(getattr(model, name)) is int and getattr(model, name) == value, name
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model").predict(np.zeros(3, np.float32))[0].shape == ()


@both
def test_total_timesteps_and_log_interval(algorithm):
    model = make(algorithm, RandomEnv())
    for wrong in (-1, "10", np.nan, True):
        with pytest.raises(ValueError, match="total_timesteps must be a finite number, at least 0"):
            model.learn(wrong)
    with pytest.raises(ValueError, match="log_interval must be an integer, at least 1; got 0"):
        model.learn(10, log_interval=0)


@both
def test_which_part_of_an_observation_is_not_finite(algorithm):
    """A single observation has no environment 1, only an element 1."""
    model = make(algorithm, make_vec_env(RandomEnv, 2))
    with pytest.raises(ValueError, match=r"The observation is not finite: \[ *0\. +nan +0\. *\]"):
        model.predict(np.array([0, np.nan, 0], np.float32))
    with pytest.raises(ValueError, match="The observation of environment 1 is not finite"):
        model.predict(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32))
    several = spaces.Dict(a=BOX, b=spaces.Discrete(2))
    model = make(algorithm, RandomEnv(several), "MultiInputSHMPolicy")
    with pytest.raises(ValueError, match="The observation is not finite"):
        model.predict(dict(a=np.array([0, np.inf], np.float32), b=0))


@both
def test_an_observation_of_other_keys(algorithm):
    a, b = np.zeros(BOX.shape, np.float32), 0
    model = make(algorithm, RandomEnv(spaces.Dict(a=BOX, b=spaces.Discrete(2))), "MultiInputSHMPolicy")
    for obs, got in (
        (dict(a=a), "the keys a"),
        (dict(a=a, b=b, c=b), "the keys a, b, c"),
        ({}, "the keys of none"),
        (a, "ndarray"),
    ):
        with pytest.raises(ValueError, match=f"The observation must be a dict of the keys a, b, got {got}$"):
            model.predict(obs)


class SaysSeven(BaseFeaturesExtractor):
    """Gives 8 features."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=7)
        self.layer = nn.Linear(observation_space.shape[0], 8)

    def forward(self, obs):
        return self.layer(obs)


@both
def test_a_features_extractor_that_gives_more_than_it_says(algorithm):
    model = make(algorithm, RandomEnv(), policy_kwargs=dict(features_extractor_class=SaysSeven, **SMALL))
    for use in (lambda: model.predict(np.zeros(3)), lambda: model.learn(16)):
        with pytest.raises(ValueError, match=r"SaysSeven says features_dim = 7, and gives features of the shape \(N, 8\)"):
            use()


@both
def test_a_frozen_run(algorithm):
    """torch's optimizers know a learning rate of 0, too."""
    kwargs = dict(normalize_values=False) if algorithm is SHMPPO else {}
    model = make(algorithm, RandomEnv(), learning_rate=0, **kwargs)
    before = [part.detach().clone() for part in model.policy.parameters()]
    model.learn(24)
    assert model._n_updates > 0
    assert all(th.allclose(part, other) for part, other in zip(model.policy.parameters(), before, strict=True))


class OutOfRange(RandomEnv):
    """At its third step its observation is one that its space does not have."""

    def __init__(self, space: spaces.Space, wrong: Any, ends: bool) -> None:
        super().__init__(space, longest=100)
        self.wrong, self.ends, self.steps = wrong, ends, 0

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.left = 99
        return obs, info

    def step(self, action):
        obs, *rest = super().step(action)
        self.steps += 1
        return (obs, *rest) if self.steps != 3 else (self.wrong, 0.0, False, self.ends, {})


@both
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("space", "wrong", "says"),
    [
        (spaces.Discrete(3), 3, r"is not of the space Discrete\(3\) at its step 3: 3"),
        (spaces.Discrete(3), -1, r"is not of the space Discrete\(3\) at its step 3: -1"),
        (
            spaces.MultiDiscrete([2, 5]),
            np.array([2, 4]),
            r"is not of the space MultiDiscrete\(\[2 5\]\) at its step 3: \[2 4\]",
        ),
        (
            spaces.Dict(a=BOX, b=spaces.Discrete(2)),
            dict(a=np.zeros(BOX.shape), b=2),
            r"is not of the space Discrete\(2\) .*: 2",
        ),
    ],
)
def test_an_observation_out_of_range(algorithm, space, wrong, says, ends):
    """torch, which makes vectors of them, would name neither the environment nor the number."""
    is_dict = isinstance(space, spaces.Dict)
    policy = "MultiInputSHMPolicy" if is_dict else "MlpSHMPolicy"
    env = DummyVecEnv([lambda: RandomEnv(space), lambda: OutOfRange(space, wrong, ends)])
    model = make(algorithm, env, policy)
    what = ("part 'b' of the " if is_dict else "") + ("terminal " if ends else "") + "observation"
    with pytest.raises(ValueError, match=f"The {what} of environment 1 {says}"):
        model.learn(300)
    with pytest.raises(ValueError, match="observation is not of the space"):
        model.predict(wrong)


class Dies(RandomEnv):
    """In its third step it raises, or its process is killed."""

    def __init__(self, how: str) -> None:
        super().__init__(longest=100)
        self.how, self.steps = how, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            if self.how == "raises":
                raise ZeroDivisionError("in the environment")
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def dead_worker(algorithm, envs, start_method):
    """The error of a training in which an environment's process ends."""
    env = SubprocVecEnv(envs, start_method)
    model = make(algorithm, VecMonitor(env))
    try:
        with pytest.raises(RuntimeError) as caught:
            model.learn(100)
    finally:
        for process in env.processes:
            process.kill()
            process.join()
    assert isinstance(caught.value.__cause__, EOFError | ConnectionError)
    return str(caught.value)


@pytest.mark.posix
@both
@pytest.mark.parametrize(
    "how, message",
    [
        ("raises", "ended with exit code 1: it raised an exception, whose traceback it printed above"),
        ("killed", "ended with exit code -9: signal 9 ended it, as the system does when memory runs out"),
    ],
)
def test_dead_workers(algorithm, how, message):
    # Only of the first process all forked ones leave the pipe alone
    envs = [lambda: Dies(how), lambda: Dies("not")]
    assert dead_worker(algorithm, envs, "fork") == f"The process of environment 0 {message}"


def test_dead_worker_of_the_default_kind():
    message = dead_worker(SHMPPO, [lambda: Dies("not"), lambda: Dies("raises")], None)
    assert message.startswith("The process of environment 1 ended with exit code 1")


@both
def test_other_broken_pipes_stay_what_they_are(algorithm):
    def callback(locals_, globals_):
        raise EOFError("of somebody else")

    with pytest.raises(EOFError, match="of somebody else"):
        make(algorithm, RandomEnv()).learn(10, callback=callback)


@both
@pytest.mark.parametrize("is_dict", [False, True])
def test_pictures_under_a_vec_normalize_that_leaves_them_alone(algorithm, is_dict):
    """SB3 puts its VecTransposeImage outside of it; the tape holds the pictures with channels first, last ones included."""
    shape = (36, 37, 3) if is_dict else (4, 5, 3)  # NatureCNN reads a Dict's
    picture = spaces.Box(0, 255, shape, np.uint8)

    class Numbered(RandomEnv):
        """Red is the step, green the episode."""

        def _see(self):
            image = np.zeros(shape, np.uint8)
            image[..., 0], image[..., 1] = self.t, self.episodes
            return dict(a=np.full(2, self.t, np.float32), image=image) if is_dict else image

        def reset(self, **kwargs):
            _, info = super().reset(**kwargs)
            self.t, self.left = 0, 3
            return self._see(), info

        def step(self, action):
            _, *rest = super().step(action)
            self.t += 1
            return self._see(), *rest

    space = spaces.Dict(a=spaces.Box(0, 9, (2,), np.float32), image=picture) if is_dict else picture
    inner = DummyVecEnv([lambda: Numbered(space)])
    env = VecNormalize(inner, norm_obs_keys=["a"]) if is_dict else VecNormalize(inner, norm_obs=False)
    policy = "MultiInputSHMPolicy" if is_dict else "MlpSHMPolicy"
    for given in (env, VecTransposeImage(env)):
        model = make(algorithm, given, policy).learn(24)
        assert model._n_updates
        if algorithm is SHMSAC:
            tape = model.replay_buffer
            n = int(tape.written[0])
            images = tape.tape["image" if is_dict else ""][0, :n]
            assert images.shape == (n, 3, *shape[:2])
            assert images[:, 0, 0, 0].tolist() == tape.steps[0, :n].tolist()  # the last observations, too
            assert (images[:, :1] == images[:, :1, :1, :1]).all() and not images[:, 2].any()
            if is_dict:
                assert tape.tape["a"][0, :n, 0].round(3).tolist() == tape.steps[0, :n].tolist()
