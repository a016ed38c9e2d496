"""What reads observations for actor and critics."""

from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_shm.memory.base import State
from sb3_shm.policies.pictures import extract
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.shm_sac.tape import MemoryReplayBufferSamples


class Reading(NamedTuple):
    """What a body makes of N sequences of T observations: all that the heads see of them."""

    features: th.Tensor  # of each observation alone, (N, T, F)
    memory: th.Tensor  # of what came before and it, (N, T, output_size)

    def detach(self) -> "Reading":
        """
        :return: the same, through which no gradient flows
        """
        return Reading(self.features.detach(), self.memory.detach())

    def steps(self, begin: int | None, end: int | None) -> "Reading":
        """
        :param begin: first step
        :param end: step after the last
        :return: these steps of each sequence
        """
        return Reading(self.features[:, begin:end], self.memory[:, begin:end])


class Body(BaseModel):
    """
    What reads observations: features extractor, then encoder and memory.

    :param observation_space: observation space
    :param action_space: action space
    :param trunk_kwargs: arguments of :class:`~sb3_shm.policies.trunk.MemoryTrunk`
    :param kwargs: ``features_extractor_class``, ``features_extractor_kwargs`` and ``normalize_images``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        trunk_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        self.features_extractor = self.make_features_extractor()
        self.trunk = MemoryTrunk(self.features_extractor.features_dim, **trunk_kwargs)

    def forward(
        self, obs: PyTorchObs, state: State, episode_starts: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[Reading, State]:
        """
        :param obs: observations with their N and T flattened to one dimension, (N T, ...)
        :param state: state of the trunk before the first step
        :param episode_starts: (N, T) bool
        :param context: what the memory drew, (N, T, context_size); drawn afresh when None
        :return: the reading, and the state after step T
        """
        assert self.features_extractor is not None
        features = extract(self, obs, self.features_extractor).view(*episode_starts.shape, -1)
        if context is None:  # also where nothing is trained, as in the target critic
            context = self.trunk.draw_context(state, episode_starts)
        memory, state = self.trunk(features, state, episode_starts, context)
        return Reading(features, memory), state

    def step(
        self, obs: PyTorchObs, state: State, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[Reading, State, th.Tensor | None]:
        """
        Read one observation of each environment.

        :param obs: observations, (n_envs, ...)
        :param state: state of the trunk before the step
        :param episode_starts: (n_envs,) bool
        :param deterministic: the memory draws nothing
        :return: the reading, (n_envs, 1, ...); the state after the step; and what it drew, (n_envs, 1, context_size) or
            None
        """
        starts = episode_starts.unsqueeze(1)
        context = self.trunk.draw_context(state, starts, deterministic)
        reading, state = self(obs, state, starts, context)
        return reading, state, context

    def read(self, rows: MemoryReplayBufferSamples, context: th.Tensor | None = None) -> Reading:
        """
        :param rows: N pieces of tape with T + 1 rows, before which the memory is empty
        :param context: what the memory drew, (N, T + 1, context_size); drawn afresh when None
        :return: the reading of all T + 1 observations
        """
        obs = rows.observations
        flat: Any = {key: o.flatten(0, 1) for key, o in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        state = self.trunk.initial_state(len(rows.mask), rows.steps[:, 0])
        reading, _ = self(flat, state, rows.episode_starts, context)
        return reading  # type: ignore[no-any-return]
