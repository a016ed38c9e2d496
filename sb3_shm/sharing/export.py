"""Trained policies as modules that need nothing of this package: for ONNX and torch.export."""

import warnings
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_shm.files import open_atomically
from sb3_shm.memory.base import State, map_state, state_tensors
from sb3_shm.memory.checks import check_flag
from sb3_shm.policies.distributions import mask_logits
from sb3_shm.shm_ppo import RecurrentSHMPolicy
from sb3_shm.shm_sac import SHMSACPolicy
from sb3_shm.training.masks import mask_sizes

Observation: TypeAlias = th.Tensor | dict[str, th.Tensor]


class ObservationNormalizer(nn.Module):
    """
    ``VecNormalize.normalize_obs`` of one Box with its statistics frozen, computed in float64 as there.

    :param vec_normalize: what holds the bound and epsilon
    :param statistics: its running mean and variance of the observations
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, vec_normalize: VecNormalize, statistics: Any) -> None:
        super().__init__()
        self.bound = float(vec_normalize.clip_obs)
        self.register_buffer("mean", th.as_tensor(statistics.mean, dtype=th.float64))
        self.register_buffer("std", th.as_tensor(np.sqrt(statistics.var + vec_normalize.epsilon), dtype=th.float64))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (N, ...)
        :return: normalised ones, float32
        """
        return ((obs - self.mean) / self.std).clamp(-self.bound, self.bound).float()


