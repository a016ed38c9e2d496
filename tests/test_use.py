"""After training: predict, save and load, evaluation, callbacks, the stateful predictor."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import RandomEnv, RecallEnv
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_shm import SHMPPO, RecurrentSHMPolicy, StatefulPredictor
from sb3_shm.memory.base import map_state, state_tensors

KWARGS = dict(memory_kwargs=dict(memory_size=7, output_size=5), encoder_arch=[12, 9], net_arch=dict(pi=[11], vf=[13]))


@pytest.fixture(params=["shm", "lstm", "shm-separate-sine"])
def model(request) -> SHMPPO:
    kwargs = dict(KWARGS)
    if request.param == "lstm":
        kwargs.update(memory="lstm", memory_kwargs=dict(hidden_size=6))
    if request.param == "shm-separate-sine":
        kwargs.update(share_memory=False, position="sine")
    env = make_vec_env(RandomEnv, 3, seed=0, env_kwargs=dict(action_space=spaces.Box(-1, 1, (2,), np.float32)))
    return SHMPPO("MlpSHMPolicy", env, n_steps=16, seed=0, learning_rate=0.01, policy_kwargs=kwargs).learn(96)


def rollout(model: SHMPPO, observations: np.ndarray, starts: np.ndarray, state=None) -> np.ndarray:
    """Deterministic actions over T steps: observations (T, n, ...), starts (T, n)."""
    actions = []
    for obs, start in zip(observations, starts, strict=True):
        action, state = model.predict(obs, state, start, deterministic=True)
        actions.append(action)
    return np.stack(actions)


def episodes(seed: int, t: int = 30, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = rng.random((t, n)) < 0.1
    starts[:, 0] = np.arange(t) == 12
    return rng.normal(size=(t, n, 3)).astype(np.float32), starts


def test_save_and_load(model, tmp_path):
    observations, starts = episodes(0)
    before = rollout(model, observations, starts)
    model.save(tmp_path / "model")
    th.manual_seed(99)
    loaded = SHMPPO.load(tmp_path / "model")
    np.testing.assert_array_equal(rollout(loaded, observations, starts), before)
    # training goes on, with the same optimizer, in as many environments as wanted
    ours, theirs = model.policy.optimizer.state_dict()["state"], loaded.policy.optimizer.state_dict()["state"]
    assert ours and all(th.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)
    env = make_vec_env(RandomEnv, 5, env_kwargs=dict(action_space=model.action_space))
    SHMPPO.load(tmp_path / "model", env=env).learn(160, reset_num_timesteps=False)
    model.policy.save(tmp_path / "policy")
    policy = RecurrentSHMPolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(rollout(policy, observations, starts), before)


def test_deterministic_actions_do_not_depend_on_the_batch_nor_on_chance(model):
    observations, starts = episodes(1)
    together = rollout(model, observations, starts)
    np.testing.assert_array_equal(rollout(model, observations, starts), together)
    for i in range(3):
        alone = rollout(model, observations[:, i], starts[:, i : i + 1])
        np.testing.assert_allclose(alone, together[:, i], atol=1e-5)  # BLAS adds up in another order
    # a flag at the beginning of an episode is the same as no state
    fresh = rollout(model, observations[12:, :1], np.zeros_like(starts[12:, :1]))
    np.testing.assert_allclose(fresh, together[12:, :1], atol=1e-5)  # BLAS adds up in another order
    # and the memory matters
    forgetful = rollout(model, observations, np.ones_like(starts))
    assert np.abs(forgetful - together).max() > 1e-4


def test_states_of_predict(model):
    obs, starts = episodes(2)
    _, state = model.predict(obs[0])
    _, same = model.predict(obs[1], map_state(lambda s: s.numpy(), state), starts[1], deterministic=True)
    _, again = model.predict(obs[1], state, starts[1], deterministic=True)
    assert all(th.equal(a, b) for a, b in zip(state_tensors(same), state_tensors(again), strict=True))
    single, _ = model.predict(obs[0, 0])
    assert single.shape == (2,)
    with pytest.raises(ValueError, match=r"for 2 observation\(s\), tensors of the shapes"):
        model.predict(obs[0, :2], state)
    for wrong in (state[:-1] if len(state) > 1 else (), np.zeros(3), (np.zeros((3, 2)), np.zeros(3))):
        with pytest.raises(ValueError, match="The state must be what predict"):
            model.predict(obs[0], wrong)
    with pytest.raises(ValueError, match=r"episode_start must have the shape \(3,\)"):
        model.predict(obs[0], state, np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="observation of environment 1 is not finite"):
        model.predict(np.where(np.arange(3)[:, None] == 1, np.nan, obs[0]))
    with pytest.raises(ValueError, match="gymnasium's form"):
        model.predict((obs[0], {}))
    with pytest.raises(ValueError, match="state is None"):
        model.policy(th.as_tensor(obs[0]), None, th.zeros(3, dtype=th.bool))


def test_evaluate_policy_is_repeatable(model):
    scores = [evaluate_policy(model, make_vec_env(RandomEnv, 2, seed=5, env_kwargs=dict(action_space=model.action_space)), 4)]
    scores.append(
        evaluate_policy(model, make_vec_env(RandomEnv, 2, seed=5, env_kwargs=dict(action_space=model.action_space)), 4)
    )
    assert scores[0] == scores[1]


def test_stateful_predictor(model):
    observations, starts = episodes(3)
    predictor = StatefulPredictor(model)
    expected = rollout(model, observations, starts)
    for _ in range(2):
        actions = [predictor.act(obs, start) for obs, start in zip(observations, starts, strict=True)]
        np.testing.assert_array_equal(np.stack(actions), expected)
        predictor.reset()
    single = [predictor.act(obs, bool(start)) for obs, start in zip(observations[:, 0], starts[:, 0], strict=True)]
    np.testing.assert_allclose(np.stack(single), expected[:, 0], atol=1e-5)  # BLAS adds up in another order


def test_callbacks_checkpoint_and_tensorboard(tmp_path):
    env = make_vec_env(RecallEnv, 2, seed=0)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16, seed=0, policy_kwargs=KWARGS, tensorboard_log=str(tmp_path))
    callbacks = [
        EvalCallback(
            make_vec_env(RecallEnv, 2), eval_freq=16, n_eval_episodes=3, best_model_save_path=str(tmp_path), verbose=0
        ),
        CheckpointCallback(16, str(tmp_path), name_prefix="shm"),
    ]
    model.learn(64, callback=callbacks, progress_bar=True)
    assert (tmp_path / "SHMPPO_1").is_dir() and (tmp_path / "best_model.zip").exists()
    resumed = SHMPPO.load(tmp_path / "shm_32_steps", env=env)
    resumed.learn(32, reset_num_timesteps=False)
    assert resumed.num_timesteps == 64


@pytest.mark.posix
def test_killed_run_resumes_from_its_checkpoint(tmp_path):
    """A process that dies in the middle leaves a checkpoint that loads and trains on."""
    script = (
        "import os\n"
        "from small_envs import RecallEnv\n"
        "from stable_baselines3.common.callbacks import CheckpointCallback\n"
        "from stable_baselines3.common.env_util import make_vec_env\n"
        "from sb3_shm import SHMPPO\n"
        "class Die(CheckpointCallback):\n"
        "    def _on_step(self):\n"
        "        go_on = super()._on_step()\n"
        "        if self.n_calls == 40: os.kill(os.getpid(), 9)\n"
        "        return go_on\n"
        f"model = SHMPPO('MlpSHMPolicy', make_vec_env(RecallEnv, 2), n_steps=16)\n"
        f"model.learn(10_000, callback=Die(16, {str(tmp_path)!r}))\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    model = SHMPPO.load(tmp_path / "rl_model_64_steps", env=make_vec_env(RecallEnv, 2))
    assert model.learn(32, reset_num_timesteps=False).num_timesteps == 96


def test_learning_in_pieces_keeps_count():
    env = make_vec_env(RecallEnv, 2, seed=0)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16, seed=0, policy_kwargs=KWARGS)
    model.learn(32)
    state = model._last_state
    assert state_tensors(state)[0].any()
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 64


def test_broken_file(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="zip"):
        SHMPPO.load(tmp_path / "broken.zip")
