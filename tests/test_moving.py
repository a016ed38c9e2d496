"""Scripts and settings of Stable-Baselines3 and of sb3-contrib's RecurrentPPO, moved over."""

from argparse import Namespace
from contextlib import nullcontext as does_not_raise
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn

from sb3_shm import SHMPPO, SHMSAC, RecurrentSHMPolicy
from sb3_shm.memory import make_memory
from sb3_shm.memory.stack import Stack
from sb3_shm.memory.testing import check_memory
from sb3_shm.shm_ppo.lstm_policies import as_shm_policy
from sb3_shm.shm_ppo.rollout import check_lengths
from sb3_shm.shm_sac.targets import n_step_targets
from tests.small_envs import RandomEnv

rl_zoo3 = pytest.importorskip("rl_zoo3", reason="extra zoo")

BLOCKS = yaml.safe_load(files("rl_zoo3").joinpath("hyperparams/ppo_lstm.yml").read_text(encoding="utf-8"))
DISCRETE = ("CartPole", "MountainCarNoVel", "Acrobot", "LunarLanderNoVel")


def policy_kwargs(env_id):
    """What rl-zoo3 makes of a block's text."""
    return eval(BLOCKS[env_id].get("policy_kwargs", "dict()").replace("\n", " "), {"nn": nn})


class StandIn(gym.Env):
    """An environment of which only the spaces matter: those of a block's environment, or much like them."""

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


@pytest.mark.parametrize("net_arch", [{}, dict(net_arch=None), dict(net_arch=[]), dict(net_arch=dict(pi=[8], vf=[]))])
@pytest.mark.parametrize("extractor", [{}, *(dict(features_extractor_class=one) for one in (NatureCNN, FlattenExtractor))])
@pytest.mark.parametrize("name", ["MlpLstmPolicy", "CnnLstmPolicy"])
def test_heads_are_those_of_recurrent_ppo(name, extractor, net_arch):
    pictures = make_vec_env(RandomEnv, 1, env_kwargs=dict(observation_space=spaces.Box(0, 255, (3, 36, 36), np.uint8)))

    def layers(algorithm):
        kwargs = dict(extractor, **net_arch, lstm_hidden_size=8)
        model = algorithm(name, pictures, n_steps=8, batch_size=8, policy_kwargs=kwargs)
        heads = model.policy.mlp_extractor
        return [[p.shape for p in head.parameters()] for head in (heads.policy_net, heads.value_net)]

    assert layers(SHMPPO) == layers(RecurrentPPO)


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
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of seq_len = 128 .* lower seq_len, for example to 4"):
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
    with pytest.raises(ValueError, match=r"gSDE.* can only be used with continuous actions"):
        SHMPPO("MlpPolicy", "CartPole-v1", use_sde=True)
    with pytest.raises(ValueError, match=r"use_sde=True .* needs Box actions"):
        RecurrentSHMPolicy(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2), lambda _: 1e-3, use_sde=True)
    with pytest.raises(ValueError, match="squash_output=True needs use_sde=True"):
        SHMPPO("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(squash_output=True))
    with pytest.raises(ValueError, match="no argument 'use_sde': it is an argument of the algorithm"):
        SHMPPO("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(use_sde=True))
    with pytest.raises(ValueError, match="sde_sample_freq must be an integer, at least -1"):
        SHMPPO("MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=-2)


@pytest.mark.parametrize(
    ("memory", "critic", "kwargs"),
    [
        ("gru", "mlp", dict(output_size=8)),
        ("shm", "gru", None),
        ("lstm", "shm", None),
        ("shm", "shm_paper", None),
        ("shm", "shm_paper", dict(theta="fixed")),  # one of them draws, the other, which could, does not
        ("shm_paper", "shm", dict(calibration="constant")),
    ],
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


def sac(**kwargs):
    settings = dict(seq_len=8, batch_size=4, learning_starts=16, seed=0, use_sde=True) | kwargs
    return SHMSAC("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), **settings)


@pytest.mark.parametrize(("sde_sample_freq", "draws"), [(-1, 5), (2, 10)])
def test_sac_gsde_draws_as_often_as_asked(sde_sample_freq, draws):
    model = sac(sde_sample_freq=sde_sample_freq, train_freq=4, gradient_steps=1, use_sde_at_warmup=True)
    counted = []
    draw = model.actor.reset_noise
    model.actor.reset_noise = lambda n=1: counted.append(n) or draw(n)
    model.learn(40)  # 20 steps of each environment, the last three times with an update
    assert counted.count(2) == draws
    assert counted.count(1) == 3 == model._n_updates


def test_sac_gsde_log_probabilities_and_what_its_noise_learns_from():
    model = sac(policy_kwargs=dict(log_std_init=-1.0, clip_mean=0.5)).learn(40)
    with th.no_grad():
        model.actor.log_std.add_(1e-3)
    rows = model.replay_buffer.sample(4, env=None)
    reading = model.actor.body.read(rows)
    model.actor.reset_noise()
    actions, log_prob, _ = model.actor.options(reading)
    latent = model.actor._latent(reading)
    mean, std = model.actor.mu(latent), (latent.square() @ model.actor.log_std.exp().square() + 1e-6).sqrt()
    gaussian = th.distributions.Normal(mean, std)
    raw = th.atanh(actions.flatten(0, 1))
    expected = gaussian.log_prob(raw) - th.log(1 - actions.flatten(0, 1).square() + 1e-6)
    th.testing.assert_close(log_prob.flatten(), expected.flatten(), rtol=1e-3, atol=1e-3)
    assert mean.abs().max() <= 0.5
    th.testing.assert_close(model.actor.get_std(), model.actor.log_std.exp())
    (gradient,) = th.autograd.grad(actions.sum(), model.actor.log_std)
    assert gradient.abs().sum() > 0  # through the noise itself


def test_sac_gsde_is_saved(tmp_path):
    model = sac().learn(40)
    model.save(tmp_path / "model")
    loaded = SHMSAC.load(tmp_path / "model", env=model.env)
    obs = model.env.reset()
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))
    assert loaded.use_sde and "use_sde" not in loaded.policy_kwargs
    loaded.learn(40)


def slow_n_step(rewards, terminals, next_values, mask, gamma, n_steps):
    """By its definition: step after step, until n rewards are summed, the task ends, or there is no further transition."""
    targets = np.zeros_like(rewards)
    for i, first in np.ndindex(rewards.shape):
        t = first
        for k in range(n_steps):
            targets[i, first] += gamma**k * rewards[i, t]
            if terminals[i, t]:
                break
            if k == n_steps - 1 or t + 1 == rewards.shape[1] or not mask[i, t + 1]:
                targets[i, first] += gamma ** (k + 1) * next_values[i, t]
                break
            t += 1
    return targets


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 15), st.floats(0, 1), st.integers(0, 2**16))
def test_n_step_targets(n, t, n_steps, gamma, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, n, t))
    terminals, mask = rng.random((n, t)) < 0.2, rng.random((n, t)) < 0.8
    expected = slow_n_step(rewards, terminals, values, mask, gamma, n_steps)
    tensors = map(th.as_tensor, (rewards, terminals.astype(float), values, mask))
    got = n_step_targets(*tensors, gamma, n_steps)
    np.testing.assert_allclose(got.numpy()[mask], expected[mask], rtol=1e-9, atol=1e-9)


