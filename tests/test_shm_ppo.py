"""SHMPPO: its mathematics against PPO's and by hand, all spaces, bad input."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import Memoryless, RandomEnv, RecallEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_shm import SHMPPO

SMALL = dict(memory_kwargs=dict(memory_size=8), encoder_arch=[16], net_arch=[16])


def collect(model: SHMPPO) -> None:
    """One rollout without an update, by a policy that is far from uniform."""
    with th.no_grad():
        th.nn.init.orthogonal_(model.policy.action_net.weight, gain=4)
    _, callback = model._setup_learn(10**6, None)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def batches(model: SHMPPO, batch_size: int | None = None):
    for data in model.rollout_buffer.get(batch_size):
        yield (
            data,
            model.policy.evaluate_actions(data.observations, data.actions, data.state, data.episode_starts, data.context),
        )


@pytest.mark.parametrize("memory", ["shm", "gru", "lstm"])
@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("position", [None, "sine"])
def test_ratio_is_one_before_the_first_gradient_step(memory, share_memory, position):
    """Episodes end inside sequences, each environment has several of them, and θ is random: the update sees what acted."""
    kwargs = dict(SMALL, memory=memory, share_memory=share_memory, position=position)
    if memory != "shm":
        del kwargs["memory_kwargs"]
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 4, seed=0), n_steps=64, seq_len=16, seed=0, policy_kwargs=kwargs)
    for _ in range(2):  # the second rollout begins inside episodes
        collect(model)
    assert model.rollout_buffer.episode_starts[1:].any() and np.ptp(model.rollout_buffer.log_probs) > 0.5
    for data, (values, log_prob, _) in batches(model, 64):
        ratio = th.exp(log_prob - data.old_log_prob)
        assert (ratio - 1).abs().max() < 1e-5
        assert (ratio - 1 - (log_prob - data.old_log_prob)).mean() < 1e-8
        th.testing.assert_close(values, data.old_values, atol=1e-5, rtol=1e-5)
        if memory == "shm":  # drawn again the rows would be others
            again = model.policy.evaluate_actions(data.observations, data.actions, data.state, data.episode_starts)[1]
            assert (th.exp(again - data.old_log_prob) - 1).abs().max() > 1e-3


def test_without_memory_equals_ppo():
    """With a memory that forgets everything and sequences of one step SHMPPO is PPO, weight for weight."""
    kwargs = dict(
        learning_rate=lambda p: 1e-2 * p,
        n_steps=32,
        batch_size=48,
        n_epochs=4,
        gamma=0.95,
        gae_lambda=0.8,
        clip_range=lambda p: 0.1 + 0.2 * p,
        clip_range_vf=0.5,
        ent_coef=0.01,
        vf_coef=0.5,
        target_kl=0.2,
        seed=3,
    )
    for space in (spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)):
        env_kwargs = dict(action_space=space)
        ppo = PPO("MlpPolicy", make_vec_env(RandomEnv, 3, seed=0, env_kwargs=env_kwargs), **kwargs).learn(96 * 3)
        ours = SHMPPO(
            "MlpSHMPolicy",
            make_vec_env(RandomEnv, 3, seed=0, env_kwargs=env_kwargs),
            seq_len=1,
            normalize_values=False,
            policy_kwargs=dict(memory=Memoryless, encoder_arch=[], net_arch=dict(pi=[64, 64], vf=[64, 64]), ortho_init=True),
            **kwargs,
        ).learn(96 * 3)
        theirs = ppo.policy.state_dict()
        state_dict = ours.policy.state_dict()
        assert state_dict.pop("value_statistics").tolist() == [0, 0, 0, 0, 1]
        assert set(theirs) == set(state_dict)
        for name, tensor in state_dict.items():
            th.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)
        assert set(ours.logger.name_to_value) == set(ppo.logger.name_to_value)


def test_timeouts_bootstrap_with_the_memory_of_that_step():
    """The added value is that of the episode's last observation, read after all the episode's steps."""

    class KeepEpisodes(BaseCallback):
        def _on_step(self) -> bool:
            for i in range(self.training_env.num_envs):
                now = self.model._last_episode_starts[i]
                self.episodes[i] = [] if now else self.episodes[i]
                self.episodes[i].append(self.model._last_obs[i].copy())
                info = self.locals["infos"][i]
                if info.get("TimeLimit.truncated"):
                    step = self.num_timesteps // self.training_env.num_envs - 1
                    self.cut.append((step, i, [*self.episodes[i], info["terminal_observation"]]))
                self.rewards.append(float(self.locals["rewards"][i]))
            return True

    n = 8
    model = SHMPPO(
        "MlpSHMPolicy",
        make_vec_env(RandomEnv, n, seed=1),
        n_steps=60,
        gamma=0.9,
        gae_lambda=1.0,
        seed=0,
        policy_kwargs=dict(memory="gru", share_memory=False),
    )
    callback = KeepEpisodes()
    callback.episodes, callback.cut, callback.rewards = [[] for _ in range(n)], [], []
    _, callback = model._setup_learn(10**6, callback)
    keeper = callback
    assert model.collect_rollouts(model.env, keeper, model.rollout_buffer, 60)
    raw = np.array(keeper.rewards).reshape(60, n)
    expected = raw.copy()
    for step, i, observations in keeper.cut:
        with th.no_grad():
            features = th.as_tensor(np.stack(observations))[None]
            latent, _ = model.policy.vf_trunk(
                features, model.policy.vf_trunk.initial_state(1), th.zeros(1, len(observations), dtype=th.bool)
            )
            value = model.policy.value_net(model.policy.mlp_extractor.forward_critic(latent[:, -1]))
        expected[step, i] += 0.9 * value.item()
    assert len(keeper.cut) > 5 and len({step for step, _, _ in keeper.cut}) < len(keeper.cut)  # some at the same step
    np.testing.assert_allclose(model.rollout_buffer.rewards, expected, atol=1e-5)
    # The last step's value is that of the next observation, with the memory carried on or reset
    starts = th.as_tensor(model._last_episode_starts)
    with th.no_grad():
        last = model.policy.predict_values(th.as_tensor(model._last_obs), model._last_state, starts).squeeze(1).numpy()
    delta = expected[-1] + 0.9 * last * (1 - starts.numpy()) - model.rollout_buffer.values[-1]
    np.testing.assert_allclose(model.rollout_buffer.advantages[-1], delta, atol=1e-5)


def test_values_are_normalised(tmp_path):
    """By a running mean and standard deviation of the returns, weights 0.1 and 0.9; no value changes when these do."""
    env = make_vec_env(RandomEnv, 4, seed=0)
    kwargs = dict(n_steps=32, n_epochs=1, batch_size=128, learning_rate=1e-9, seed=0, policy_kwargs=SMALL)
    model = SHMPPO("MlpSHMPolicy", env, **kwargs)
    returns = []
    for _ in range(3):
        collect(model)
        model.rollout_buffer.returns *= 300
        model.rollout_buffer.returns += 70
        returns.append(model.rollout_buffer.returns.astype(np.float64).ravel())
        ((data, (before, _, _)),) = batches(model)
        model.train()
        arguments = (data.observations, data.actions, data.state, data.episode_starts, data.context)
        after, _, _ = model.policy.evaluate_actions(*arguments)
        th.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)
        weights = np.array([0.1 * 0.9**i for i in range(len(returns))])[::-1] / (1 - 0.9 ** len(returns))
        mean = sum(w * r.mean() for w, r in zip(weights, returns, strict=True))
        std = np.sqrt(sum(w * (r**2).mean() for w, r in zip(weights, returns, strict=True)) - mean**2)
        assert model.policy.value_statistics[3:].tolist() == pytest.approx([mean, std], rel=1e-4) and std > 10
        loss = ((before - data.returns) / std).square().mean().item()
        assert model.logger.name_to_value["train/value_loss"] == pytest.approx(loss, rel=1e-3)
    model.save(tmp_path / "model")
    again = SHMPPO.load(tmp_path / "model")
    assert th.equal(again.policy.value_statistics, model.policy.value_statistics)
    with th.no_grad():
        assert th.equal(again.policy.evaluate_actions(*arguments)[0], model.policy.evaluate_actions(*arguments)[0])
    # Switched off, the loss is of the values as they are
    again = SHMPPO.load(tmp_path / "model", env, normalize_values=False)
    collect(again)
    ((data, (values, _, _)),) = batches(again)
    again.train()
    assert th.equal(again.policy.value_statistics, model.policy.value_statistics)
    loss = (values - data.returns).square().mean().item()
    assert again.logger.name_to_value["train/value_loss"] == pytest.approx(loss, rel=1e-3)


def test_returns_that_are_all_alike():
    """Nothing is divided by 0 where nothing varies: no reward at all, or the same at each step."""
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 4, seed=0), n_steps=8, policy_kwargs=SMALL)
    for returns in (0.0, 5.0, 1e6):
        before = model.policy.value_net.bias / 0.01
        model.policy.scale_values(th.full((8, 4), returns))
        assert model.policy.value_statistics.isfinite().all() and model.policy.value_net.weight.isfinite().all()
        assert model.policy.value_statistics[-1] >= 0.01 and before.isfinite().all()


def test_state_is_stored_before_the_reset():
    """The state of a sequence that begins with an episode's start is the old episode's: the reset happens inside."""
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2, seed=0), n_steps=32, seq_len=1, seed=0, policy_kwargs=SMALL)
    collect(model)
    starts = model.rollout_buffer.episode_starts
    matrices = th.stack([state[0][0] for state in model.rollout_buffer.states])
    assert (matrices[1:].abs().sum(dim=(2, 3)) > 0).all() and starts[1:].any()


def test_kl_penalty_and_its_adaptation():
    env = make_vec_env(RandomEnv, 4, seed=0)
    kwargs = dict(n_steps=64, n_epochs=8, learning_rate=3e-3, seed=0, policy_kwargs=SMALL)
    divergence = {}
    for kl_coef in (0.0, 20.0):
        model = SHMPPO("MlpSHMPolicy", env, kl_coef=kl_coef, **kwargs).learn(256)
        divergence[kl_coef] = model.logger.name_to_value["train/approx_kl"]
        assert model.kl_coef == kl_coef
    assert divergence[20.0] < 0.5 * divergence[0.0]
    # RLlib's rule: more when above twice the target, less when below half of it, as it is in between
    for target, factor in ((1e-7, 1.5), (10.0, 0.5)):
        model = SHMPPO("MlpSHMPolicy", env, kl_coef=0.2, kl_target=target, **kwargs).learn(256)
        assert model.kl_coef == pytest.approx(0.2 * factor)
    model = SHMPPO("MlpSHMPolicy", env, kl_coef=0.2, **kwargs).learn(256)
    kl = model.logger.name_to_value["train/approx_kl"]
    assert SHMPPO("MlpSHMPolicy", env, kl_coef=0.2, kl_target=kl, **kwargs).learn(256).kl_coef == 0.2


def test_vf_loss_clip():
    """Steps whose squared error exceeds the cap count the cap, and teach the value function nothing."""
    env = make_vec_env(RandomEnv, 2, seed=0)
    kwargs = dict(n_steps=32, batch_size=64, n_epochs=1, normalize_values=False, seed=0, policy_kwargs=SMALL)
    for cap in (1e-12, 0.3):
        model = SHMPPO("MlpSHMPolicy", env, vf_loss_clip=cap, **kwargs)
        collect(model)
        ((data, (values, _, _)),) = batches(model)
        expected = (values - data.returns).square().clamp(max=cap).mean().item()
        before = model.policy.value_net.weight.clone()
        model.train()
        assert model.logger.name_to_value["train/value_loss"] == pytest.approx(expected, rel=1e-4)
        assert th.equal(before, model.policy.value_net.weight) == (cap == 1e-12)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Box(-0.3, 0.5, (2,), np.float32),
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize(
    "policy, observation_space",
    [
        ("MlpSHMPolicy", spaces.Box(-1, 1, (2, 3), np.float64)),
        ("MlpSHMPolicy", spaces.Discrete(4)),
        ("MlpSHMPolicy", spaces.MultiDiscrete([3, 2])),
        ("MlpSHMPolicy", spaces.MultiBinary(3)),
        ("CnnSHMPolicy", spaces.Box(0, 255, (36, 36, 3), np.uint8)),
        ("MultiInputSHMPolicy", spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "n": spaces.Discrete(3)})),
    ],
    ids=["box", "discrete", "multi_discrete", "multi_binary", "image", "dict"],
)
def test_spaces(policy, observation_space, action_space):
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=observation_space, action_space=action_space))
    model = SHMPPO(policy, env, n_steps=16, seq_len=8, n_epochs=2, seed=0, policy_kwargs=SMALL)
    collect(model)
    for data, (_, log_prob, _) in batches(model):
        assert (th.exp(log_prob - data.old_log_prob) - 1).abs().max() < 1e-4
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert all(not th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    evaluate_policy(model, model.env, n_eval_episodes=2, warn=False)


def test_separate_features_extractors():
    env = make_vec_env(RandomEnv, 2)
    kwargs = dict(SMALL, share_memory=False, share_features_extractor=False)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16, policy_kwargs=kwargs).learn(32)
    assert model.policy.pi_features_extractor is not model.policy.vf_features_extractor
    assert model.policy.context_size == 2


def test_vec_normalize():
    env = VecNormalize(make_vec_env(RandomEnv, 2, seed=0))
    model = SHMPPO("MlpSHMPolicy", env, n_steps=32, seed=0, policy_kwargs=SMALL).learn(64)
    assert env.obs_rms.count > 60
    collect(model)
    assert np.abs(model.rollout_buffer.observations.mean()) < 0.5


class VecAsTheyCome(VecEnvWrapper):
    """Gives observations as Python's integers, as a SubprocVecEnv does whose environments forget the type."""

    def reset(self):
        return self.venv.reset().astype(np.int64)

    def step_wait(self):
        obs, *rest = self.venv.step_wait()
        return obs.astype(np.int64), *rest


