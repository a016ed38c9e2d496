"""Hidden entries of observations, and the environments without velocities that are made so."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils.env_checker import check_env
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import ENV_IDS
from sb3_shm.envs.wrappers import HideEntries, VecHideEntries

MATRIX = spaces.Box(np.arange(6.0).reshape(2, 3), 10, (2, 3), np.float64)
MASK = np.array([[False, True, False], [False, False, True]])
WAYS = [
    ([1, 5], [0, 2, 3, 4]),
    ([-1, 1], [0, 2, 3, 4]),
    (slice(0, 6, 2), [1, 3, 5]),
    (MASK, [0, 2, 3, 4]),
    (MASK.ravel(), [0, 2, 3, 4]),
]


@pytest.mark.parametrize(("hidden", "left"), WAYS)
def test_of_a_box(hidden, left):
    env = HideEntries(RandomEnv(MATRIX), hidden)
    assert np.array_equal(env.observation_space.low, MATRIX.low.ravel()[left]) and env.observation_space.dtype == np.float64
    MATRIX.seed(3)
    obs = env.observation(full := MATRIX.sample())
    assert np.array_equal(obs, full.ravel()[left]) and env.observation_space.contains(obs)


@pytest.mark.parametrize("is_dict", [False, True])
def test_vectors_do_as_single_environments(is_dict):
    space = spaces.Dict(a=MATRIX, b=spaces.Discrete(3), c=spaces.Discrete(4)) if is_dict else MATRIX
    hidden = ["a", "c"] if is_dict else [0]

    def make(**more):
        return make_vec_env(lambda: RandomEnv(deepcopy(space)), 3, seed=1, **more)

    ours, expected = VecHideEntries(make(), hidden), make(wrapper_class=HideEntries, wrapper_kwargs=dict(hidden=hidden))
    assert ours.observation_space == expected.observation_space

    def same(a, b):
        return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a) if is_dict else np.array_equal(a, b)

    assert same(ours.reset(), expected.reset())
    ends = 0
    for _ in range(20):
        (obs, *_, infos), (other, *_, other_infos) = (env.step(np.zeros(3, int)) for env in (ours, expected))
        assert same(obs, other)
        for info, other_info in zip(infos, other_infos, strict=True):
            if "terminal_observation" in info:
                ends += 1
                assert same(info["terminal_observation"], other_info["terminal_observation"])
    assert ends > 3


@pytest.mark.parametrize("wrong", [[6], [-7], [0.5], [True] * 5, [[1]], [], range(6), "a", None])
def test_wrong_entries_of_a_box(wrong):
    with pytest.raises(ValueError, match=r"hidden must be (a list of numbers from 0 to 5|some, not all, of the 6)"):
        HideEntries(RandomEnv(MATRIX), wrong)


def test_wrong_entries_of_others():
    space = spaces.Dict(a=MATRIX, b=spaces.Discrete(3))
    for wrong in ("c", ["a", "b"], [], ["a", "a"], 0):
        with pytest.raises(ValueError, match="some, not all, of the keys a, b"):
            HideEntries(RandomEnv(space), wrong)
    assert HideEntries(RandomEnv(space), "b").observation_space == spaces.Dict(a=MATRIX)
    with pytest.raises(ValueError, match="a Box or a Dict"):
        HideEntries(RandomEnv(spaces.Discrete(3)), [0])


@pytest.mark.parametrize(
    ("env_id", "full_id", "left"),
    [
        ("AcrobotNoVel-v0", "Acrobot-v1", [0, 1, 2, 3]),
        ("MountainCarContinuousNoVel-v1", "MountainCarContinuous-v0", [0]),
        ("LunarLanderNoVel-v0", "LunarLander-v3", [0, 1, 4, 6, 7]),
    ],
)
def test_without_velocities(env_id, full_id, left):
    if full_id == "LunarLander-v3":
        pytest.importorskip("Box2D")
    assert env_id in ENV_IDS
    pictures = gym.make(env_id, render_mode="rgb_array_list")
    pictures.reset()
    assert len(pictures.render()) == 1
    env, full = gym.make(env_id), gym.make(full_id)
    assert load_env_creator(gym.spec(env_id).entry_point).metadata == full.metadata
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec.max_episode_steps == full.spec.max_episode_steps
    assert np.array_equal(env.reset(seed=4)[0], full.reset(seed=4)[0][left])
    full.action_space.seed(0)
    for _ in range(30):
        action = full.action_space.sample()
        (obs, *rest), (expected, *expected_rest) = env.step(action), full.step(action)
        assert np.array_equal(obs, expected[left]) and rest == expected_rest
