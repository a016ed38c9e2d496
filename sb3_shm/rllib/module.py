"""The policy with a memory as a module of RLlib."""

import inspect
from typing import Any

import torch as th
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS, TargetNetworkAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_shm.memory.base import State, state_tensors
from sb3_shm.memory.checks import check_in_range
from sb3_shm.shm_ppo.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy, RecurrentSHMPolicy
from sb3_shm.training.spaces import check_action_space, check_observation_space

CONTEXT = "memory_context"
"""The batch's column of what the memories drew at random while they explored, (B, T, context_size) uint8."""

_START = "episode_start"


def _no_schedule(_: float) -> float:
    return 0.0  # RLlib's learner has the optimizer


# RLlib is not installed where types are checked
class SHMRLModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI):  # type: ignore[misc]
    """
    :class:`~sb3_shm.RecurrentSHMPolicy`, the policy of SHMPPO, as a stateful module of RLlib's new API stack: PPO, APPO and
    IMPALA with any memory on any number of env runners and learners.

    What the memories draw at random while exploring is one more output of the module. RLlib's connectors keep it in the
    episodes and bring it back in the train batch, where it is replayed: PPO's ratio is 1 before the first gradient step.

    The state is a dict of the memories' tensors and ``episode_start``, true before the first step of an episode, so that the
    memories begin anew by themselves.

    Not for users to construct: :func:`module_spec` says what to build.

    :raises ValueError: a space that the policy cannot read or act in, or a wrong argument of the policy
    """

    policy: RecurrentSHMPolicy

    def setup(self) -> None:
        """Build the policy. RLlib calls this."""
        space = self.observation_space
        check_observation_space(space)
        check_action_space(self.action_space)
        if isinstance(self.action_space, spaces.MultiBinary):
            raise ValueError("RLlib has no distribution for MultiBinary actions: use MultiDiscrete([2, 2, ...])")
        if isinstance(self.action_space, spaces.Box) and len(self.action_space.shape) != 1:
            raise ValueError(f"RLlib's Gaussian needs a Box action space of one dimension, got {self.action_space}")
        self.channels_last = [
            key for key, part in _parts(space) if is_image_space(part) and not is_image_space_channels_first(part)
        ]
        if self.channels_last:
            space = VecTransposeImage.transpose_space(space)
        policy_class = (
            MultiInputSHMPolicy if isinstance(space, spaces.Dict) else CnnSHMPolicy if is_image_space(space) else MlpSHMPolicy
        )
        self.policy = policy_class(space, self.action_space, _no_schedule, **self.model_config["policy_kwargs"])
        del self.policy.optimizer
        self.initial_tensors = [tensor.squeeze(0) for tensor in state_tensors(self.policy.initial_state(1))]

    def get_initial_state(self) -> dict[str, th.Tensor]:
        """
        :return: state before the first step of one episode
        """
        state = {str(i): tensor for i, tensor in enumerate(self.initial_tensors)}
        return {_START: th.ones((), dtype=th.bool), **state}

    def is_stateful(self) -> bool:
        """
        :return: True, for ``memory="mlp"``, too
        """
        return True

    def get_inference_action_dist_cls(self) -> Any:
        """
        :return: RLlib's distribution for the action space
        """
        if isinstance(self.action_space, spaces.MultiDiscrete):
            lengths = self.action_space.nvec.tolist()
            return TorchMultiCategorical.get_partial_dist_cls(space=self.action_space, input_lens=lengths)
        return super().get_inference_action_dist_cls()

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, deterministic=True)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, deterministic=False)

    @th.no_grad()
    def _act(self, batch: dict[str, Any], deterministic: bool) -> dict[str, Any]:
        latents, state, context = self._latents(self.policy, batch, None, deterministic)
        tensors = {str(i): tensor for i, tensor in enumerate(state_tensors(state))}
        output = {
            Columns.ACTION_DIST_INPUTS: self._dist_inputs(self.policy, latents[0]),
            Columns.STATE_OUT: {_START: th.zeros_like(batch[Columns.STATE_IN][_START]), **tensors},
        }
        return output if context is None else {**output, CONTEXT: context}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        latents, _, _ = self._latents(self.policy, batch, self._context(batch))
        return {Columns.ACTION_DIST_INPUTS: self._dist_inputs(self.policy, latents[0]), Columns.EMBEDDINGS: latents[-1]}

    def compute_values(self, batch: dict[str, Any], embeddings: th.Tensor | None = None) -> th.Tensor:
        """
        :param batch: sequences, with state and what the memories drew
        :param embeddings: what ``forward_train`` returned for them, if it ran already
        :return: values, (B, T)
        """
        if embeddings is None:
            embeddings = self._latents(self.policy, batch, self._context(batch))[0][-1]
        return self.policy._values(embeddings).squeeze(-1)

    def make_target_networks(self) -> None:
        """Copy the policy. APPO's learner calls this."""
        self.target = make_target_network(self.policy)

    def get_target_network_pairs(self) -> list[tuple[RecurrentSHMPolicy, RecurrentSHMPolicy]]:
        """
        :return: the policy and its older copy
        """
        return [(self.policy, self.target)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, th.Tensor]:
        """
        :param batch: sequences, with state and what the memories drew
        :return: the older policy's logits, or means and logarithms of standard deviations, (B, T, ...)
        """
        latents, _, _ = self._latents(self.target, batch, self._context(batch))
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: self._dist_inputs(self.target, latents[0])}

    def _context(self, batch: dict[str, Any]) -> th.Tensor | None:
        """:return: what the memories drew in these steps, (B, T, context_size), or None if they draw nothing"""
        if not self.policy.context_size:
            return None
        if CONTEXT not in batch:
            # To draw anew would train another network than the one that acted
            raise ValueError(f"The train batch lacks the column {CONTEXT!r}: the episodes must come from this module")
        context: th.Tensor = batch[CONTEXT]
        return context

    def _latents(
        self, policy: RecurrentSHMPolicy, batch: dict[str, Any], context: th.Tensor | None, deterministic: bool = False
    ) -> tuple[list[th.Tensor], State, th.Tensor | None]:
        """
        :param policy: the policy, or its older copy
        :param batch: observations, (B, T, ...), and the state before the first step
        :param context: what the memories drew in these steps, (B, T, context_size); drawn now when None
        :param deterministic: take it from the memories' tables instead of drawing it
        :return: what each trunk puts out, (B, T, ...), the state after step T, and the context
        """
        state_in = batch[Columns.STATE_IN]
        first = state_in[_START]
        state = _unflatten(policy.initial_state(1), iter([state_in[str(i)] for i in range(len(state_in) - 1)]))
        obs = batch[Columns.OBS]
        n, t = next(iter(obs.values())).shape[:2] if isinstance(obs, dict) else obs.shape[:2]
        # RLlib cuts its sequences at the ends of episodes
        starts = th.zeros(n, t, dtype=th.bool, device=first.device)
        starts[:, 0] = first
        flat: dict[Any, th.Tensor] = {key: part.flatten(0, 1) for key, part in _parts(obs)}
        for key in self.channels_last:
            flat[key] = flat[key].movedim(-1, -3)
        latents, state, context = policy._latents(
            flat if isinstance(obs, dict) else flat[None], state, starts, context, deterministic
        )
        return [latent.unflatten(0, (n, t)) for latent in latents], state, context

    @staticmethod
    def _dist_inputs(policy: RecurrentSHMPolicy, latent_pi: th.Tensor) -> th.Tensor:
        """:return: logits, or means and logarithms of standard deviations, (B, T, ...)"""
        inputs: th.Tensor = policy.action_net(policy.mlp_extractor.forward_actor(latent_pi))
        if isinstance(policy.action_space, spaces.Box):
            inputs = th.cat((inputs, policy.log_std.expand_as(inputs)), dim=-1)
        return inputs