class Counted(gym.Env):
    """Observations are integers, so is the reward; time is up after five steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space, reward_type: type = int) -> None:
        self.observation_space, self.reward_type = observation_space, reward_type

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), self.reward_type(action), False, self.t == 5, {}

    def _obs(self):
        def draw(space):
            return self.np_random.integers(space.low, space.high, dtype=space.dtype)

        space = self.observation_space
        return {key: draw(s) for key, s in space.items()} if isinstance(space, spaces.Dict) else draw(space)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("is_dict", [False, True])
def test_normalised_integers_are_kept_as_they_were_read(dtype, is_dict):
    """VecNormalize makes floats of integers that are no picture, and leaves their space as it is."""
    space = spaces.Box(0, 60, (2,), dtype)
    env = VecNormalize(DummyVecEnv([lambda: Counted(spaces.Dict(a=space) if is_dict else space)]))
    model = SHMPPO("MultiInputPolicy" if is_dict else "MlpPolicy", env, n_steps=32, seed=0, policy_kwargs=SMALL)
    for _ in range(2):
        collect(model)
        ((data, (_, log_prob, _)),) = batches(model)
        th.testing.assert_close(log_prob, data.old_log_prob, atol=1e-5, rtol=1e-5)
    obs = data.observations["a"] if is_dict else data.observations
    assert obs.dtype == th.float32 and (obs != obs.round()).any()


def test_integers_of_another_type_are_kept_in_that_of_their_space():
    space = spaces.Box(0, 60, (2,), np.uint8)
    env = VecAsTheyCome(DummyVecEnv([lambda: Counted(space)]))
    model = SHMPPO("MlpPolicy", env, n_steps=16, seed=0, policy_kwargs=SMALL)
    collect(model)
    assert model.rollout_buffer.observations.dtype == np.uint8


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_timeouts_where_rewards_are_no_floats(dtype):
    """SubprocVecEnv stacks what the environments give: of 0 and 1 integers or booleans."""

    class AsTheyCome(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            obs, rewards, dones, infos = self.venv.step_wait()
            return obs, rewards.astype(self.dtype), dones, infos

    def rewards(dtype):
        env = AsTheyCome(make_vec_env(Counted, 2, seed=0, env_kwargs=dict(observation_space=spaces.Box(0, 60, (2,), int))))
        env.dtype = dtype
        model = SHMPPO("MlpPolicy", env, n_steps=16, seed=0, policy_kwargs=dict(memory="gru"))
        collect(model)
        return model.rollout_buffer.rewards

    expected = rewards(np.float32)
    assert (expected != expected.round()).sum() == 6  # three episodes of two environments were cut off
    np.testing.assert_array_equal(rewards(dtype), expected)


def test_same_seed_same_run():
    def weights(seed: int) -> th.Tensor:
        env = make_vec_env(RandomEnv, 2, seed=seed)
        model = SHMPPO("MlpSHMPolicy", env, n_steps=32, seq_len=16, seed=seed, policy_kwargs=dict(SMALL, position="sine"))
        return th.nn.utils.parameters_to_vector(model.learn(192).policy.parameters())

    first = weights(7)
    assert th.equal(first, weights(7)) and not th.equal(first, weights(8))


def test_learns_to_recall():
    """A cue of the first step decides the last one: with a memory it is learnt, without it cannot be."""
    scores = {}
    for memory in ("shm", Memoryless):
        env = make_vec_env(RecallEnv, 16, seed=0)
        evaluation = EvalCallback(make_vec_env(RecallEnv, 16, seed=1), n_eval_episodes=100, eval_freq=256, verbose=0)
        kwargs = dict(memory=memory, encoder_arch=[32])
        model = SHMPPO("MlpSHMPolicy", env, learning_rate=1e-3, n_steps=32, seed=0, policy_kwargs=kwargs)
        model.learn(12_288, callback=evaluation)
        scores[memory] = evaluation.best_mean_reward
    assert scores["shm"] > 0.95 and scores[Memoryless] < 0.5, scores


def env_with_nan(where: str, at_step: int) -> gym.Env:
    class Bad(RandomEnv):
        steps = 0

        def reset(self, **kwargs):
            result = super().reset(**kwargs)
            self.left += at_step  # as nobody looks at the last observation of an episode that terminates
            return result

        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            self.steps += 1
            if self.steps == at_step:
                obs, reward = (obs * np.nan, reward) if where == "observation" else (obs, np.inf)
            return obs, reward, terminated, truncated, info

    return Bad()


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_not_finite(where):
    env = DummyVecEnv([RandomEnv, lambda: env_with_nan(where, 5)])
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16, policy_kwargs=SMALL)
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).clone()
    with pytest.raises(ValueError, match=f"The (terminal )?{where} of environment 1 is not finite at its step 5"):
        model.learn(64)
    assert th.equal(before, th.nn.utils.parameters_to_vector(model.policy.parameters()))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(n_steps=100, seq_len=30), r"seq_len must divide n_steps = 100: one of \[1, 2, 4, 5"),
        (dict(n_steps=100, seq_len=0), "seq_len must be an integer, at least 1"),
        (
            dict(n_steps=64, seq_len=32, batch_size=48),
            "multiple of seq_len = 32 up to n_steps . n_envs = 128, so 32 times 1 to 4",
        ),
        (dict(n_steps=64, batch_size=7), "32 times 1 to 4; got 7"),
        (dict(n_steps=0), "n_steps must be .* at least 1"),
        (dict(n_steps=4, seq_len=1, batch_size=1), "batch_size must be above 1"),
        (dict(n_epochs=0), "n_epochs must be .* at least 1"),
        (dict(gamma=1.1), "gamma must be .* at least 0 and at most 1"),
        (dict(gae_lambda=-0.1), "gae_lambda"),
        (dict(learning_rate=float("nan")), "learning_rate must be .* at least 0"),
        (dict(clip_range=0.0), "clip_range must be .* above 0"),
        (dict(clip_range_vf=-1), "clip_range_vf must be .* above 0"),
        (dict(max_grad_norm=0.0), "max_grad_norm must be .* above 0"),
        (dict(target_kl=0.0), "target_kl must be .* above 0"),
        (dict(kl_coef=-1.0), "kl_coef must be .* at least 0"),
        (dict(kl_target=0.01), "kl_coef must be above 0"),
        (dict(vf_loss_clip=0), "vf_loss_clip must be .* above 0"),
        (dict(ent_coef="x"), "ent_coef must be a finite number; got 'x'"),
        (dict(n_epochs=2.5), "n_epochs must be an integer, at least 1"),
        (dict(gamma=True), "gamma must be a finite number"),
        (dict(clip_range=None), "clip_range must be a finite number"),
        (dict(policy_kwargs=dict(encoder_arch=(0,))), "encoder_arch .* must be an integer, at least 1"),
        (dict(policy_kwargs=dict(encoder_arch=5)), "encoder_arch must be a list"),
        (dict(use_sde=True), "gSDE"),
        (dict(policy_kwargs=dict(use_sde=True)), "no argument 'use_sde'"),
        (dict(policy_kwargs=dict(memory="ntm")), "'shm', 'shm_paper', 'gru', 'lstm'"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(theta="free"))), "'random', 'fixed', 'neural'"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(hidden_size=3))), "SHM has no argument 'hidden_size'"),
        (dict(policy_kwargs=dict(position=3)), "None, 'sine'"),
        (dict(policy_kwargs=dict(share_features_extractor=False)), "share_memory=False"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), **kwargs)


def test_smaller_last_minibatch_warns():
    with pytest.warns(UserWarning, match="does not divide"):
        model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 3), n_steps=16, batch_size=32, policy_kwargs=SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(48)


@pytest.mark.parametrize(
    "policy, spaces_, message",
    [
        (
            "Mlp",
            dict(observation_space=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])),
            "The observation space must be Box",
        ),
        ("Mlp", dict(observation_space=spaces.Discrete(3, start=1)), "The observation space must be .* with start=0"),
        ("Mlp", dict(observation_space=spaces.Dict({"a": spaces.Discrete(3)})), "needs MultiInputSHMPolicy"),
        ("MultiInput", {}, "needs MlpSHMPolicy or CnnSHMPolicy"),
        ("Mlp", dict(action_space=spaces.Dict({"a": spaces.Discrete(2)})), "The action space must be Box"),
        ("Mlp", dict(action_space=spaces.Discrete(3, start=1)), "The action space must be .* with start=0"),
        ("Mlp", dict(action_space=spaces.Box(-5, 5, (2,), np.int64)), "a Box of float32 or float64"),
        ("Mlp", dict(action_space=spaces.MultiDiscrete([[2, 3]])), "MultiDiscrete .one dimension"),
    ],
)
def test_wrong_spaces(policy, spaces_, message):
    with pytest.raises(ValueError, match=message):
        SHMPPO(f"{policy}SHMPolicy", RandomEnv(**spaces_))


@pytest.mark.parametrize("n_envs, n_steps", [(9, 16), (2, 1), (1, 7), (11, 32)])
def test_default_minibatches_are_equal(n_envs, n_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, n_envs), n_steps=n_steps, n_epochs=1, policy_kwargs=SMALL)
        model.learn(n_envs * n_steps)
    seq_len, batch_size = model._lengths()
    assert n_steps % seq_len == 0 and batch_size > 1 and n_envs * n_steps % batch_size == 0


def test_minibatch_of_one_step():
    """The last, smaller minibatch may hold one step, whose advantage cannot be normalised."""
    with pytest.warns(UserWarning, match="smaller minibatch"):
        model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 1), n_steps=5, seq_len=1, batch_size=2, policy_kwargs=SMALL)
    assert th.isfinite(th.nn.utils.parameters_to_vector(model.learn(10).policy.parameters())).all()


def test_stop_at_the_end_of_an_episode_and_go_on():
    """The memory does not carry over into an episode that begins while no training runs."""

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return not self.locals["dones"].any()

    model = SHMPPO("MlpSHMPolicy", make_vec_env(RecallEnv, 1), n_steps=8, policy_kwargs=SMALL)
    model.learn(100, callback=Stop())
    assert model.num_timesteps == 4 and model._last_episode_starts.all() and model._last_obs[0, 0] != 0
    model.learn(8, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[:, 0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]


def test_not_finite_behind_vec_normalize():
    env = VecNormalize(DummyVecEnv([RandomEnv, lambda: env_with_nan("reward", 3)]))
    with pytest.raises(ValueError, match="The reward of environment 1 is not finite at its step 3"):
        SHMPPO("MlpSHMPolicy", env, n_steps=16, policy_kwargs=SMALL).learn(64)


def test_state_of_wrong_rows_in_the_policy():
    for memory in ("gru", "shm"):
        model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), policy_kwargs=dict(memory=memory))
        with pytest.raises(ValueError, match="one row per sequence of x, that is 2, got"):
            model.policy(th.zeros(2, 3), model.policy.initial_state(1), th.zeros(2, dtype=th.bool))


def test_tuple_observation_names_the_id_to_use():
    with pytest.raises(ValueError, match=r"popgym-AutoencodeEasy-v0: use the id 'AutoencodeEasy-v0'"):
        pytest.importorskip("popgym")
        SHMPPO("MlpSHMPolicy", "popgym-AutoencodeEasy-v0")


def test_a_deterministic_step_draws_nothing():
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 3, seed=0), seed=0, policy_kwargs=dict(SMALL, share_memory=False))
    obs, starts = th.randn(3, 3), th.zeros(3, dtype=th.bool)
    state = model.policy.initial_state(3)
    rows = []
    for seed in range(2):
        th.manual_seed(seed)
        with th.no_grad():
            actions, *_, context = model.policy(obs, state, starts, deterministic=True)
        rows.append(context)
        wanted, _ = model.predict(obs.numpy(), state[0], starts.numpy(), deterministic=True)
        assert actions.tolist() == wanted.tolist()
    assert th.equal(*rows)


def test_the_step_that_stops_is_counted_with_its_episode():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 4

    model = SHMPPO("MlpSHMPolicy", make_vec_env(RecallEnv, 1), n_steps=8, policy_kwargs=SMALL).learn(100, callback=Stop())
    assert model.num_timesteps == 4 and [info["l"] for info in model.ep_info_buffer] == [4]


def test_batch_size_names_a_shorter_seq_len():
    env = make_vec_env(RandomEnv, 2)
    with pytest.raises(ValueError, match=r"got 48: or lower seq_len, for example to 16$"):
        SHMPPO("MlpSHMPolicy", env, n_steps=64, seq_len=32, batch_size=48)
    SHMPPO("MlpSHMPolicy", env, n_steps=64, seq_len=16, batch_size=48, policy_kwargs=SMALL)
    with pytest.warns(UserWarning, match="batch_size = 256 is more than a rollout has, n_steps . n_envs = 128"):
        SHMPPO("MlpSHMPolicy", env, n_steps=64, batch_size=256, policy_kwargs=SMALL)
