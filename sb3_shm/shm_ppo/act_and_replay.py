"""How SHMPPO's policy acts, step by step, and how it replays whole sequences with what its memories drew when it acted."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_shm.memory.base import State
from sb3_shm.policies.distributions import QuickCategorical, masked_distribution
from sb3_shm.policies.pictures import extract
from sb3_shm.policies.sequences import flatten_sequences
from sb3_shm.policies.stateful import StatefulPolicy
from sb3_shm.policies.trunk import MemoryTrunk, read_trunks


class ActAndReplay(StatefulPolicy, ActorCriticPolicy):
    """
    The way from observations to actions and values, of one step or of whole sequences. What it goes through is built by
    :class:`~sb3_shm.shm_ppo.policies.RecurrentSHMPolicy`.
    """

    vf_trunk: MemoryTrunk
    """The memory of the values: the one that acts, or one of its own."""
    value_statistics: th.Tensor
    _share_memory: bool

    @property
    def trunks(self) -> tuple[MemoryTrunk, ...]:
        """The trunks without repetition: (shared,) or (policy's, value's)."""
        return (self.pi_trunk,) if self._share_memory else (self.pi_trunk, self.vf_trunk)

    @property
    def context_size(self) -> int:
        """Bytes per step that the memories draw and that must be given back to replay it."""
        return sum(trunk.context_size for trunk in self.trunks)

    def initial_state(self, n: int) -> State:
        """
        :param n: number of environments
        :return: state before the first step of an episode
        """
        return tuple(trunk.initial_state(n) for trunk in self.trunks)

    def _latents(
        self,
        obs: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        context: th.Tensor | None = None,
        deterministic: bool = False,
    ) -> tuple[list[th.Tensor], State, th.Tensor | None]:
        """
        :param obs: observations with their N and T flattened to one dimension, (N T, ...)
        :param state: state of the N rows
        :param episode_starts: (N, T) bool
        :param context: what the memories drew in these steps, (N, T, context_size); drawn now when None
        :param deterministic: take it from the memories' tables instead of drawing it
        :return: what each trunk puts out, (N T, ...), the state after step T, and the context (None if nothing is random)
        """
        if state is None:
            raise ValueError("The state is None: pass policy.initial_state(n_envs) at the beginning")
        if self.share_features_extractor:
            own = [extract(self, obs, self.features_extractor)] * len(self.trunks)
        else:
            own = [extract(self, obs, self.pi_features_extractor), extract(self, obs, self.vf_features_extractor)]
        return read_trunks(self.trunks, own, state, episode_starts, context, deterministic)

    def _values(self, latent_vf: th.Tensor) -> th.Tensor:
        """:return: values in units of the rewards, (..., 1): the network puts out normalised ones"""
        mean, std = self.value_statistics[3:].unbind()
        normalised: th.Tensor = self.value_net(self.mlp_extractor.forward_critic(latent_vf))
        return normalised * std + mean

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor, action_masks: th.Tensor | None = None) -> Distribution:
        if action_masks is not None:
            return masked_distribution(self.action_net(latent_pi), action_masks, self.action_space)
        if isinstance(self.action_dist, CategoricalDistribution):
            self.action_dist.distribution = QuickCategorical(self.action_net(latent_pi))
            return self.action_dist
        return super()._get_action_dist_from_latent(latent_pi)

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, State, th.Tensor | None]:
        """
        Act for one step.

        :param obs: observations, (n_envs, ...)
        :param state: state before the step
        :param episode_starts: (n_envs,) bool, true where ``obs`` is the first of an episode
        :param deterministic: the most likely action instead of a sample, and the memory draws nothing at random
        :param action_masks: which options are legal, (n_envs, options) bool; None for all
        :return: actions (n_envs, ...), values (n_envs, 1), log probabilities (n_envs,), state after the step, and what the
            memory drew, (n_envs, 1, context_size) or None
        """
        starts = episode_starts.unsqueeze(1)
        latents, state, context = self._latents(obs, state, starts, deterministic=deterministic)
        values = self._values(latents[-1])
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latents[0]), action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        return actions, values, log_prob, state, context

    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        state: State | None = None,
        episode_starts: th.Tensor | None = None,
        context: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Replay N sequences of T steps.

        :param obs: (N, T, ...)
        :param actions: (N, T, action_dim)
        :param state: state before the first step of each sequence; None if each is an episode from its first step on
        :param episode_starts: (N, T) bool; None for none, without a state for none after the first step
        :param context: what the memory drew in these steps, (N, T, context_size); drawn afresh when None
        :param action_masks: which options were legal, (N, T, options) bool; None for all
        :return: values, log probabilities and entropies, (N, T) each; the entropies may be None
        :raises ValueError: without a state, observations that are not sequences
        """
        flat_obs, starts = flatten_sequences(self.observation_space, obs, episode_starts)
        if state is not None and episode_starts is None:
            starts = th.zeros_like(starts)
        n, t = starts.shape
        latents, _, _ = self._latents(flat_obs, self.initial_state(n) if state is None else state, starts, context)
        masks = None if action_masks is None else action_masks.flatten(0, 1)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latents[0]), masks)
        flat_actions = actions.reshape(n * t, -1).float()
        if isinstance(self.action_space, spaces.Discrete):
            flat_actions = flat_actions.long().squeeze(1)
        values = self._values(latents[-1])
        log_prob, entropy = distribution.log_prob(flat_actions), distribution.entropy()
        return values.view(n, t), log_prob.view(n, t), None if entropy is None else entropy.view(n, t)

    def predict_values(self, obs: PyTorchObs, state: State, episode_starts: th.Tensor) -> th.Tensor:  # type: ignore[override]
        """
        :param obs: observations, (n_envs, ...)
        :param state: state before the step
        :param episode_starts: (n_envs,) bool
        :return: values, (n_envs, 1)
        """
        features = extract(self, obs, self.vf_features_extractor)
        starts = episode_starts.unsqueeze(1)
        context = self.vf_trunk.draw_context(state[-1], starts)
        latent, _ = self.vf_trunk(features.unsqueeze(1), state[-1], starts, context)
        return self._values(latent.squeeze(1))

    def get_distribution(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        state: State | None = None,
        episode_starts: th.Tensor | None = None,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[Distribution, State]:
        """
        :param obs: observations, (n_envs, ...); without a state N episodes from their first steps on, (N, T, ...)
        :param state: state of the policy's trunk before the step (``policy.pi_trunk.initial_state(n_envs)`` at first)
        :param episode_starts: (n_envs,) bool
        :param deterministic: the memory draws nothing at random
        :param action_masks: which options are legal, (n_envs, options) or (N, T, options) bool; None for all
        :return: the distribution of actions, of the N T steps one after the other if there are several, and the state of the
            policy's trunk after the last step
        :raises ValueError: without a state, observations that are not sequences; only one of state and ``episode_starts``
        """
        if (state is None) != (episode_starts is None):
            raise ValueError("state and episode_starts go together: give both for a step, neither for whole episodes")
        if state is None or episode_starts is None:
            obs, starts = flatten_sequences(self.observation_space, obs)
            state = self.pi_trunk.initial_state(len(starts))
        else:
            starts = episode_starts.unsqueeze(1)
        features = extract(self, obs, self.pi_features_extractor).view(*starts.shape, -1)
        context = self.pi_trunk.draw_context(state, starts, deterministic)
        latent, state = self.pi_trunk(features, state, starts, context)
        masks = None if action_masks is None else action_masks.flatten(0, -2)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent.flatten(0, 1)), masks), state

    def _predict(  # type: ignore[override]
        self,
        observation: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State]:
        distribution, state = self.get_distribution(observation, state, episode_starts, deterministic, action_masks)
        return distribution.get_actions(deterministic=deterministic), state