def test_n_steps_of_sac():
    model = sac(use_sde=False, n_steps=3).learn(60)
    assert model._n_updates > 0 and model.n_steps == 3
    with pytest.raises(ValueError, match="n_steps must be an integer, at least 1"):
        sac(n_steps=0)


@pytest.mark.parametrize("memory", ["shm", "gru", "gpt"])
@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
def test_layers_of_any_memory(algorithm, memory, tmp_path):
    lengths = dict(n_steps=16, n_epochs=2) if algorithm is SHMPPO else dict(seq_len=8, batch_size=4, learning_starts=16)
    layers = dict(memory=memory, memory_layers=3)
    model = algorithm("MlpPolicy", make_vec_env(RandomEnv, 2), policy_kwargs=layers, **lengths).learn(64)
    assert len(model.policy.pi_trunk.memory.layers) == 3
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    obs = model.env.reset()
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))


@pytest.mark.parametrize("names", [("shm", "gru"), ("shm", "shm_paper"), ("gru",), ("lstm", "mlp", "shm")])
def test_a_stack_keeps_the_contract(names):
    layers = []
    for name in names:
        layers.append(make_memory(name, layers[-1].output_size if layers else 5))
    check_memory(Stack(layers))


def test_a_stack_is_what_its_layers_are_one_after_the_other():
    layers = [make_memory("shm", 5), make_memory("gru", 32)]
    stack = Stack(layers)
    x, starts = th.randn(2, 6, 5), th.rand(2, 6) < 0.3
    state = stack.initial_state(2)
    context = stack.draw_context(state, starts)
    y, after = stack(x, state, starts, context)
    middle, _ = layers[0](x, state[0], starts, context)
    expected, last = layers[1](middle, state[1], starts)
    th.testing.assert_close(y, expected)
    th.testing.assert_close(after[1], last)
    with pytest.raises(ValueError, match="must read the output of the one before it: 5 inputs on 32 outputs"):
        Stack([layers[0], make_memory("gru", 5)])
    with pytest.raises(ValueError, match="one layer at least"):
        Stack([])
