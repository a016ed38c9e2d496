"""An environment whose observations are numbers that come once, and which keeps what happened."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

ONE_ACTION = spaces.Box(-1, 1, (1,), np.float32)


class ThreeSteps(gym.Env):
    """Three steps; every second episode is cut, the others terminate. Observations are numbered. Keeps its episodes."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, action_space: spaces.Space = ONE_ACTION) -> None:
        self.action_space = action_space
        self.episodes: list[dict[str, Any]] = []
        self.number = 0

    def _obs(self) -> np.ndarray:
        self.number += 1
        return np.array([self.number / 100], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        obs = self._obs()
        self.episodes.append(dict(observations=[obs.item()], actions=[], rewards=[], terminals=[]))
        return obs, {}

    def step(self, action):
        obs, reward = self._obs(), 0.37 * self.number % 1
        episode = self.episodes[-1]
        over = len(episode["actions"]) == 2
        terminated = over and len(self.episodes) % 2 == 1
        episode["observations"].append(obs.item())
        episode["actions"].append(np.asarray(action).item())
        episode["rewards"].append(reward)
        episode["terminals"].append(terminated)
        return obs, reward, terminated, over and not terminated, {}


def three_steps(n_envs: int, action_space: spaces.Space = ONE_ACTION) -> tuple[VecEnv, list[ThreeSteps]]:
    """Environments with numbers of their own: 0.01 ..., 10.01 ..., and so on."""
    env = make_vec_env(lambda: ThreeSteps(action_space), n_envs)
    inner = env.get_attr("unwrapped")
    for i, one in enumerate(inner):
        one.number = 1000 * i
    return env, inner


def transitions_of(inner: list[ThreeSteps]) -> dict[float, tuple[dict[str, Any], int]]:
    """Episode and step of each observation after which something was done."""
    return {
        obs: (episode, t) for one in inner for episode in one.episodes for t, obs in enumerate(episode["observations"][:-1])
    }
