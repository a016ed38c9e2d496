"""Actor-critic policies with a memory: what they are made of. How they act and replay is in act_and_replay.py."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_shm.memory.base import Memory
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.policies.layers import Layers
from sb3_shm.policies.pictures import ReadsPictures
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.shm_ppo.act_and_replay import ActAndReplay
from sb3_shm.shm_ppo.popart import scale_last_layer
from sb3_shm.training.arguments import check_net_arch, check_sde
from sb3_shm.training.spaces import check_pictures


class RecurrentSHMPolicy(ActAndReplay):
    """
    Actor-critic policy with a memory: features extractor, encoder, memory (:class:`~sb3_shm.policies.trunk.MemoryTrunk`), then
    a small network each for policy and value.

    The state is a tuple with one entry per trunk: one shared by policy and value, or one for each.

    :param observation_space: observation space
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param lr_schedule: learning rate schedule
    :param net_arch: networks after the memory, default ``dict(pi=[64], vf=[64])``
    :param activation_fn: their activation function
    :param ortho_init: orthogonal initialisation of features extractor and heads, with a last layer of the policy so small that
        hardly a gradient reaches the memory at first
    :param use_sde: noise of Box actions that depends on the state (gSDE, Raffin et al., arXiv 2005.05719)
    :param log_std_init: initial log standard deviation of Gaussian actions
    :param full_std: with ``use_sde``, a standard deviation per feature and action instead of one per feature
    :param use_expln: with ``use_sde``, ``expln()`` instead of ``exp()`` makes standard deviations positive
    :param squash_output: with ``use_sde``, squash actions by tanh to their bounds
    :param memory: a name of ``sb3_shm.memory.MEMORIES`` or a subclass of :class:`~sb3_shm.memory.Memory`
    :param memory_kwargs: arguments of the memory, e.g. ``dict(memory_size=64)`` for SHM
    :param memory_layers: number of such memories one on top of the other
    :param critic_memory: another memory for the value (with ``share_memory=False`` only), such as "mlp" for none;
        None for the policy's
    :param critic_memory_kwargs: its arguments
    :param encoder_arch: sizes of the layers before the memory
    :param position: None, or "sine": mix the step within the episode into the encoder, for any memory
    :param share_memory: one trunk for policy and value, or one for each
    :param features_extractor_class: features extractor
    :param features_extractor_kwargs: its arguments
    :param share_features_extractor: one features extractor for both trunks (with ``share_memory=False`` only may it be False)
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer, Adam by default
    :param optimizer_kwargs: its arguments besides the learning rate
    :raises ValueError: gSDE's arguments without it or with actions that are no Box, an unknown memory, position or memory
        argument, or two memories or features extractors for one trunk
    """

    trunk_kwargs: dict[str, Any]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = False,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        memory: str | type[Memory] = "shm",
        memory_kwargs: dict[str, Any] | None = None,
        memory_layers: int = 1,
        critic_memory: str | type[Memory] | None = None,
        critic_memory_kwargs: dict[str, Any] | None = None,
        encoder_arch: Sequence[int] = (128, 64),
        position: str | None = None,
        share_memory: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_sde(action_space, use_sde, squash_output)
        if share_memory and not share_features_extractor:
            raise ValueError("share_features_extractor=False needs share_memory=False: one trunk reads one features extractor")
        if critic_memory is None and critic_memory_kwargs is not None:
            raise ValueError("critic_memory_kwargs needs critic_memory, the name of the value's own memory")
        if share_memory and critic_memory is not None:
            raise ValueError(f"critic_memory={critic_memory!r} needs share_memory=False: one trunk has one memory")
        check_flag("full_std", full_std)
        check_flag("use_expln", use_expln)
        check_flag("ortho_init", ortho_init)
        check_flag("share_memory", share_memory)
        check_flag("share_features_extractor", share_features_extractor)
        check_flag("normalize_images", normalize_images)
        check_in_range("log_std_init", log_std_init)
        check_net_arch(net_arch, ("pi", "vf"), all_heads=False)
        check_pictures(observation_space, features_extractor_class, features_extractor_kwargs, normalize_images)
        self.trunk_kwargs = dict(
            memory=memory,
            memory_kwargs=memory_kwargs,
            memory_layers=memory_layers,
            encoder_arch=encoder_arch,
            position=position,
        )
        self.critic_memory, self.critic_memory_kwargs = critic_memory, critic_memory_kwargs
        self._share_memory = share_memory
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            # SB3's eps; fused saves a tenth of an update
            optimizer_kwargs = dict(eps=1e-5, fused=True)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=dict(pi=[64], vf=[64]) if net_arch is None else net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        if not self.use_sde:
            for name in ("full_std", "use_expln", "squash_output"):
                del data[name]
        return data | dict(
            **self.trunk_kwargs,
            critic_memory=self.critic_memory,
            critic_memory_kwargs=self.critic_memory_kwargs,
            share_memory=self._share_memory,
            share_features_extractor=self.share_features_extractor,
        )

    def _build_mlp_extractor(self) -> None:
        self.pi_trunk = MemoryTrunk(self.features_dim, **self.trunk_kwargs)
        own: dict[str, Any] = {}
        if self.critic_memory is not None:
            own = dict(memory=self.critic_memory, memory_kwargs=self.critic_memory_kwargs)
        kwargs = {**self.trunk_kwargs, **own}
        self.vf_trunk = self.pi_trunk if self._share_memory else MemoryTrunk(self.features_dim, **kwargs)
        self.mlp_extractor = MlpExtractor(
            self.pi_trunk.output_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )
        if self.vf_trunk.output_size != self.pi_trunk.output_size:
            of_value = MlpExtractor(
                self.vf_trunk.output_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
            )
            self.mlp_extractor.value_net = of_value.value_net
            self.mlp_extractor.latent_dim_vf = of_value.latent_dim_vf
        for name in ("policy_net", "value_net"):
            setattr(self.mlp_extractor, name, Layers(*getattr(self.mlp_extractor, name)))
        # Of the values that were learned: their weight (see scale_values), mean, mean square, and the mean and standard
        # deviation that follow
        self.register_buffer("value_statistics", th.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}value_statistics", self.value_statistics)  # which models of version 0.1 do not have
        super()._load_from_state_dict(state_dict, prefix, *args)

    @th.no_grad()
    def reset_noise(self, n_envs: int = 1) -> None:
        """
        Draw gSDE's noise anew.

        :param n_envs: number of environments
        """
        super().reset_noise(n_envs)

    @th.no_grad()
    def scale_values(self, returns: th.Tensor) -> None:
        """
        Take more returns into the running mean and standard deviation by which the value network's outputs are scaled, and
        change its last layer so that no value changes.

        :param returns: of one rollout, any shape; a rollout counts a tenth, those before it the rest
        """
        scale_last_layer(self.value_net, self.value_statistics, returns)


MlpSHMPolicy = RecurrentSHMPolicy


class CnnSHMPolicy(ReadsPictures, RecurrentSHMPolicy):
    """:class:`RecurrentSHMPolicy` for images: NatureCNN is the default features extractor, below 36 pixels SmallCNN."""


class MultiInputSHMPolicy(ReadsPictures, RecurrentSHMPolicy):
    """
    :class:`RecurrentSHMPolicy` for Dict observations: CombinedExtractor is the default features extractor, or if a picture is
    below 36 pixels SmallCombinedExtractor.
    """
