"""Environments that were reset by others than the algorithm that trains in them."""

import contextlib
import copy
import inspect
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.envs import make_batched_env
from sb3_shm.training.resets import ResetWatch

REWARD = 0.25


class Numbered(gym.Env):
    """Episodes of 50 steps, cut off at the end. An observation is the number of the episode and of the step in it."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 50) -> None:
        self.episode, self.length = 0, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.episode, self.t], np.float32), REWARD, False, self.t == self.length, {}


class Disturb(BaseCallback):
    """Calls a function of the model at some steps of the environments."""

    def __init__(self, steps, function, stop=False):
        super().__init__()
        self.steps, self.function, self.stop = steps, function, stop

    def _on_step(self) -> bool:
        if self.n_calls in self.steps:
            self.function(self.model)
            return not self.stop
        return True


def evaluate(model):
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)


def step_by_hand(model):
    model.get_env().reset()
    model.get_env().step(np.zeros((model.n_envs, 1), np.float32))


WRAPPERS = {
    "none": lambda env: env,
    "normalize": lambda env: VecNormalize(env, norm_obs=False),
    "frame_stack": lambda env: VecFrameStack(env, 2),
    "normalized_frame_stack": lambda env: VecNormalize(VecFrameStack(env, 2), norm_obs=False),
    "monitor": VecMonitor,
}


def make_ppo(env, **kwargs):
    return SHMPPO("MlpSHMPolicy", env, n_steps=32, seq_len=8, n_epochs=1, seed=0, policy_kwargs=dict(memory="gru"), **kwargs)


def make_sac(env, **kwargs):
    arguments = dict(buffer_size=1000, learning_starts=8, seq_len=4, batch_size=2, train_freq=4, seed=0)
    return SHMSAC("MlpSHMPolicy", env, policy_kwargs=dict(memory="gru"), **{**arguments, **kwargs})


def check_rollout(model) -> int:
    """Wherever no episode starts an observation follows on the one before it. Returns the number of starts."""
    buffer = model.rollout_buffer
    obs, starts = buffer.observations[..., -2:], buffer.episode_starts.astype(bool)
    assert (obs[..., 1] == 0)[starts].all() and not (obs[..., 1] == 0)[~starts].any()
    follows = (obs[1:, :, 0] == obs[:-1, :, 0]) & (obs[1:, :, 1] == obs[:-1, :, 1] + 1)
    assert (follows | starts[1:]).all()
    return int(starts.sum())


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("function", [evaluate, lambda model: model.get_env().unwrapped.reset()])
def test_ppo_in_the_middle_of_a_rollout(wrapper, function):
    env = WRAPPERS[wrapper](make_vec_env(Numbered, 2))
    model = make_ppo(env)
    with pytest.warns(UserWarning, match="Evaluate in environments of their own") as caught:
        model.learn(64, Disturb([5, 20], function))
    assert sum("of their own" in str(w.message) for w in caught) == 1  # and not twice
    assert check_rollout(model) == 3 * 2
    assert model._last_obs[0, -1] == 32 - 20  # where the environments stand
    np.testing.assert_array_equal(model.get_env().get_attr("t"), 12)


def test_ppo_takes_a_broken_off_episode_as_cut_off_by_time():
    """Its last step's return is the reward and the discounted value of the observation after it, read after its steps."""
    model = make_ppo(make_vec_env(Numbered, 1), gamma=0.9, gae_lambda=1.0, normalize_values=False)
    with pytest.warns(UserWarning, match="of their own"):
        _, callback = model._setup_learn(32, Disturb([5], evaluate))
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    obs = th.tensor([[[1.0, t] for t in range(6)]])
    with th.no_grad():
        latent, _ = model.policy.vf_trunk(obs, model.policy.vf_trunk.initial_state(1), th.zeros(1, 6, dtype=th.bool))
        value = model.policy._values(latent)[0, -1].item()
    returns = [REWARD + 0.9 * value]
    for _ in range(4):
        returns.append(REWARD + 0.9 * returns[-1])
    np.testing.assert_allclose(model.rollout_buffer.returns[:5, 0], returns[::-1], rtol=1e-5)


@pytest.mark.parametrize("make", [make_ppo, make_sac])
@pytest.mark.parametrize(
    ("vec_env", "kwargs"), [(DummyVecEnv, {}), pytest.param(SubprocVecEnv, dict(start_method="fork"), marks=pytest.mark.posix)]
)
def test_between_two_calls_of_learn(make, vec_env, kwargs):
    """What was learned before is gone on with; the episode is not."""
    env = vec_env([Numbered, Numbered], **kwargs)
    model = make(env)
    model.learn(64)
    for disturb in (evaluate, step_by_hand, lambda model: env.reset()):
        disturb(model)
        with pytest.warns(UserWarning, match="of their own") if disturb is evaluate else warnings.catch_warnings():
            model.learn(64, reset_num_timesteps=False)
        (check_rollout if make is make_ppo else check_tape)(model)
        assert model._last_obs[0, 1] == 32
    env.close()


GYMNASIUMS = {
    **{mode.name: lambda mode=mode: SyncVectorEnv([Numbered] * 2, autoreset_mode=mode) for mode in AutoresetMode},
    "wrapped": lambda: gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([Numbered] * 2)),
    "processes": lambda: AsyncVectorEnv([Numbered] * 2),
}


