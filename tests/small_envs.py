"""Small environments and memories for the tests."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_shm.memory import Memory


class Memoryless(Memory):
    """No memory: gives its input out."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, input_size)

    def initial_state(self, n):
        return ()

    def forward(self, x, state, episode_start, context=None):
        return x, state


class RandomEnv(gym.Env):
    """Draws observations and rewards; ends after a drawn number of steps, alternately by termination and by truncation."""

    def __init__(
        self, observation_space: spaces.Space | None = None, action_space: spaces.Space | None = None, longest: int = 9
    ):
        self.observation_space = observation_space or spaces.Box(-2, 2, (3,), np.float32)
        self.action_space = action_space or spaces.Discrete(3)
        self.longest = longest
        self.episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episodes += 1
        self.left = int(self.np_random.integers(1, self.longest + 1))
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        over = self.left == 0
        truncated = over and self.episodes % 2 == 0
        return self.observation_space.sample(), float(self.np_random.normal()), over and not truncated, truncated, {}


class RecallEnv(gym.Env):
    """The first observation shows one of two cues, the last step's action must name it: +1 or -1. No memory gets 0."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 4):
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        self.t = 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        reward = (1.0 if action == self.cue else -1.0) if over else 0.0
        return np.array([0, self.t == self.length - 1], np.float32), reward, over, False, {}
