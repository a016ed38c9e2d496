"""Whether a stranger's weights fit the networks that the same folder describes, before either takes memory."""

import math
import reprlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sb3_shm.memory import SHM
from sb3_shm.memory.base import state_tensors
from sb3_shm.sharing.manifest import MAX_ROLLOUT, MAX_STATE, WEIGHTS, Model, import_safetensors
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_ppo.policies import RecurrentSHMPolicy
from sb3_shm.training.arguments import check_policy_class
from sb3_shm.training.spaces import check_observation_space


def read_shapes(path: Path, framework: str) -> dict[str, tuple[int, ...]]:
    """:return: shapes of the tensors of a file, from its header alone"""
    if not path.is_file():
        raise ValueError("there is no such file")
    with import_safetensors().safe_open(str(path), framework=framework) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping


def sketch_policy(model: Model, n_tensors: int, has_classes: bool) -> Any:
    """
    The policy that the manifest describes, of tensors that have a shape and nothing else: nothing is allocated.

    :param model: with spaces, without policy
    :param n_tensors: number of tensors of the weights
    :param has_classes: whether it may use classes of the user, which need not know such tensors
    :return: the policy, None if a class of the user does not know them
    :raises ValueError: there cannot be such a policy, or it has more parts than there are weights
    """
    check_observation_space(model.observation_space)
    aliases: Any = model.policy_aliases
    if not isinstance(model.policy_class, type):
        raise ValueError(f"policy must be one of {', '.join(aliases)} or a class, got {model.policy_class!r}")
    bases = aliases["MlpSHMPolicy"], aliases["MultiInputSHMPolicy"]
    check_policy_class(model, *bases)
    n_parameters = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal n_parameters
        n_parameters += parameter.is_meta  # a thread beside this one may make others
        if parameter.is_meta and n_parameters > 2 * n_tensors + 64:
            raise ValueError(f"policy_kwargs make more layers than {WEIGHTS} has")

    hook = register_module_parameter_registration_hook(count)
    try:
        with th.device("meta"):
            return model.policy_class(
                model.observation_space, model.action_space, lambda _: 1e-3, **deepcopy(model.policy_kwargs)
            )
    except (NotImplementedError, RuntimeError):
        if not has_classes:
            raise
        return None
    finally:
        hook.remove()


def check_room(model: Model, policy: Any) -> None:
    """:raises ValueError: the memory of all environments, or a rollout, would be larger than any computer's"""
    initial_state = policy.initial_state(1) if isinstance(model, SHMPPO) else policy.pi_trunk.initial_state(1)
    state = sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(initial_state))
    if state * model.n_envs > MAX_STATE:
        raise ValueError(f"the memory of n_envs = {model.n_envs} environments would take {state * model.n_envs} bytes")
    if isinstance(model, SHMPPO):
        obs = model.observation_space
        parts = list(obs.spaces.values()) if isinstance(obs, spaces.Dict) else [obs]
        row = 64 + sum(math.prod(part.shape or ()) * 8 for part in [*parts, model.action_space])
        if row * model.n_steps * model.n_envs > MAX_ROLLOUT:
            raise ValueError(f"a rollout of n_steps = {model.n_steps} in n_envs = {model.n_envs} environments is too large")


def compare_shapes(policy: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """:raises ValueError: these are not the shapes of the policy's weights"""
    tensors = policy.state_dict(keep_vars=True)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{name[:200]} is no weight of this policy")
        if shape != tensors[name].shape:
            raise ValueError(f"{name} must have the shape {tuple(tensors[name].shape)}, got {shape}")
    # What two modules share is written once; and earlier models lack what loading them adds
    written = {id(tensors[name]) for name in shapes}
    added = ("value_statistics", "calibration_scale")
    if missing := [name for name, tensor in tensors.items() if id(tensor) not in written and not name.endswith(added)]:
        raise ValueError(f"it lacks {reprlib.repr(missing)}")


def check_weights(policy: nn.Module) -> None:
    """:raises ValueError: weights with which the policy cannot act"""
    for name, tensor in policy.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    if isinstance(policy, RecurrentSHMPolicy) and not policy.value_statistics[-1] > 0:
        raise ValueError("value_statistics must end with a standard deviation above 0")
    for name, module in policy.named_modules():
        if isinstance(module, SHM) and module.draws_rows:
            rows = module.deterministic_rows
            if not ((rows >= 0) & (rows < module.n_theta)).all():
                raise ValueError(f"{name}.deterministic_rows must be below n_theta = {module.n_theta}, and not below 0")
