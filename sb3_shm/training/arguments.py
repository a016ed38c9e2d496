"""Checks of the arguments that users pass to algorithms and policies."""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_shm.memory import memories_with
from sb3_shm.memory.checks import check_flag, check_in_range

_ONE_TAPE = "MemoryReplayBuffer is the only replay buffer, so hindsight experience replay (HER) is not available"
# What Stable-Baselines3's and sb3-contrib's algorithms take beyond ours: the value that switches it off, and what to write
NOT_AVAILABLE: dict[str, tuple[Any, str]] = {
    "rollout_buffer_class": (None, "MemoryRolloutBuffer is the only rollout buffer"),
    "rollout_buffer_kwargs": (None, "set n_steps and seq_len instead"),
    "replay_buffer_class": (None, _ONE_TAPE),
    "replay_buffer_kwargs": (None, "set seq_len and burn_in instead"),
    "n_sampled_goal": (None, _ONE_TAPE),
    "goal_selection_strategy": (None, _ONE_TAPE),
    "handle_timeout_termination": (None, "timeouts are always told from ends of the task"),
    "optimize_memory_usage": (False, "the tape never stores an observation twice anyway"),
    "buffer_device": ("cpu", "the tape is on the CPU"),
}
_LSTM_HINT = "write memory='lstm', memory_kwargs=dict(hidden_size=...), or 'MlpLstmPolicy' with SHMPPO"
_POLICY_HINTS = {
    "use_sde": "it is an argument of the algorithm",
    "lstm_hidden_size": _LSTM_HINT,
    "n_lstm_layers": "write memory='lstm', memory_kwargs=dict(num_layers=...)",
    "lstm_kwargs": "write memory='lstm', memory_kwargs=dict(...)",
    "shared_lstm": "write share_memory=True",
    "enable_critic_lstm": "write share_memory=False for a memory each",
    "ortho_init": "SHMPPO's policies alone have it",
    "share_features_extractor": "SHMPPO's policies alone have it",
    "head_dtype": "all heads compute in float32, leave it out",
    "actor_memory": "write memory=..., or for a memory each share_memory=False and critic_memory=...",
    "actor_memory_kwargs": "write memory_kwargs=dict(...)",
}


_CLASSES = {
    "activation_fn": "torch.nn.ReLU",
    "features_extractor_class": "stable_baselines3.common.torch_layers.NatureCNN",
    "optimizer_class": "torch.optim.Adam",
}


def _argument_names(part: type[Any]) -> list[str]:
    """
    :param part: an algorithm or a policy
    :return: what its constructor takes by name, its parents' included as far as it hands everything on to them
    """
    names: list[str] = []
    for parent in part.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _policy_hint(name: str, legal: Iterable[str], memory: Any = "shm", algorithm: type[Any] | None = None) -> str:
    """
    :param name: an argument that a policy does not have
    :param legal: those that it has
    :param memory: the memory that was chosen
    :param algorithm: that makes the policy, if it is known
    :return: what to write instead; empty if nothing is near
    """
    if name in _POLICY_HINTS:
        return _POLICY_HINTS[name]
    if algorithm is not None and name in _argument_names(algorithm):
        return f"it is an argument of the algorithm, {algorithm.__name__}(..., {name}=...)"
    if having := memories_with(name):
        needed = "" if memory in having or not isinstance(memory, str) else f"memory={having[0]!r}, "
        return f"write {needed}memory_kwargs=dict({name}=...)"
    near = difflib.get_close_matches(name, legal, 1)
    return f"did you mean {near[0]!r}" if near else ""


def check_each(
    arguments: Mapping[str, Any], *names: str, optional: bool = False, schedule: bool = False, **bounds: Any
) -> None:
    """
    :param arguments: arguments by name
    :param names: the ones to check
    :param optional: None is legal, too
    :param schedule: a function of the remaining progress is legal, too
    :param bounds: see :func:`~sb3_shm.memory.checks.check_in_range`
    :raises ValueError: one of them is out of range
    """
    for name in names:
        value = arguments[name]
        if not (optional and value is None) and not (schedule and callable(value)):
            check_in_range(name, value, **bounds)


