"""The blocks of a file of hyperparameters, and what is wrong with them, before rl-zoo3 meets it in the middle of its work."""

import ast
import importlib
import inspect
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from sb3_shm.memory import MEMORIES
from sb3_shm.zoo.registration import ALGORITHMS

OF_RL_ZOO3 = (
    "n_timesteps", "n_envs", "policy", "normalize", "frame_stack", "env_wrapper", "vec_env_wrapper", "env_kwargs", "callback",
    "monitor_kwargs", "noise_type", "noise_std",
)  # fmt: skip
"""Keys that rl-zoo3 takes out of a block before it makes an algorithm of the others."""
_GIVEN = (
    "env",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
    "unavailable",
    "_init_setup_model",
)  # by rl-zoo3 or us


def read_blocks(conf_file: str | Path) -> Any:
    """
    :param conf_file: hyperparameters in rl-zoo3's format
    :return: environment id -> its block
    """
    return yaml.safe_load(Path(conf_file).read_text(encoding="utf-8"))


def check_block(conf_file: str | Path, env_id: str, algo: str, given: Collection[str] = ()) -> None:
    """
    :param conf_file: hyperparameters in rl-zoo3's format
    :param env_id: whose block is looked at, "default" where it has none
    :param algo: one of ``ALGORITHMS``
    :param given: keys that the command line gives, and so the block need not
    :raises ValueError: a key or a memory that does not exist, or a value that rl-zoo3 cannot take; says in which line, and
        what was probably meant
    """
    try:
        root = yaml.compose(Path(conf_file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{conf_file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{conf_file} must hold a mapping from environment ids to hyperparameters")
    blocks = {key.value: block for key, block in root.value}
    block = blocks.get(env_id, blocks.get("default"))
    if block is None and "atari" in blocks:  # which rl-zoo3 takes for the games that it knows as such
        return
    if block is None:
        near = get_close_matches(env_id, blocks, n=3)
        raise ValueError(f"{conf_file} has neither a block for {env_id} nor a default{_meant(near)}")
    pairs = list(_pairs(block))
    for key in ("n_timesteps", "policy"):
        if key not in given and not any(name.value == key for name, _ in pairs):
            line = block.start_mark.line + 1
            raise ValueError(f"{conf_file}, line {line}: the block of {env_id} must have {key}")
    is_own_policy = any(key.value == "policy" and "." in value.value for key, value in pairs)  # imported, with its arguments
    for key, value in pairs:
        where = f"{conf_file}, line {key.start_mark.line + 1}"
        check_key(key.value, algo, where)
        check_value(key.value, yaml.SafeLoader("").construct_object(value, deep=True), where)
        if key.value == "policy_kwargs" and not is_own_policy:
            for inner, of_inner in _pairs(value):
                where = f"{conf_file}, line {inner.start_mark.line + 1}"
                check_policy_key(inner.value, algo, where)
                is_memory = inner.value in ("memory", "actor_memory", "critic_memory")
                if is_memory and of_inner.value not in (*MEMORIES, "null"):
                    raise ValueError(
                        f"{where}: {inner.value} must be one of {', '.join(MEMORIES)}, got {of_inner.value!r}"
                        f"{_meant(get_close_matches(of_inner.value, MEMORIES, n=1))}"
                    )


def check_key(key: str, algo: str, where: str) -> None:
    """
    :param key: of a block
    :param algo: one of ``ALGORITHMS``
    :param where: for the message
    :raises ValueError: neither rl-zoo3 nor the algorithm knows it
    """
    parameters = [name for name in inspect.signature(ALGORITHMS[algo]).parameters if name not in _GIVEN]
    legal = [*OF_RL_ZOO3, *parameters]
    if key not in legal:
        raise ValueError(f"{where}: unknown key {key!r}{_meant(get_close_matches(key, legal, n=1))}")


def check_value(key: str, value: Any, where: str) -> None:
    """
    :param key: of a block
    :param value: of a key that rl-zoo3 reads itself; the algorithms check theirs
    :param where: for the message
    :raises ValueError: rl-zoo3 cannot take it
    """
    legal = None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)(\.\d*)?[eE]([-+]?)(\d+)", value)):
        integer, fraction, sign, exponent = match.groups()
        legal = f"a number, which YAML reads if one writes {integer}{fraction or '.0'}e{sign or '+'}{exponent}"
    elif key in ("n_envs", "n_timesteps"):
        try:  # n_timesteps may be 1e6
            is_legal = not isinstance(value, bool) and int(value) >= 1 and (key == "n_timesteps" or isinstance(value, int))
        except (OverflowError, TypeError, ValueError):
            is_legal = False
        legal = None if is_legal else "a whole number, 1 or more"
    elif key in ("learning_rate", "clip_range", "clip_range_vf") and isinstance(value, str):
        kind, _, number = value.partition("_")
        try:
            float(number)
        except ValueError:
            kind = ""
        legal = None if kind == "lin" else "a number, or lin_NUMBER for a schedule that falls to 0"
    elif key in ("env_wrapper", "vec_env_wrapper", "callback"):
        for name in value if isinstance(value, list) else [value]:
            _check_import(key, next(iter(name), None) if isinstance(name, dict) else name, where)
    elif key == "normalize" and isinstance(value, str):
        try:
            is_legal = not isinstance(ast.parse(value, mode="eval").body, ast.Name)
        except SyntaxError:
            is_legal = False
        legal = None if is_legal else "true, false, or arguments of VecNormalize such as {norm_obs: true, norm_reward: false}"
    if legal is not None:
        raise ValueError(f"{where}: {key} must be {legal}, got {value!r}")


def _check_import(key: str, name: Any, where: str) -> None:
    """
    :param key: of a block
    :param name: of a class, with its module, or None
    :param where: for the message
    :raises ValueError: there is no such class
    """
    if name is None:
        return
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise ValueError(f"{where}: {key} must be a class with its module, got {name!r}")
    try:
        is_there = hasattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{where}: {key} must be a class with its module, got {name!r}: {error}") from error
    if not is_there:
        raise ValueError(f"{where}: {key} must be a class with its module, and {module} has no {attribute}")


def check_policy_key(key: str, algo: str, where: str) -> None:
    """
    :param key: of ``policy_kwargs``
    :param algo: one of ``ALGORITHMS``
    :param where: for the message
    :raises ValueError: the algorithm's policies have no such argument
    """
    policy = next(iter(ALGORITHMS[algo].policy_aliases.values()))
    given = ("observation_space", "action_space", "lr_schedule", "use_sde")
    legal = [name for name in inspect.signature(policy).parameters if name not in given]
    legal += ["lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs"]
    if key not in legal:
        raise ValueError(f"{where}: unknown key {key!r} in policy_kwargs{_meant(get_close_matches(key, legal, n=1))}")


def _pairs(node: Any) -> Iterator[tuple[Any, Any]]:
    """:return: keys and values of a mapping, those that it takes over by ``<<`` first; nothing if it is none, as a text"""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value == "<<":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _pairs(part)
    for key, value in node.value:
        if key.value != "<<":
            yield key, value


def _meant(near: list[str]) -> str:
    return f", did you mean {' or '.join(map(repr, near))}?" if near else ""