class ExportedPolicy(nn.Module):
    """
    One deterministic step of a trained policy, as ``predict(obs, state, episode_start, deterministic=True)`` makes it::

        policy = ExportedPolicy(model)
        state = policy.initial_state(n)
        action, state = policy(obs, state, episode_start)

    It holds copies of the parts that act, no critic and no optimizer, and computes in plain torch: the kernels that train the
    Stable Hadamard Memory cannot be exported, and win nothing at a single step.

    :param model: a trained SHMPPO or SHMSAC
    :param vec_normalize: the environments' VecNormalize, to take raw observations; None to take what the policy takes
    :param action_masks: take action masks as a fourth input; for other actions than Box
    :raises ValueError: another kind of model, a VecNormalize of other observations, action masks where there are none, or a
        policy that acts otherwise than the classes of this package
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: BaseAlgorithm, vec_normalize: VecNormalize | None = None, action_masks: bool = False) -> None:
        super().__init__()
        check_flag("action_masks", action_masks)
        policy = getattr(model, "policy", None)
        parts: Any
        if isinstance(policy, RecurrentSHMPolicy):
            parts = (policy.pi_features_extractor, policy.pi_trunk, None, policy.mlp_extractor.policy_net, policy.action_net)
        elif isinstance(policy, SHMSACPolicy):
            body, actor = policy.acting_body, policy.actor
            head = actor.logits if actor.is_discrete else actor.mu
            parts = (body.features_extractor, body.trunk, actor.shortcut, actor.latent_pi, head)
        else:
            raise ValueError(f"The model must be an SHMPPO or an SHMSAC that is set up, got {model!r}")
        # In one copy, because some parts may be shared
        self.features_extractor, self.trunk, self.shortcut, self.latent, self.head = deepcopy(parts)
        self.requires_grad_(False).cpu().eval()
        for module in self.modules():
            if hasattr(module, "backend"):
                setattr(module, "backend", "reference")  # noqa: B010  # not every module has one
        self.policy_space: spaces.Space[Any] = policy.observation_space
        self.normalize_images = policy.normalize_images
        self.squash_output = policy.squash_output
        self.action_space: Any = policy.action_space
        self.n_options = sum(mask_sizes(self.action_space)) if action_masks else 0
        """Length of a mask, 0 without."""
        if isinstance(self.action_space, spaces.Box):
            self.register_buffer("low", th.as_tensor(self.action_space.low))
            self.register_buffer("high", th.as_tensor(self.action_space.high))

        self.observation_space = self.policy_space
        """What ``forward`` takes: the space of the policy, or with ``vec_normalize`` that of the raw observations."""
        self.normalizers = nn.ModuleList()
        self.normalized_keys: list[str] = []
        own = model.get_vec_normalize_env()
        if vec_normalize is not None:
            self._add_normalizers(vec_normalize)
        elif own is not None and own.norm_obs:
            warnings.warn(
                "The model was trained on normalised observations: pass vec_normalize=model.get_vec_normalize_env(), or "
                "normalise what you give to the exported policy",
                stacklevel=2,
            )
        self._check(model, vec_normalize)

    def _add_normalizers(self, vec_normalize: VecNormalize) -> None:
        if not isinstance(vec_normalize, VecNormalize):
            raise ValueError(f"vec_normalize must be a VecNormalize or None, got {vec_normalize!r}")
        if vec_normalize.observation_space != self.policy_space:
            raise ValueError(
                f"vec_normalize must give what the policy takes, {self.policy_space}, got {vec_normalize.observation_space}"
            )
        if not vec_normalize.norm_obs:
            return
        self.observation_space = vec_normalize.venv.observation_space
        statistics = vec_normalize.obs_rms
        for key, of_key in (statistics if isinstance(statistics, dict) else {"": statistics}).items():
            self.normalized_keys.append(key)
            self.normalizers.append(ObservationNormalizer(vec_normalize, of_key))

    def _check(self, model: BaseAlgorithm, vec_normalize: VecNormalize | None) -> None:
        """:raises ValueError: this does not act as the model's own ``predict`` does"""
        space = deepcopy(self.observation_space)
        space.seed(0)
        own_state: Any = None
        predict: Any = model.predict
        state = self.initial_state(2)
        for step in range(3):
            start = np.array([step != 1, step == 0])
            samples = [space.sample() for _ in range(2)]
            obs: Any = np.stack(samples)
            if isinstance(space, spaces.Dict):
                obs = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
            tensors = {k: th.as_tensor(o) for k, o in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
            masks = {}
            if self.n_options:  # of each choice every other option
                parts = [th.arange(n) % 2 == step % n % 2 for n in mask_sizes(self.action_space)]
                masks = {"action_masks": th.cat(parts).expand(2, -1)}
            action, state = self(tensors, state, th.as_tensor(start), **masks)
            own_obs = obs if vec_normalize is None else vec_normalize.normalize_obs(obs)
            expected, own_state = predict(own_obs, own_state, start, deterministic=True, **masks)
            if not np.allclose(action.numpy(), expected, rtol=1e-3, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"{type(model.policy).__name__} does not act as its base class does: {expected} instead of {action}, "
                    "such a policy cannot be exported"
                )

    def initial_state(self, n: int) -> tuple[th.Tensor, ...]:
        """
        :param n: number of environments
        :return: the state before the first step of an episode. Where ``episode_start`` is true any other of these shapes and
            types, such as zeros, does the same.
        """
        return tuple(state_tensors(self.trunk.initial_state(n)))

    def forward(
        self,
        obs: Observation,
        state: tuple[th.Tensor, ...],
        episode_start: th.Tensor,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        """
        :param obs: observations, (N, ...) of the type of ``observation_space``; a dictionary if that is a Dict
        :param state: state before the step, tensors (N, ...)
        :param episode_start: (N,) bool, true where ``obs`` is the first of an episode
        :param action_masks: which options are legal, (N, n_options) bool, at least one of each choice; None for all
        :return: actions as ``predict`` returns them, (N, ...), and the state after the step
        """
        for key, normalizer in zip(self.normalized_keys, self.normalizers, strict=True):
            obs = {**obs, key: normalizer(obs[key])} if isinstance(obs, dict) else normalizer(obs)
        features = self.features_extractor(preprocess_obs(obs, self.policy_space, self.normalize_images))
        tensors = iter(state)
        nested: State = map_state(lambda _: next(tensors), self.trunk.initial_state(1))
        starts = episode_start.unsqueeze(1)
        context = self.trunk.draw_context(nested, starts, deterministic=True)
        latent, nested = self.trunk(features.unsqueeze(1), nested, starts, context)
        latent = latent.squeeze(1)
        if self.shortcut is not None:
            latent = th.cat((latent, self.shortcut(features)), dim=-1)
        return self._mode(self.head(self.latent(latent)), action_masks), tuple(state_tensors(nested))

    def _mode(self, output: th.Tensor, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        :param output: what the head puts out, (N, ...)
        :param action_masks: (N, n_options) bool or None
        :return: the most likely actions, (N, ...)
        """
        if action_masks is not None:
            best = [part.argmax(dim=-1) for part in mask_logits(output, action_masks, self.action_space)]
            return best[0] if isinstance(self.action_space, spaces.Discrete) else th.stack(best, dim=-1)
        match self.action_space:
            case spaces.Box(shape=shape):
                action = output.unflatten(1, shape)
                if self.squash_output:  # as SB3's unscale_action
                    action = self.low + 0.5 * (th.tanh(action) + 1.0) * (self.high - self.low)
                return action.to(self.low.dtype).clamp(self.low, self.high)  # type: ignore[no-any-return]
            case spaces.Discrete():
                return output.argmax(dim=-1)
            case spaces.MultiDiscrete(nvec=nvec):
                return th.stack([part.argmax(dim=-1) for part in output.split(nvec.tolist(), dim=-1)], dim=-1)
        return (output > 0).float()  # MultiBinary: likelier than not


def export_torch(
    model: BaseAlgorithm,
    path: str | Path | None = None,
    vec_normalize: VecNormalize | None = None,
    action_masks: bool = False,
) -> th.export.ExportedProgram:
    """
    A trained policy by ``torch.export``, for any number of environments at once. ``program.module()`` is called as
    :class:`ExportedPolicy`.

    :param model: a trained SHMPPO or SHMSAC
    :param path: file to write, by custom ``.pt2``, which ``torch.export.load`` reads; None for none
    :param vec_normalize: see :class:`ExportedPolicy`
    :param action_masks: see :class:`ExportedPolicy`
    :return: the program
    :raises ValueError: see :class:`ExportedPolicy`; or a memory, or a features extractor, that torch cannot trace
    """
    policy = ExportedPolicy(model, vec_normalize, action_masks)
    n = 2  # torch specialises programs that it saw with 1
    sample = {key: _zeros(space, n) for key, space in _named_spaces(policy.observation_space).items()}
    obs = sample if isinstance(policy.observation_space, spaces.Dict) else sample[""]
    args: tuple[Any, ...] = (obs, policy.initial_state(n), th.zeros(n, dtype=th.bool))
    if action_masks:
        args = (*args, th.ones(n, policy.n_options, dtype=th.bool))
    shapes = th.utils._pytree.tree_map(lambda _: {0: th.export.Dim("batch", min=1)}, args)
    try:
        with warnings.catch_warnings():
            # torch's own: of its future, and of a list in which its GRU and LSTM name their parameters
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*were assigned during export")
            program = th.export.export(policy, args, dynamic_shapes=shapes)
    except Exception as error:
        names = f"{type(policy.trunk.memory).__name__} or {type(policy.features_extractor).__name__}"
        raise ValueError(f"torch.export cannot trace {names}: {error}") from error
    if path is not None:
        content = BytesIO()  # torch ends the process if it cannot write
        th.export.save(program, content)
        with open_atomically(path) as file:
            file.write(content.getbuffer())
    return program


def export_onnx(
    model: BaseAlgorithm, path: str | Path, vec_normalize: VecNormalize | None = None, action_masks: bool = False
) -> None:
    """
    Write a trained policy as ONNX, for any number of environments at once.

    Inputs are "obs" (or "obs.<key>" for each key of Dict observations), "state.0", "state.1", ..., "episode_start", and
    "action_masks" if asked for; outputs are "action" and "next_state.0", "next_state.1", ... An episode begins with any state,
    such as zeros, and a true ``episode_start``. Needs ``pip install sb3-shm[export]``.

    :param model: a trained SHMPPO or SHMSAC
    :param path: file to write, by custom ``.onnx``
    :param vec_normalize: see :class:`ExportedPolicy`
    :param action_masks: see :class:`ExportedPolicy`
    :raises ValueError: see :func:`export_torch`
    :raises ImportError: onnxscript, which torch's exporter stands on, is not installed
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs further packages: pip install 'sb3-shm[export]'") from error
    program = export_torch(model, None, vec_normalize, action_masks)
    space = model.observation_space if vec_normalize is None else vec_normalize.venv.observation_space
    states = range(len(program.example_inputs[0][1]))
    inputs = [f"obs.{key}" if key else "obs" for key in _named_spaces(space)]
    inputs += [f"state.{i}" for i in states] + ["episode_start"] + ["action_masks"] * action_masks
    outputs = ["action", *(f"next_state.{i}" for i in states)]
    with open_atomically(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        th.onnx.export(program, (), file.name, input_names=inputs, output_names=outputs, external_data=False, verbose=False)


def _named_spaces(space: spaces.Space[Any]) -> dict[str, Any]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _zeros(space: spaces.Space[Any], n: int) -> th.Tensor:
    return th.as_tensor(np.zeros((n, *space.shape), space.dtype))  # type: ignore[misc]
