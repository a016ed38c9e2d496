"""Scripts and settings of Stable-Baselines3 and of sb3-contrib's RecurrentPPO, moved over."""

from argparse import Namespace
from contextlib import nullcontext as does_not_raise
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.shm_ppo.lstm_policies import as_shm_policy
from sb3_shm.shm_ppo.rollout import check_lengths
from tests.small_envs import RandomEnv

rl_zoo3 = pytest.importorskip("rl_zoo3", reason="extra zoo")

BLOCKS = yaml.safe_load(files("rl_zoo3").joinpath("hyperparams/ppo_lstm.yml").read_text(encoding="utf-8"))
DISCRETE = ("CartPole", "MountainCarNoVel", "Acrobot", "LunarLanderNoVel")


def policy_kwargs(env_id):
    """What rl-zoo3 makes of a block's text."""
    return eval(BLOCKS[env_id].get("policy_kwargs", "dict()").replace("\n", " "), {"nn": nn})


class StandIn(gym.Env):
    """An environment of which only the spaces matter: those of a block's environment, or much like them."""

    metadata = {"render_modes": []}

    def __init__(self, is_discrete, pictures=None):
        low, high = (-np.ones(3, np.float32), np.ones(3, np.float32))
        self.action_space = gym.spaces.Discrete(3) if is_discrete else gym.spaces.Box(low, high)
        self.observation_space = gym.spaces.Box(0, 255, pictures, np.uint8) if pictures else gym.spaces.Box(-1, 1, (5,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, bool(self.np_random.random() < 0.1), {}


PICTURES = ("atari", "CarRacing-v3")  # whose wrappers want an emulator or OpenCV


@pytest.mark.parametrize("env_id", [key for key in BLOCKS if key not in ("default", *PICTURES)])
def test_blocks_of_ppo_lstm_run_unchanged(env_id, tmp_path, monkeypatch):
    from rl_zoo3.exp_manager import ExperimentManager

    monkeypatch.delitem(gym.registry, env_id, raising=False)
    gym.register(env_id, lambda render_mode=None: StandIn(env_id.startswith(DISCRETE)))
    config = str(files("rl_zoo3").joinpath("hyperparams/ppo_lstm.yml"))
    monkeypatch.setitem(rl_zoo3.ALGOS, "shm_ppo", SHMPPO)
    arguments = dict(n_timesteps=-1, eval_freq=-1, verbose=0, device="cpu", seed=0, config=config)
    with pytest.warns(UserWarning) if env_id.startswith("Inverted") and "v2" in env_id else does_not_raise():
        model, _ = ExperimentManager(Namespace(), "shm_ppo", env_id, str(tmp_path), **arguments).setup_experiment()
    peer = RecurrentPPO(BLOCKS[env_id]["policy"], model.env, policy_kwargs=policy_kwargs(env_id), use_sde=model.use_sde)
    ours = {name: tensor.shape for name, tensor in model.policy.named_parameters()}
    theirs = {name: tensor.shape for name, tensor in peer.policy.named_parameters()}
    for place in ("action_net", "value_net", "log_std"):  # the rest goes by other names, but is as much
        assert {n: s for n, s in ours.items() if place in n} == {n: s for n, s in theirs.items() if place in n}
    assert sum(s.numel() for s in ours.values()) == sum(s.numel() for s in theirs.values())
    assert model.policy.optimizer.defaults["eps"] == peer.policy.optimizer.defaults["eps"]
    assert model.n_steps == BLOCKS[env_id].get("n_steps", model.n_steps)
    assert model.gamma == BLOCKS[env_id].get("gamma", 0.99)
    actions, _ = model.predict(model.env.reset())
    assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("key", PICTURES)
def test_blocks_with_pictures_run_unchanged(key):
    block = BLOCKS[key]
    env = make_vec_env(lambda: StandIn(key == "atari", (48, 48, 3)), block["n_envs"])
    names = ("n_steps", "batch_size", "n_epochs", "vf_coef", "ent_coef", "use_sde", "sde_sample_freq")
    settings = {name: block[name] for name in names if name in block}
    model = SHMPPO(block["policy"], env, policy_kwargs=policy_kwargs(key), **settings)
    peer = RecurrentPPO(block["policy"], env, policy_kwargs=policy_kwargs(key), use_sde=model.use_sde)
    assert sum(p.numel() for p in model.policy.parameters()) == sum(p.numel() for p in peer.policy.parameters())
    assert model._lengths()[1] == block["batch_size"]


def test_lstm_policies_refuse_what_they_do_not_have():
    for kwargs, message in (
        (dict(shared_lstm=True), "shared_lstm=True needs enable_critic_lstm=False"),
        (dict(memory="gru"), "has no argument 'memory': write 'MlpSHMPolicy'"),
        (dict(lstm_hidden_size=0), "lstm_hidden_size must be an integer, at least 1"),
        (dict(n_lstm_layers=1.5), "n_lstm_layers must be an integer"),
        (dict(enable_critic_lstm="no"), "enable_critic_lstm must be True or False"),
        (dict(lstm_kwargs=dict(dropout=0.1)), "lstm_kwargs may hold torch's defaults only, got dropout=0.1"),
        (dict(lstm_size=3), "no argument 'lstm_size'"),
    ):
        with pytest.raises(ValueError, match=message):
            SHMPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="'MlpLstmPolicy' is RecurrentPPO's"):
        SHMSAC("MlpLstmPolicy", "Pendulum-v1")


def test_lstm_policies_in_words_of_ours():
    name, kwargs = as_shm_policy("MlpLstmPolicy", dict(shared_lstm=True, enable_critic_lstm=False, n_lstm_layers=2))
    assert name == "MlpSHMPolicy"
    assert kwargs["share_memory"] and kwargs["memory_kwargs"] == dict(hidden_size=256, num_layers=2)
    assert kwargs["net_arch"] == dict(pi=[64, 64], vf=[64, 64]) and kwargs["ortho_init"]
    _, kwargs = as_shm_policy("CnnLstmPolicy", None)
    assert kwargs["net_arch"] == [] and not kwargs["share_memory"] and "critic_memory" not in kwargs
    _, kwargs = as_shm_policy("MultiInputLstmPolicy", dict(enable_critic_lstm=False, lstm_hidden_size=8))
    assert kwargs["critic_memory"] == "mlp" and kwargs["critic_memory_kwargs"] == dict(output_size=8)


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
def test_names_of_sb3_policies_mean_ours(algorithm):
    for name in ("Mlp", "Cnn", "MultiInput"):
        assert algorithm.policy_aliases[f"{name}Policy"] is algorithm.policy_aliases[f"{name}SHMPolicy"]
    assert algorithm("MlpPolicy", "Pendulum-v1").policy_class is algorithm.policy_aliases["MlpSHMPolicy"]


@pytest.mark.parametrize(
    ("n_steps", "n_envs", "seq_len", "batch_size", "expected"),
    [
        (128, 8, None, 256, (128, 256)),
        (512, 32, None, 128, (128, 128)),  # sequences as long as a minibatch
        (64, 4, None, 48, (16, 48)),
        (128, 1, None, 512, (32, 128)),  # more than there is
        (64, 4, 32, 4096, (32, 256)),
    ],
)
def test_lengths_that_a_batch_size_means(n_steps, n_envs, seq_len, batch_size, expected):
    assert check_lengths(n_steps, n_envs, seq_len, batch_size, True) == expected


def test_nobody_gets_short_sequences_without_asking():
    with pytest.raises(ValueError, match="batch_size must be a multiple of seq_len = 128 .* lower seq_len, for example to 4"):
        check_lengths(128, 8, None, 100, True)
    assert check_lengths(128, 8, 4, 100, True) == (4, 100)


def pendulum(**kwargs):
    settings = dict(n_steps=32, seed=0, use_sde=True, policy_kwargs=dict(log_std_init=-1.0)) | kwargs
    return SHMPPO("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), **settings)


def test_gsde_noise_is_a_function_of_the_state_until_it_is_drawn_anew():
    model = pendulum()
    obs = model.env.reset()
    model.policy.reset_noise(2)
    first, _ = model.predict(obs)
    again, _ = model.predict(obs)
    model.policy.reset_noise(2)
    other, _ = model.predict(obs)
    mean, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all() and (first != mean).all()


@pytest.mark.parametrize(("sde_sample_freq", "draws"), [(-1, 1), (8, 4), (32, 1)])
def test_gsde_draws_as_often_as_asked(sde_sample_freq, draws):
    model = pendulum(sde_sample_freq=sde_sample_freq)
    counted = []
    draw = model.policy.reset_noise
    model.policy.reset_noise = lambda n: counted.append(n) or draw(n)
    model.learn(64)
    assert counted == [2] * draws


def test_gsde_ratio_is_one_before_the_first_step(monkeypatch):
    model = pendulum(n_epochs=1, sde_sample_freq=4)
    ratios = []
    evaluate = model.policy.evaluate_actions

    def evaluate_actions(*args):
        result = evaluate(*args)
        ratios.append(result[1].detach())
        return result

    monkeypatch.setattr(model.policy, "evaluate_actions", evaluate_actions)
    kept = []
    get = model.rollout_buffer.get
    monkeypatch.setattr(model.rollout_buffer, "get", lambda size: (kept.append(data) or data for data in get(size)))
    model.learn(64)
    th.testing.assert_close(ratios[0], kept[0].old_log_prob, rtol=1e-4, atol=1e-4)


def test_gsde_is_saved_and_squashes(tmp_path):
    model = pendulum(policy_kwargs=dict(squash_output=True, full_std=False, use_expln=True)).learn(64)
    model.save(tmp_path / "model")
    loaded = SHMPPO.load(tmp_path / "model")
    obs = model.env.reset()
    actions = model.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(actions, loaded.predict(obs, deterministic=True)[0])
    assert loaded.use_sde and loaded.policy.squash_output and (abs(actions) <= 2).all()
    assert loaded.policy.log_std.shape[1] == 1
    loaded.set_env(model.env)
    loaded.learn(64)


def test_gsde_refusals():
    with pytest.raises(ValueError, match="use_sde=True .* needs Box actions"):
        SHMPPO("MlpPolicy", "CartPole-v1", use_sde=True)
    with pytest.raises(ValueError, match="squash_output=True needs use_sde=True"):
        SHMPPO("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(squash_output=True))
    with pytest.raises(ValueError, match="no argument 'use_sde': it is an argument of the algorithm"):
        SHMPPO("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(use_sde=True))
    with pytest.raises(ValueError, match="sde_sample_freq must be an integer, at least -1"):
        SHMPPO("MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=-2)


@pytest.mark.parametrize(
    ("memory", "critic", "kwargs"),
    [("gru", "mlp", dict(output_size=8)), ("shm", "gru", None), ("lstm", "shm", None), ("shm", "shm_paper", None)],
)
def test_a_memory_each(memory, critic, kwargs, tmp_path):
    memories = dict(memory=memory, share_memory=False, critic_memory=critic, critic_memory_kwargs=kwargs)
    model = SHMPPO("MlpPolicy", make_vec_env(RandomEnv, 2), n_steps=16, policy_kwargs=memories, n_epochs=2).learn(64)
    assert type(model.policy.vf_trunk.memory) is not type(model.policy.pi_trunk.memory)
    model.save(tmp_path / "model")
    loaded = SHMPPO.load(tmp_path / "model", env=model.env).learn(32)
    assert type(loaded.policy.vf_trunk.memory) is type(model.policy.vf_trunk.memory)


def test_a_memory_each_is_refused_where_there_is_one():
    for kwargs, message in (
        (dict(critic_memory="mlp"), "critic_memory='mlp' needs share_memory=False"),
        (dict(critic_memory_kwargs={}, share_memory=False), "critic_memory_kwargs needs critic_memory"),
        (dict(critic_memory="elephant", share_memory=False), "Unknown memory 'elephant'"),
        (dict(memory_layers=0), "memory_layers must be an integer, at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SHMPPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs)
