"""Actor and critics with memories."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn import functional as F

from sb3_shm.common.policies import StatefulPolicy
from sb3_shm.common.replay import MemoryReplayBufferSamples
from sb3_shm.common.trunk import MemoryTrunk
from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range

LOG_STD_MIN, LOG_STD_MAX = -20, 2  # as in SB3's SAC


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
    :param trunk_kwargs: arguments of :class:`~sb3_shm.common.trunk.MemoryTrunk`
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
        :param context: what the memory drew, (N, T); drawn afresh when None
        :return: the reading, and the state after step T
        """
        assert self.features_extractor is not None
        features = self.extract_features(obs, self.features_extractor).view(*episode_starts.shape, -1)
        memory, state = self.trunk(features, state, episode_starts, context)
        return Reading(features, memory), state

    def read(self, rows: MemoryReplayBufferSamples, context: th.Tensor | None = None) -> Reading:
        """
        :param rows: N pieces of tape with T + 1 rows, before which the memory is empty
        :param context: what the memory drew, (N, T + 1); drawn afresh when None
        :return: the reading of all T + 1 observations
        """
        obs = rows.observations
        flat: Any = {key: o.flatten(0, 1) for key, o in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        state = self.trunk.initial_state(len(rows.mask), rows.steps[:, 0])
        reading, _ = self(flat, state, rows.episode_starts, context)
        return reading  # type: ignore[no-any-return]


def make_shortcut(input_size: int, size: int | None) -> tuple[nn.Module, int]:
    """
    The way of the current observation (and action) past the memory, as in pomdp-baselines.

    :param input_size: number of its features
    :param size: Linear and ReLU to this size, or None to hand them on as they are
    :return: the module and its output size
    """
    return (nn.Identity(), input_size) if size is None else (nn.Sequential(nn.Linear(input_size, size), nn.ReLU()), size)


class Actor(nn.Module):
    """
    The policy's head: a squashed Gaussian for Box actions, a categorical distribution for Discrete ones.

    :param action_space: Box or Discrete
    :param features_size: number of features of the current observation
    :param memory_size: number of features from the memory
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation function
    :param shortcut_size: see :func:`make_shortcut`
    :param body: the body that acts, or None if it belongs to the critic (``share_memory=True``)
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        action_space: spaces.Space[Any],
        features_size: int,
        memory_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        shortcut_size: int | None,
        body: Body | None,
    ) -> None:
        super().__init__()
        self.body = body
        self.is_discrete = isinstance(action_space, spaces.Discrete)
        self.shortcut, size = make_shortcut(features_size, shortcut_size)
        self.latent_pi = nn.Sequential(*create_mlp(memory_size + size, -1, net_arch, activation_fn))
        last = net_arch[-1] if net_arch else memory_size + size
        if isinstance(action_space, spaces.Discrete):
            self.logits = nn.Linear(last, int(action_space.n))
        else:
            self.action_dist = SquashedDiagGaussianDistribution(get_action_dim(action_space))
            self.mu = nn.Linear(last, self.action_dist.action_dim)
            self.log_std = nn.Linear(last, self.action_dist.action_dim)

    def _latent(self, reading: Reading) -> th.Tensor:
        latent: th.Tensor = self.latent_pi(th.cat((reading.memory, self.shortcut(reading.features)), dim=-1))
        return latent

    def forward(self, reading: Reading, deterministic: bool = False) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param deterministic: the most likely actions
        :return: actions: (N, T, action_dim) in [-1, 1], or (N, T) numbers
        """
        latent = self._latent(reading)
        if self.is_discrete:
            logits: th.Tensor = self.logits(latent)
            if deterministic:
                return logits.argmax(dim=-1)
            # The largest of logits plus Gumbel noise is a sample
            return (logits - th.empty_like(logits).exponential_().log()).argmax(dim=-1)
        mean = self.mu(latent)
        if deterministic:
            return th.tanh(mean)
        return th.tanh(mean + th.randn_like(mean) * self._log_std(latent).exp())

    def _log_std(self, latent: th.Tensor) -> th.Tensor:
        log_std: th.Tensor = self.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return log_std

    def options(self, reading: Reading) -> tuple[th.Tensor | None, th.Tensor, th.Tensor]:
        """
        The actions over which a loss takes its expectation: all of them if they are Discrete, otherwise one sample that stands
        for all, with weight 1. So ``(weight * x).sum(-1)`` is the expectation of x in either case.

        :param reading: of observations, (N, T, ...)
        :return: actions (N, T, action_dim), None if Discrete; their log probabilities and weights, (N, T, options) each
        """
        latent = self._latent(reading)
        if self.is_discrete:
            log_prob = F.log_softmax(self.logits(latent), dim=-1)
            return None, log_prob, log_prob.exp()
        mean, log_std = self.mu(latent).flatten(0, 1), self._log_std(latent).flatten(0, 1)
        actions, log_prob = self.action_dist.log_prob_from_params(mean, log_std)
        log_prob = log_prob.view(*latent.shape[:2], 1)
        return actions.view(*latent.shape[:2], -1), log_prob, th.ones_like(log_prob)


class Critic(nn.Module):
    """
    Several Q functions on one body: of an action for Box actions, of all actions for Discrete ones.

    :param action_space: Box or Discrete
    :param body: what reads the observations
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation function
    :param shortcut_size: see :func:`make_shortcut`
    :param n_critics: number of Q functions
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        action_space: spaces.Space[Any],
        body: Body,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        shortcut_size: int | None,
        n_critics: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.is_discrete = isinstance(action_space, spaces.Discrete)
        n_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 1
        action_dim = 0 if self.is_discrete else get_action_dim(action_space)
        self.shortcut, size = make_shortcut(body.trunk.input_size + action_dim, shortcut_size)
        self.q_networks = nn.ModuleList(
            nn.Sequential(*create_mlp(body.trunk.output_size + size, n_actions, net_arch, activation_fn))
            for _ in range(n_critics)
        )

    def forward(self, reading: Reading, actions: th.Tensor | None) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param actions: (N, T, action_dim); None if Discrete
        :return: values of the options, (n_critics, N, T, options): of the given action, or of all
        """
        current = reading.features if actions is None else th.cat((reading.features, actions), dim=-1)
        x = th.cat((reading.memory, self.shortcut(current)), dim=-1)
        return th.stack([q_network(x) for q_network in self.q_networks])

    def of_taken(self, reading: Reading, actions: th.Tensor) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param actions: taken actions: (N, T, action_dim), or (N, T, 1) numbers
        :return: their values, (n_critics, N, T)
        """
        if not self.is_discrete:
            return self(reading, actions).squeeze(-1)  # type: ignore[no-any-return]
        q_values = self(reading, None)
        return q_values.gather(-1, actions.expand(len(q_values), *actions.shape)).squeeze(-1)  # type: ignore[no-any-return]


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
    :param use_sde: not available, must be False
    :param memory: of actor and critic: "shm", "gru", "lstm" or a subclass of :class:`~sb3_shm.memory.Memory`
    :param memory_kwargs: its arguments, e.g. ``dict(memory_size=24)`` for SHM
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
    :raises ValueError: gSDE, an unknown memory, position or memory argument, or another memory for a shared one
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
        memory: str | type[Memory] = "shm",
        memory_kwargs: dict[str, Any] | None = None,
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
        if use_sde:
            raise ValueError("gSDE (use_sde=True) is not available with a memory, set use_sde=False")
        if share_memory and (actor_memory is not None or actor_memory_kwargs is not None):
            raise ValueError("With share_memory=True the actor reads the critic's memory: leave actor_memory out")
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
            memory=memory,
            memory_kwargs=memory_kwargs,
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
                memory=memory if own is None else own, memory_kwargs=kwargs, encoder_arch=encoder_arch, position=position
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
        self.actor = Actor(
            action_space, trunk.input_size, trunk.output_size, actor_arch, activation_fn, shortcut_size, actor_body
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

    @property
    def acting_body(self) -> Body:
        """What reads the observations when the policy acts: the actor's body or, if shared, the critic's."""
        return self.actor.body or self.critic.body

    @property
    def pi_trunk(self) -> MemoryTrunk:  # type: ignore[override]
        """The memory that acts."""
        return self.acting_body.trunk

    def forward(
        self, obs: PyTorchObs, state: State, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, State, th.Tensor | None]:
        """
        Act for one step.

        :param obs: observations, (n_envs, ...)
        :param state: state of ``pi_trunk`` before the step
        :param episode_starts: (n_envs,) bool, true where ``obs`` is the first of an episode
        :param deterministic: the most likely action instead of a sample, and the memory draws nothing
        :return: actions, (n_envs, action_dim) in [-1, 1] or (n_envs,) numbers; the state after the step; and what the memory
            drew, (n_envs, context_size) or None
        """
        starts = episode_starts.unsqueeze(1)
        context = self.pi_trunk.draw_context(state, starts, deterministic)
        reading, state = self.acting_body(obs, state, starts, context)
        return self.actor(reading, deterministic).squeeze(1), state, context

    def _predict(  # type: ignore[override]
        self, observation: PyTorchObs, state: State, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, State]:
        actions, state, _ = self(observation, state, episode_starts, deterministic)
        return actions, state


MlpSHMPolicy = SHMSACPolicy


class CnnSHMPolicy(SHMSACPolicy):
    """:class:`SHMSACPolicy` for images: NatureCNN is the default features extractor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class MultiInputSHMPolicy(SHMSACPolicy):
    """:class:`SHMSACPolicy` for Dict observations: CombinedExtractor is the default features extractor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