def check_running(arguments: Mapping[str, Any]) -> None:
    """
    Check what all algorithms have alike: how fast they learn, how and where they run.

    :param arguments: arguments by name
    :raises ValueError: one of them is illegal, or a device that torch does not have; a GPU that is missing is a warning
    """
    check_each(arguments, "learning_rate", schedule=True, low=0)
    check_each(arguments, "stats_window_size", low=1, integer=True)
    check_each(arguments, "verbose", low=0, integer=True)
    check_each(arguments, "seed", optional=True, low=0, high=2**32 - 1, integer=True)
    check_flag("use_sde", arguments["use_sde"])
    check_each(arguments, "sde_sample_freq", low=-1, integer=True)
    if not isinstance(arguments["policy_kwargs"], dict | None):
        raise ValueError(f"policy_kwargs must be a dict, got {arguments['policy_kwargs']!r}")
    try:
        device = get_device(arguments["device"])
        th.empty(0, device=device)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(
            f'device must be "auto" or one that torch has here, such as "cpu", got {arguments["device"]!r}'
        ) from error
    if device.type == "cpu" and str(arguments["device"]).startswith("cuda"):  # Stable-Baselines3 gives way without a word
        warnings.warn(
            f"device={str(arguments['device'])!r}, but torch finds no GPU: the model is on the CPU. Write device='cpu' if "
            "that is meant; else install a torch with CUDA, or find out why torch.cuda.is_available() is False",
            stacklevel=3,
        )


def check_sde(action_space: spaces.Space[Any], use_sde: bool, squash_output: bool = False) -> None:
    """
    :param action_space: action space
    :param use_sde: whether exploration depends on the state
    :param squash_output: whether actions are squashed to their bounds, which gSDE alone can
    :raises ValueError: gSDE for actions that are no Box, or squashed actions without it
    """
    check_flag("use_sde", use_sde)
    check_flag("squash_output", squash_output)
    if use_sde and not isinstance(action_space, spaces.Box):
        raise ValueError(f"use_sde=True (gSDE) needs Box actions, got {action_space}: leave it out")
    if squash_output and not use_sde:
        raise ValueError("squash_output=True needs use_sde=True: without gSDE actions are clipped to their bounds")


def check_net_arch(net_arch: Any, heads: tuple[str, ...], all_heads: bool) -> None:
    """
    :param net_arch: what a user gave: sizes of hidden layers for all heads, or by head; None for the default
    :param heads: names of the heads
    :param all_heads: whether each must be named
    :raises ValueError: anything else
    """
    if net_arch is None:
        return
    if isinstance(net_arch, list | tuple) and any(isinstance(sizes, dict) for sizes in net_arch):  # SB3's before 1.8
        example = {head: [64] for head in heads}
        raise ValueError(f"net_arch is a dict without a list around it, such as {example}; got {net_arch!r}")
    parts = net_arch if isinstance(net_arch, dict) else dict.fromkeys(heads, net_arch)
    if not set(parts) <= set(heads) or (all_heads and len(parts) < len(heads)):
        raise ValueError(
            f"net_arch must be a list of layer sizes or a dict of such for {' and '.join(heads)}, got {net_arch!r}"
        )
    for sizes in parts.values():
        if not isinstance(sizes, list | tuple):
            raise ValueError(f"net_arch must be a list of layer sizes, it may be empty, got {net_arch!r}")
        for size in sizes:
            check_in_range("each size of net_arch", size, low=1, integer=True)


