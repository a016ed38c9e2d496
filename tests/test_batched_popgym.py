"""Batched POPGym, CartPole and Pendulum: in step with the single environments, which are POPGym's and Gymnasium's own."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.batched_classic import CLASSIC_TASKS
from sb3_shm.envs.batched_popgym import POPGYM_TASKS, RepeatPrevious
from sb3_shm.envs.batched_popgym_boards import Battleship, Concentration

LENGTHS = {
    "AutoencodeEasy": 103,
    "AutoencodeMedium": 207,
    "AutoencodeHard": 311,
    "RepeatPreviousEasy": 51,
    "RepeatPreviousMedium": 103,
    "RepeatPreviousHard": 155,
    "RepeatFirstEasy": 51,
    "RepeatFirstMedium": 415,
    "RepeatFirstHard": 831,
    "ConcentrationEasy": 104,
    "ConcentrationMedium": 208,
    "ConcentrationHard": 104,
}


def random_actions(space: gym.Space, n_envs: int, n_steps: int, seed: int = 0) -> np.ndarray:
    """:return: (n_steps, n_envs, ...)"""
    generator = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Box):
        return generator.uniform(space.low, space.high, (n_steps, n_envs, *space.shape)).astype(space.dtype)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return generator.integers(space.nvec, size=(n_steps, n_envs, len(space.nvec)))
    return generator.integers(space.n, size=(n_steps, n_envs))


def assert_in_step(env_id: str, n_envs: int, all_actions: Any, exact_rewards: bool = True) -> int:
    """Step the batched and the usual vector environment together; return how many episodes ended."""
    usual, batched = make_vec_env(env_id, n_envs, seed=7), make_batched_env(env_id, n_envs, seed=7)
    assert batched.observation_space == usual.observation_space
    assert batched.action_space == usual.action_space
    np.testing.assert_array_equal(batched.reset(), usual.reset())
    n_ended = 0
    for actions in all_actions:
        observations, rewards, dones, infos = batched.step(actions)
        usual_observations, usual_rewards, usual_dones, usual_infos = usual.step(actions)
        np.testing.assert_array_equal(dones, usual_dones)
        assert observations.dtype == rewards.dtype == np.float32
        if exact_rewards:
            np.testing.assert_array_equal(observations, usual_observations)
            np.testing.assert_array_equal(rewards, usual_rewards)
        else:
            np.testing.assert_allclose(observations, usual_observations, rtol=0, atol=1e-6)
            np.testing.assert_allclose(rewards, usual_rewards, rtol=0, atol=1e-5)
        for i in dones.nonzero()[0]:
            info, usual_info = infos[i], usual_infos[i]
            np.testing.assert_allclose(info["terminal_observation"], usual_info["terminal_observation"], rtol=0, atol=1e-6)
            assert info["TimeLimit.truncated"] == usual_info["TimeLimit.truncated"]
            assert info["episode"]["l"] == usual_info["episode"]["l"]
            assert info["episode"]["r"] == pytest.approx(usual_info["episode"]["r"], abs=2e-6, rel=1e-6)
            assert "is_success" not in info
            n_ended += 1
    return n_ended


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes.*:UserWarning")
@pytest.mark.parametrize("env_id", POPGYM_TASKS)
def test_in_step_with_popgym(env_id):
    """Observations, rewards, ends and infos equal POPGym's, over at least two episodes in each copy without a new seed."""
    pytest.importorskip("popgym")
    env = make_batched_env(env_id, 3)
    name = env_id.removesuffix("-v0").removesuffix("PrevAction")
    n_steps = 2 * LENGTHS.get(name, env.task.n_cells if "Battleship" in name else 0) + 20
    assert assert_in_step(env_id, 3, random_actions(env.action_space, 3, n_steps)) >= 6
