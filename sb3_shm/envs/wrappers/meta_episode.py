"""Several rollouts of one task as one episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs, seeding

from sb3_shm.envs.batched import check_whole
from sb3_shm.envs.wrappers.joining import Joiner


class MetaEpisode(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """
    Several rollouts of one task as one episode: a memory is not reset between them, so what it learns in the first can help in
    the next. The observation gets a flag (key "rollout_done" in a dictionary), 1 in the last observation of a rollout and 0
    otherwise.

    As in pomdp-baselines, on which the paper's experiments stand, the observation that a rollout begins with is not seen,
    except the very first: the step that ends a rollout returns its last observation, and the next action acts in the new one
    already. It is in ``info["start_observation"]`` of that step.

    The episode ends as its last rollout does. ``info["is_success"]``, if the environment reports it at a rollout's end, tells
    at the end of the episode whether any rollout was a success.

    :param env: an environment with Box, Discrete, MultiDiscrete, MultiBinary or Dict observations
    :param n_rollouts: rollouts of an episode, at least 1
    :param same_seed: True to begin all rollouts of an episode with the same seed, and so with the same task, for any
        environment that draws its task in ``reset()``; False if the environment keeps its task by itself
    :raises ValueError: ``n_rollouts`` below 1, observations of another kind, or a key that is taken
    """

    def __init__(self, env: gym.Env[Any, Any], n_rollouts: int, same_seed: bool = True) -> None:
        check_whole("n_rollouts", n_rollouts)
        RecordConstructorArgs.__init__(self, n_rollouts=n_rollouts, same_seed=same_seed)
        super().__init__(env)
        bounds = np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)
        self._joiner = Joiner(env.observation_space, {"rollout_done": bounds})
        self.observation_space = self._joiner.space
        self._n_rollouts = n_rollouts
        self._same_seed = same_seed
        self._seeds: np.random.Generator | None = None
        self._seed: int | None = None
        self._options: dict[str, Any] | None = None
        self._rollouts_done = 0
        self._success = False
        self._return, self._length = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the first rollout; later episodes draw their seeds from it
        :param options: of the environment, for each rollout of the episode
        :return: the first observation with the flag, and the environment's info
        """
        self._seed = seed
        if self._same_seed:
            if self._seeds is None or seed is not None:
                self._seeds = seeding.np_random(seed)[0]
            if seed is None:
                self._seed = int(self._seeds.integers(2**31))
        self._options = options
        self._rollouts_done = 0
        self._success = False
        self._return, self._length = 0.0, 0
        observation, info = self.env.reset(seed=self._seed, options=options)
        return self._join(observation, False), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: an action of the environment
        :return: observation with the flag, reward, terminated, truncated, info
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        rollout_done = bool(terminated or truncated)
        if rollout_done:
            info = dict(info)
            self._rollouts_done += 1
            # A Monitor inside, where make_vec_env puts it, takes each rollout for an episode
            monitored = info.pop("episode", None)
            if monitored is not None:
                self._return += monitored["r"]
                self._length += monitored["l"]
                if self._rollouts_done == self._n_rollouts:
                    info["episode"] = {**monitored, "r": round(self._return, 6), "l": self._length}
            if "is_success" in info:
                self._success |= bool(info["is_success"])
                info["is_success"] = self._success
            if self._rollouts_done < self._n_rollouts:
                terminated = truncated = False
                start, _ = self.env.reset(seed=self._seed if self._same_seed else None, options=self._options)
                info["start_observation"] = self._join(start, False)
        return self._join(observation, rollout_done), float(reward), terminated, truncated, info

    def _join(self, observation: Any, rollout_done: bool) -> Any:
        return self._joiner.join_one(observation, np.array([rollout_done], dtype=np.float32))
