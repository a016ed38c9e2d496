"""Actor and critics: what chooses actions and values them, by what a body reads."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.backends.plain import is_hooked
from sb3_shm.memory.base import State
from sb3_shm.policies.distributions import mask_logits
from sb3_shm.policies.layers import head, make_shortcut
from sb3_shm.policies.stateful import StatefulPolicy
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.shm_sac.body import Body, Reading

LOG_STD_MIN, LOG_STD_MAX = -20, 2  # as in SB3's SAC


class Actor(StatefulPolicy):
    """
    What acts: a squashed Gaussian for Box actions, a categorical distribution for Discrete ones. It is a policy of its own,
    which predicts, is saved and loaded without the critics, unless it reads the critic's memory (``share_memory=True``).

    :param observation_space: observation space
    :param action_space: Box or Discrete
    :param features_size: number of features of the current observation
    :param memory_size: number of features from the memory
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation function
    :param shortcut_size: see :func:`make_shortcut`
    :param body: the body that acts, or None if it belongs to the critic (``share_memory=True``)
    :param sde_kwargs: ``log_std_init``, ``use_expln`` and ``clip_mean`` of gSDE's Gaussian, whose noise is a function of the
        latent features; None for a Gaussian whose standard deviation the network gives
    """

    optimizer: th.optim.Optimizer
    mu: Any
    log_std: Any  # a layer; with gSDE a parameter

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        features_size: int,
        memory_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        shortcut_size: int | None,
        body: Body | None,
        sde_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=isinstance(action_space, spaces.Box))
        self._arguments: dict[str, Any] = dict(  # for saving
            observation_space=observation_space,
            action_space=action_space,
            features_size=features_size,
            memory_size=memory_size,
            net_arch=net_arch,
            activation_fn=activation_fn,
            shortcut_size=shortcut_size,
            sde_kwargs=sde_kwargs,
        )
        self.body = body
        self.sde: StateDependentNoiseDistribution | None = None
        self.is_discrete = isinstance(action_space, spaces.Discrete)
        self.shortcut, size = make_shortcut(features_size, shortcut_size)
        self.latent_pi = head(memory_size + size, -1, net_arch, activation_fn)
        last = net_arch[-1] if net_arch else memory_size + size
        if isinstance(action_space, spaces.Discrete):
            self.logits = nn.Linear(last, int(action_space.n))
        elif sde_kwargs is not None:  # as in SB3's SAC
            self.sde = StateDependentNoiseDistribution(
                get_action_dim(action_space), use_expln=sde_kwargs["use_expln"], learn_features=True, squash_output=True
            )
            self.mu, self.log_std = self.sde.proba_distribution_net(last, sde_kwargs["log_std_init"], last)
            if sde_kwargs["clip_mean"] > 0:
                self.mu = nn.Sequential(self.mu, nn.Hardtanh(-sde_kwargs["clip_mean"], sde_kwargs["clip_mean"]))
            with th.no_grad():
                self.reset_noise()
        else:
            self.mu = nn.Linear(last, get_action_dim(action_space))
            self.log_std = nn.Linear(last, get_action_dim(action_space))

    def reset_noise(self, batch_size: int = 1) -> None:
        """
        Draw gSDE's noise anew; with gradients, the standard deviation learns through it.

        :param batch_size: number of environments that have noise of their own
        """
        assert self.sde is not None, "reset_noise() needs use_sde=True"
        self.sde.sample_weights(self.log_std, batch_size)

    def get_std(self) -> th.Tensor:
        """
        :return: standard deviations of gSDE's matrix, as SB3's actor gives them
        """
        assert self.sde is not None, "get_std() needs use_sde=True"
        return self.sde.get_std(self.log_std)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # torch saves a weight once that is in the body and in the state dict
        return dict(self._arguments, body=self.body)

    @property  # type: ignore[override]
    def features_extractor(self) -> BaseFeaturesExtractor | None:
        """The body's features extractor; None with ``share_memory=True``, where the critic's is read."""
        return None if self.body is None else self.body.features_extractor

    @features_extractor.setter
    def features_extractor(self, features_extractor: BaseFeaturesExtractor | None) -> None:
        """SB3's constructor sets None, as the body has it."""

    @property
    def pi_trunk(self) -> MemoryTrunk:  # type: ignore[override]
        """
        The memory that acts.

        :raises ValueError: it is the critic's
        """
        if self.body is None:
            raise ValueError("With share_memory=True the actor reads the critic's memory: use the policy's predict()")
        return self.body.trunk

    def _predict(  # type: ignore[override]
        self,
        observation: PyTorchObs,
        state: State,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State]:
        assert self.body is not None  # or else predict() found no trunk
        reading, state, _ = self.body.step(observation, state, episode_starts, deterministic)
        return self(reading, deterministic, action_masks).squeeze(1), state

    def _latent(self, reading: Reading) -> th.Tensor:
        """:return: what the hidden layers make of all observations, (N T, ...)"""
        x = th.cat((reading.memory, self.shortcut(reading.features)), dim=-1)
        latent: th.Tensor = self.latent_pi(x.flatten(0, 1))
        return latent

    def _gaussian(self, latent: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: mean and logarithm of the standard deviation, (N T, action_dim) each, from one product if it may be"""
        if any(type(layer) is not nn.Linear or is_hooked(layer) for layer in (self.mu, self.log_std)):
            return self.mu(latent), self.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)
        weight = th.cat((self.mu.weight, self.log_std.weight))
        bias = th.cat((self.mu.bias, self.log_std.bias))
        mean, log_std = F.linear(latent, weight, bias).chunk(2, dim=-1)
        return mean.contiguous(), log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def _masked_logits(self, latent: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
        """:return: of Discrete actions, (N T, n), -inf where illegal"""
        logits: th.Tensor = self.logits(latent)
        return logits if action_masks is None else mask_logits(logits, action_masks.flatten(0, -2), self.action_space)[0]

    def forward(self, reading: Reading, deterministic: bool = False, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param deterministic: the most likely actions
        :param action_masks: which of Discrete actions are legal, (N, T, n) or, with T = 1, (N, n) bool; None for all
        :return: actions: (N, T, action_dim) in [-1, 1], or (N, T) numbers
        """
        shape = reading.memory.shape[:2]
        latent = self._latent(reading)
        if self.is_discrete:
            logits = self._masked_logits(latent, action_masks)
            if not deterministic:  # the largest of logits plus Gumbel noise is a sample
                logits = logits - th.empty_like(logits).exponential_().log()
            return logits.argmax(dim=-1).view(shape)
        if self.sde is not None:
            return self.sde.actions_from_params(self.mu(latent), self.log_std, latent, deterministic).view(*shape, -1)
        actions, log_std = self._gaussian(latent)
        if not deterministic:
            actions = actions + th.randn_like(actions) * log_std.exp()
        return th.tanh(actions).view(*shape, -1)

    def log_prob(self, reading: Reading, actions: th.Tensor) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param actions: (N, T, action_dim) in [-1, 1], or (N, T) numbers
        :return: their log probabilities, (N, T)
        """
        shape = reading.memory.shape[:2]
        latent = self._latent(reading)
        if self.is_discrete:
            log_probs = F.log_softmax(self.logits(latent), dim=-1)
            return log_probs.gather(1, actions.reshape(-1, 1).long()).view(shape)
        flat = actions.reshape(len(latent), -1)
        if self.sde is not None:
            return self.sde.proba_distribution(self.mu(latent), self.log_std, latent).log_prob(flat).view(shape)
        mean, log_std = self._gaussian(latent)
        distribution = SquashedDiagGaussianDistribution(mean.shape[-1]).proba_distribution(mean, log_std)
        return distribution.log_prob(flat).view(shape)

    def options(
        self, reading: Reading, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor]:
        """
        The actions over which a loss takes its expectation: all of them if they are Discrete, otherwise one sample that stands
        for all, with weight 1. So ``(weight * x).sum(-1)`` is the expectation of x in either case. Illegal actions have the
        weight 0.

        :param reading: of observations, (N, T, ...)
        :param action_masks: which of Discrete actions are legal, (N, T, n) bool; None for all
        :return: actions (N, T, action_dim), None if Discrete; their log probabilities and weights, (N, T, options) each
        """
        shape = reading.memory.shape[:2]
        latent = self._latent(reading)
        if self.is_discrete:
            log_prob = F.log_softmax(self._masked_logits(latent, action_masks), dim=-1).view(*shape, -1)
            # What has the weight 0 shall not count, and 0 times -inf would be NaN
            return None, log_prob.masked_fill(log_prob == -math.inf, 0), log_prob.exp()
        if self.sde is not None:
            actions, log_prob = self.sde.log_prob_from_params(self.mu(latent), self.log_std, latent)
        else:
            mean, log_std = self._gaussian(latent)
            # A new one each time: it keeps its last sample, which a deep copy of the policy could not copy
            distribution = SquashedDiagGaussianDistribution(mean.shape[-1])
            actions, log_prob = distribution.log_prob_from_params(mean, log_std)
        log_prob = log_prob.view(*shape, 1)
        return actions.view(*shape, -1), log_prob, th.ones_like(log_prob)


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
            head(body.trunk.output_size + size, n_actions, net_arch, activation_fn) for _ in range(n_critics)
        )

    @property
    def features_extractor(self) -> BaseFeaturesExtractor:
        """The body's features extractor."""
        assert self.body.features_extractor is not None
        return self.body.features_extractor

    def forward(self, reading: Reading, actions: th.Tensor | None) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...)
        :param actions: (N, T, action_dim); None if Discrete
        :return: values of the options, (n_critics, N, T, options): of the given action, or of all
        """
        current = reading.features if actions is None else th.cat((reading.features, actions), dim=-1)
        x = th.cat((reading.memory, self.shortcut(current)), dim=-1).flatten(0, 1)
        q_values = [q_network(x) for q_network in self.q_networks]
        return th.stack(q_values).view(len(q_values), *reading.memory.shape[:2], -1)

    def of_chosen(self, reading: Reading, actions: th.Tensor | None) -> th.Tensor:
        """
        :param reading: of observations, (N, T, ...), without gradients of the body
        :param actions: (N, T, action_dim); None if Discrete
        :return: as :meth:`forward`, but a gradient goes on to the actions alone: none is made of the critic's weights
        """
        weights = {name: weight.detach() for name, weight in self.named_parameters() if not name.startswith("body.")}
        return th.func.functional_call(self, weights, (reading, actions))  # type: ignore[no-any-return]

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