def check_policy_class(model: BaseAlgorithm, base: type[Any], for_dict: type[Any]) -> None:
    """
    :param model: with the policy class that a user chose, its arguments, and the observation space that it must read
    :param base: what it must be
    :param for_dict: what reads Dict observations
    :raises ValueError: another algorithm's policy, one that cannot read the observations, or arguments that it does not have
    """
    policy_class, policy_kwargs, observation_space = model.policy_class, model.policy_kwargs, model.observation_space
    if not (isinstance(policy_class, type) and issubclass(policy_class, base)):
        raise ValueError(f"The policy must be a {base.__name__}, got {getattr(policy_class, '__name__', policy_class)}")
    for name in ("optimizer_kwargs", "features_extractor_kwargs"):
        if not isinstance(policy_kwargs.get(name), dict | None):
            raise ValueError(f"{name} must be a dict, got {policy_kwargs[name]!r}")
    for name, example in _CLASSES.items():
        given = policy_kwargs.get(name)
        if isinstance(given, th.nn.Module):  # which can be called, too
            raise ValueError(
                f"{name} must be a class such as {example}, got {given!r}: give the class, {type(given).__name__}"
            )
        if not (given is None or callable(given)):
            raise ValueError(f"{name} must be a class such as {example}, got {given!r}")
    given_by_us = ("observation_space", "action_space", "lr_schedule", "use_sde")
    legal_names = [name for name in _argument_names(policy_class) if name not in given_by_us]
    for name in policy_kwargs:
        if name not in legal_names:
            hint = _policy_hint(name, legal_names, policy_kwargs.get("memory", "shm"), type(model))
            raise ValueError(
                f"{policy_class.__name__} has no argument {name!r}{hint and ': '}{hint}; the arguments in policy_kwargs are "
                f"{', '.join(legal_names)}"
            )
    is_dict = isinstance(observation_space, spaces.Dict)
    if "features_extractor_class" not in policy_kwargs and is_dict != issubclass(policy_class, for_dict):
        needed = "a Dict observation space" if is_dict else f"the observation space {observation_space}"
        legal = "MultiInputSHMPolicy" if is_dict else "MlpSHMPolicy or CnnSHMPolicy"
        aliases = {policy: alias for alias, policy in reversed(type(model).policy_aliases.items())}  # the first of its names
        given = aliases.get(policy_class, policy_class.__name__)
        raise ValueError(f"{needed} needs {legal}, or a features_extractor_class; got {given}")


def find_policy(name: str, aliases: Mapping[str, type[Any]], base: type[Any]) -> type[Any]:
    """
    :param name: what a user wrote
    :param aliases: policies by the names that may be written
    :param base: what a policy class must be
    :return: the policy
    :raises ValueError: an unknown name
    """
    if name not in aliases:
        legal = ", ".join(repr(alias) for alias in aliases if "SHM" in alias)
        if "Lstm" in name:
            raise ValueError(f"{name!r} is RecurrentPPO's: choose one of {legal} with policy_kwargs=dict(memory='lstm')")
        raise ValueError(f"Unknown policy {name!r}, choose one of {legal} or a subclass of {base.__name__}")
    return aliases[name]


def refuse_unavailable(algorithm: type[BaseAlgorithm], given: Mapping[str, Any]) -> None:
    """
    :param algorithm: whose arguments they ought to be
    :param given: arguments that it does not have
    :raises ValueError: a feature of another algorithm that is switched on
    :raises TypeError: an argument of no algorithm; says where it belongs, or which one is near
    """
    for name, value in given.items():
        if name not in NOT_AVAILABLE:
            legal = [other for other in _argument_names(algorithm) if other not in ("_init_setup_model", name)]
            of_model = ("observation_space", "action_space", "lr_schedule", "use_sde")
            of_policy = [o for o in _argument_names(algorithm.policy_aliases["MlpSHMPolicy"]) if o not in of_model]
            if name in of_policy:
                hint = f"write policy_kwargs=dict({name}=...)"
            elif instead := _policy_hint(name, ()):
                hint = f"in policy_kwargs, {instead}"
            elif near := difflib.get_close_matches(name, legal, 1):
                hint = f"did you mean {near[0]!r}"
            else:
                hint = f"its arguments are {', '.join(legal)}"
            raise TypeError(f"{algorithm.__name__} has no argument {name!r}: {hint}")
        off, hint = NOT_AVAILABLE[name]
        if value != off:
            raise ValueError(f"{algorithm.__name__} has no {name}, leave it out: {hint}; got {value!r}")