@pytest.mark.parametrize("make", [make_ppo, make_sac])
@pytest.mark.parametrize("make_env", GYMNASIUMS.values(), ids=GYMNASIUMS)
def test_vector_environments_of_gymnasium(make, make_env):
    env = make_env()
    model = make(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64)
        model.learn(64, reset_num_timesteps=False)
    env.reset()
    with pytest.warns(UserWarning, match="of their own"):
        model.learn(64, reset_num_timesteps=False)
    (check_rollout if make is make_ppo else check_tape)(model)
    assert model._last_obs[0, 1] == 32
    env.close()


def test_an_environment_that_was_wrapped_by_the_algorithm():
    """It is reset beneath the algorithm's own Monitor and DummyVecEnv."""
    env = Numbered()
    model = make_ppo(env)
    model.learn(32)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    with pytest.warns(UserWarning, match="of their own"):
        model.learn(32, reset_num_timesteps=False)
    assert check_rollout(model) == 1


def test_batched_environments():
    env = make_batched_env("RepeatPreviousEasy-v0", 2)
    model = make_ppo(env)
    model.learn(64)
    env.reset()
    with pytest.warns(UserWarning, match="of their own"):
        model.learn(64, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[0].all()


def check_tape(model) -> None:
    """A row that was acted on is followed by the next observation of its episode, and none was lost or doubled."""
    buffer = model.replay_buffer
    for env in range(buffer.n_envs):
        rows = int(buffer.written[env])
        obs, acted = buffer.tape[""][env, :rows, -2:], buffer.is_transition[env, :rows]
        followed = (obs[1:, 0] == obs[:-1, 0]) & (obs[1:, 1] == obs[:-1, 1] + 1)
        assert followed[acted[:-1]].all()
        assert (obs[1:, 1] == 0)[~acted[:-1]].all()
        np.testing.assert_array_equal(buffer.steps[env, :rows], obs[:, 1])
        assert not buffer.terminals[env].any()  # cut off, not over: what comes after counts
        assert (buffer.rewards[env, :rows][acted] == REWARD).all()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("seq_len, function, stop", [(4, evaluate, False), (4, step_by_hand, True), (None, evaluate, True)])
def test_sac_by_a_callback(wrapper, seq_len, function, stop):
    env = WRAPPERS[wrapper](make_vec_env(Numbered, 2))
    model = make_sac(env, seq_len=seq_len)
    with pytest.warns(UserWarning, match="of their own") as caught:
        model.learn(128, Disturb([6, 30], function, stop))
        if stop:
            model.learn(116, reset_num_timesteps=False)
    assert sum("of their own" in str(w.message) for w in caught) == 1
    check_tape(model)
    buffer = model.replay_buffer
    assert buffer.is_transition[0].sum() - (buffer.buffer_size - buffer.written[0]) == model.num_timesteps // 2
    first = buffer.tape[""][0, :8, -1]
    np.testing.assert_array_equal(first, [0, 1, 2, 3, 4, 5, 6, 0])
    assert model._last_obs[0, -1] == model.get_env().get_attr("t")[0]


@pytest.mark.parametrize("disturbs", [False, True])
def test_last_observations_behind_vec_normalize(disturbs):
    """They are what they were, integers exactly, though a callback's reset changes the statistics at that very step."""

    class Integers(Numbered):
        observation_space = spaces.Box(0, 1000, (2,), np.int64)

        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            return obs.astype(np.int64), info

        def step(self, action):
            obs, *rest = super().step(action)
            return obs.astype(np.int64), *rest

    env = VecNormalize(DummyVecEnv([lambda: Integers(length=5)]))
    model = make_sac(env)
    callback = Disturb([5, 15, 20] if disturbs else [], lambda model: model.get_env().reset())
    with pytest.warns(UserWarning, match="of their own") if disturbs else contextlib.nullcontext():
        model.learn(64, callback)
    check_tape(model)
    assert model.replay_buffer.tape[""].dtype == np.int64


def test_an_eval_callback_on_the_training_environments():
    env = make_vec_env(Numbered, 2)
    model = make_sac(env)
    with pytest.warns(UserWarning, match="of their own"):
        model.learn(128, EvalCallback(env, n_eval_episodes=2, eval_freq=7, verbose=0, warn=False))
    check_tape(model)


@pytest.mark.parametrize("make", [make_ppo, make_sac])
def test_nothing_is_said_when_nothing_happened(make, tmp_path):
    """Ends of episodes, calls of learn in pieces, evaluation elsewhere, other models in the same environments."""
    env = make_vec_env(lambda: Numbered(5), 2)
    model = make(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, EvalCallback(make_vec_env(lambda: Numbered(5), 2), eval_freq=10, verbose=0))
        model.learn(64, reset_num_timesteps=False)
        model.learn(64)
        make(env).learn(64)
        model.save(tmp_path / "model")
        loaded = type(model).load(tmp_path / "model", env=env)
        loaded.learn(64, reset_num_timesteps=False)
        env.reset()
        loaded.learn(64)  # which resets the environments itself
    assert len(ResetWatch(env)._resets) == 3 and ResetWatch(env)._resets[0].__wrapped__.__func__ is DummyVecEnv.reset


def test_copies_of_a_watched_environment_are_their_own():
    env = Numbered()
    ResetWatch(DummyVecEnv([lambda: env]))
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        twin.reset()
        twin.reset()
        assert (env.episode, env.reset.count) == (0, 0)
        assert (twin.episode, twin.reset.count) == (2, 2)
    assert "seed" in inspect.signature(env.reset).parameters
