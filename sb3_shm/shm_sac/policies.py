"""Actor and critics with memories."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.policies.pictures import ReadsPictures
from sb3_shm.policies.sequences import flatten_sequences
from sb3_shm.policies.stateful import StatefulPolicy
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.shm_sac.body import Body
from sb3_shm.shm_sac.networks import Actor, Critic
from sb3_shm.training.arguments import check_net_arch, check_sde
from sb3_shm.training.spaces import check_pictures


class SHMSACPolicy(StatefulPolicy):
    """
    Actor, critic and target critic of :class:`~sb3_shm.shm_sac.SHMSAC`, with a memory each, or with one that the critic's loss
    trains and the actor reads (``share_memory=True``). The heads see the current observation (and action) beside the memory.

    The released meta-RL code acts with a GRU and criticises with SHM: ``policy_kwargs=dict(actor_memory="gru")``.

    :param observation_space: observation space
    :param action_space: Box or Discrete
    :param lr_schedule: learning rate schedule
    :param net_arch: heads of actor and critic, a list for both or ``dict(pi=[...], qf=[...])``; default [128, 128], as
        released
    :param activation_fn: their activation function
    :param use_sde: noise of Box actions that depends on the state (gSDE, Raffin et al., arXiv 2005.05719)
    :param log_std_init: with ``use_sde``, initial log standard deviation of the noise's matrix
    :param use_expln: with ``use_sde``, ``expln()`` instead of ``exp()`` makes standard deviations positive
    :param clip_mean: with ``use_sde``, bound of the mean action before tanh, 0 for none
    :param memory: of both: a name of ``sb3_shm.memory.MEMORIES`` or a subclass of :class:`~sb3_shm.memory.Memory`
    :param memory_kwargs: its arguments, e.g. ``dict(memory_size=24)`` for SHM
    :param memory_layers: number of memories one on top of the other, in actor and critic
    :param actor_memory: another memory for the actor, None for ``memory``
    :param actor_memory_kwargs: its arguments; None for ``memory_kwargs`` if ``actor_memory`` is None, else for none
    :param critic_memory: another memory for the critic, None for ``memory``
    :param critic_memory_kwargs: its arguments; None for ``memory_kwargs`` if ``critic_memory`` is None, else for none
    :param share_memory: the actor reads the critic's memory (and features), no gradient flows back from it
    :param encoder_arch: sizes of the layers before each memory
    :param position: None, or "sine": mix the step within the episode into the encoder, for any memory
    :param shortcut_size: features of the current observation (and action) that the heads see, None for all as they are
    :param n_critics: number of Q functions
    :param features_extractor_class: features extractor; actor and critic have one each, as in SB3's SAC
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer, Adam by default
    :param optimizer_kwargs: its arguments besides the learning rate
    :raises ValueError: gSDE for actions that are no Box, an unknown memory, position or memory argument, or another memory
        for a shared one
    """

    actor: Actor
    critic: Critic
    critic_target: Critic

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3.0,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        memory: str | type[Memory] = "shm",
        memory_kwargs: dict[str, Any] | None = None,
        memory_layers: int = 1,
        actor_memory: str | type[Memory] | None = None,
        actor_memory_kwargs: dict[str, Any] | None = None,
        critic_memory: str | type[Memory] | None = None,
        critic_memory_kwargs: dict[str, Any] | None = None,
        share_memory: bool = False,
        encoder_arch: Sequence[int] = (64,),
        position: str | None = None,
        shortcut_size: int | None = 64,
        n_critics: int = 2,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_sde(action_space, use_sde)
        check_in_range("log_std_init", log_std_init)
        check_in_range("clip_mean", clip_mean, low=0)
        check_flag("use_expln", use_expln)
        if share_memory and (actor_memory is not None or actor_memory_kwargs is not None):
            raise ValueError("With share_memory=True the actor reads the critic's memory: leave actor_memory out")
        check_flag("share_memory", share_memory)
        check_flag("normalize_images", normalize_images)
        check_net_arch(net_arch, ("pi", "qf"), all_heads=True)
        check_pictures(observation_space, features_extractor_class, features_extractor_kwargs, normalize_images)
        check_in_range("n_critics", n_critics, low=1, integer=True)
        if shortcut_size is not None:
            check_in_range("shortcut_size (None for no layer)", shortcut_size, low=1, integer=True)
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = dict(fused=True)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
            squash_output=isinstance(action_space, spaces.Box),
        )
        # As they came, for saving
        self._arguments: dict[str, Any] = dict(
            net_arch=net_arch,
            activation_fn=activation_fn,
            use_sde=use_sde,
            log_std_init=log_std_init,
            use_expln=use_expln,
            clip_mean=clip_mean,
            memory=memory,
            memory_kwargs=memory_kwargs,
            memory_layers=memory_layers,
            actor_memory=actor_memory,
            actor_memory_kwargs=actor_memory_kwargs,
            critic_memory=critic_memory,
            critic_memory_kwargs=critic_memory_kwargs,
            share_memory=share_memory,
            encoder_arch=encoder_arch,
            position=position,
            shortcut_size=shortcut_size,
            n_critics=n_critics,
        )

        def make_body(own: str | type[Memory] | None, own_kwargs: dict[str, Any] | None) -> Body:
            kwargs = memory_kwargs if own is None and own_kwargs is None else own_kwargs
            trunk_kwargs = dict(
                memory=memory if own is None else own,
                memory_kwargs=kwargs,
                memory_layers=memory_layers,
                encoder_arch=encoder_arch,
                position=position,
            )
            return Body(
                observation_space,
                action_space,
                trunk_kwargs,
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                normalize_images=normalize_images,
            )

        actor_arch, critic_arch = get_actor_critic_arch([128, 128] if net_arch is None else net_arch)
        critic_body = make_body(critic_memory, critic_memory_kwargs)
        actor_body = None if share_memory else make_body(actor_memory, actor_memory_kwargs)
        trunk = (actor_body or critic_body).trunk
        sizes = (trunk.input_size, trunk.output_size)
        sde_kwargs = dict(log_std_init=log_std_init, use_expln=use_expln, clip_mean=clip_mean) if use_sde else None
        self.actor = Actor(
            observation_space, action_space, *sizes, actor_arch, activation_fn, shortcut_size, actor_body, sde_kwargs
        )
        self.critic = Critic(action_space, critic_body, critic_arch, activation_fn, shortcut_size, n_critics)
        self.critic_target = deepcopy(self.critic)
        self.critic_target.requires_grad_(False)
        self.critic_target.train(False)
        for part in (self.actor, self.critic):
            part.optimizer = self.optimizer_class(
                part.parameters(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            self._arguments,
            lr_schedule=self._dummy_schedule,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
        )
        return data

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether dropout and the like are on; never in the target critic
        """
        self.actor.train(mode)
        self.critic.train(mode)
        self.training = mode

    def reset_noise(self, batch_size: int = 1) -> None:
        """
        Draw gSDE's noise anew.

        :param batch_size: number of environments
        """
        with th.no_grad():
            self.actor.reset_noise(batch_size)

    @property
    def acting_body(self) -> Body:
        """What reads the observations when the policy acts: the actor's body or, if shared, the critic's."""
        return self.actor.body or self.critic.body

    @property
    def pi_trunk(self) -> MemoryTrunk:  # type: ignore[override]
        """The memory that acts."""
        return self.acting_body.trunk

    def forward(
        self,
        obs: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State, th.Tensor | None]:
        """
        Act for one step.

        :param obs: observations, (n_envs, ...)
        :param state: state of ``pi_trunk`` before the step
        :param episode_starts: (n_envs,) bool, true where ``obs`` is the first of an episode
        :param deterministic: the most likely action instead of a sample, and the memory draws nothing
        :param action_masks: which of Discrete actions are legal, (n_envs, n) bool; None for all
        :return: actions, (n_envs, action_dim) in [-1, 1] or (n_envs,) numbers; the state after the step; and what the memory
            drew, (n_envs, 1, context_size) or None
        """
        reading, state, context = self.acting_body.step(obs, state, episode_starts, deterministic)
        return self.actor(reading, deterministic, action_masks).squeeze(1), state, context

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: N episodes from their first steps on, (N, T, ...)
        :param actions: (N, T, action_dim) in [-1, 1] or (N, T) numbers
        :return: log probabilities of the actions, (N, T)
        :raises ValueError: observations that are not sequences
        """
        flat_obs, starts = flatten_sequences(self.observation_space, obs)
        reading, _ = self.acting_body(flat_obs, self.pi_trunk.initial_state(len(starts)), starts)
        return self.actor.log_prob(reading, actions)

    def _predict(  # type: ignore[override]
        self,
        observation: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State]:
        actions, state, _ = self(observation, state, episode_starts, deterministic, action_masks)
        return actions, state


MlpSHMPolicy = SHMSACPolicy


class CnnSHMPolicy(ReadsPictures, SHMSACPolicy):
    """:class:`SHMSACPolicy` for images: NatureCNN is the default features extractor, below 36 pixels SmallCNN."""


class MultiInputSHMPolicy(ReadsPictures, SHMSACPolicy):
    """
    :class:`SHMSACPolicy` for Dict observations: CombinedExtractor is the default features extractor, or if a picture is
    below 36 pixels SmallCombinedExtractor.
    """