def _parts(value: Any) -> list[tuple[str | None, Any]]:
    """:return: the parts of a Dict space or of its observations with their keys, or what is no dict with the key None"""
    return list(value.items()) if isinstance(value, dict | spaces.Dict) else [(None, value)]


def _unflatten(structure: Any, tensors: Any) -> Any:
    """:return: the tensors in nested tuples as in ``structure``"""
    if isinstance(structure, tuple):
        return tuple(_unflatten(part, tensors) for part in structure)
    return next(tensors)


def module_spec(max_seq_len: int = 128, **policy_kwargs: Any) -> RLModuleSpec:
    """
    Say which policy RLlib is to build: ``PPOConfig().rl_module(rl_module_spec=module_spec(memory="gru"))``. Everything is
    checked here, before a worker starts.

    :param max_seq_len: steps through which gradients flow back. RLlib cuts episodes into sequences of this length and fills
        the last one up with steps that do not count: little is wasted if it divides the length of episodes and rollouts
    :param policy_kwargs: arguments of :class:`~sb3_shm.RecurrentSHMPolicy`, e.g. ``memory="gru"``,
        ``memory_kwargs=dict(hidden_size=64)``, ``position="sine"``
    :return: for ``config.rl_module(rl_module_spec=...)``
    :raises ValueError: an unknown memory, memory argument or policy argument, or ``max_seq_len`` below 1
    """
    check_in_range("max_seq_len", max_seq_len, low=1, integer=True)
    names = set(inspect.signature(RecurrentSHMPolicy).parameters)
    given_by_rllib = {"observation_space", "action_space", "lr_schedule", "optimizer_class", "optimizer_kwargs"}
    of_sde = {"use_sde", "full_std", "use_expln", "squash_output"}  # RLlib has distributions of its own
    legal = sorted(names - given_by_rllib - of_sde)
    for name in policy_kwargs:
        if name not in legal:
            raise ValueError(f"The policy has no argument {name!r}, its arguments are {', '.join(legal)}")
    # The true spaces are known to the environments' workers; none of these arguments depends on them
    independent = {name: value for name, value in policy_kwargs.items() if not name.startswith("features_extractor_")}
    RecurrentSHMPolicy(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), _no_schedule, **independent)
    return RLModuleSpec(module_class=SHMRLModule, model_config={"max_seq_len": max_seq_len, "policy_kwargs": policy_kwargs})
