"""Every task of ours has an oracle that can play it, alone and in a vector."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.oracles import ORACLES, Oracle
from sb3_shm.envs.single import make_single
from sb3_shm.envs.wrappers import VecMemoryInputs

ID_OF_TASK = {path.split(":")[1]: env_id for env_id, (path, _) in reversed(BATCHED_TASKS.items())}


@pytest.mark.parametrize("env_id", ID_OF_TASK.values())
def test_plays_alone_as_in_a_vector(env_id):
    oracle, vector = Oracle(env_id), make_batched_env(env_id, 3, seed=0)
    path, kwargs = BATCHED_TASKS[env_id]
    single = gym.Wrapper(make_single(path, **kwargs))
    vector.reset()
    single.reset(seed=0)
    for _ in range(40):
        actions, action = oracle.act(vector), oracle.act(single)
        assert len(actions) == 3
        np.testing.assert_array_equal(actions[0], action)
        dones = vector.step(actions)[2]
        _, _, terminated, truncated, _ = single.step(action)
        assert dones[0] == (terminated or truncated)
        if dones[0]:
            single.reset()


def test_every_task_has_one():
    assert set(ID_OF_TASK) == set(ORACLES)


@pytest.mark.parametrize("env_id, success", [("WindEval150-v0", 140 / 150), ("PointRobotEval150-v0", 1.0)])
def test_plane(env_id, success):
    oracle, env = Oracle(env_id), make_batched_env(env_id, 150, seed=0)
    env.reset()
    for _ in range(env.task.rollout_steps * env.task.n_rollouts):
        _, _, dones, infos = env.step(oracle.act(env))
    assert dones.all()
    assert np.mean([info["is_success"] for info in infos]) == success


def test_other_environments():
    with pytest.raises(ValueError, match="VisualMatch60-v0"):
        Oracle("VisualMatch61-v0")
    with pytest.raises(ValueError, match="no oracle for 'CartPole-v1', only for the tasks"):
        Oracle("CartPole-v1")
    # Its single environment is Gymnasium's
    for env in (gym.make("PendulumNoVel-v0"), make_vec_env("PendulumNoVel-v0", 2)):
        with pytest.raises(TypeError, match=r"envs\.single\.make_single"):
            Oracle("PendulumNoVel-v0").act(env)


def test_a_wrapped_vector():
    env = make_batched_env("VisualMatch60-v0", 2, seed=0)
    env.reset()
    oracle = Oracle("VisualMatch60-v0")
    np.testing.assert_array_equal(oracle.act(VecMemoryInputs(env)), oracle.act(env))
