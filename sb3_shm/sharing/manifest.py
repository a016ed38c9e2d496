"""A shared folder's manifest: read, bounded and checked key by key."""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import sb3_shm
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC

Model: TypeAlias = SHMPPO | SHMSAC
FORMAT = 2
MANIFEST, WEIGHTS, STATISTICS = "sb3_shm.json", "model.safetensors", "vec_normalize.safetensors"
# Key of the manifest -> what JSON makes of it
_TYPES: dict[str, tuple[type, ...]] = {
    "policy": (str, dict),
    "arguments": (dict,),
    "policy_kwargs": (dict,),
    "observation_space": (dict,),
    "action_space": (dict,),
    "n_envs": (int,),
    "num_timesteps": (int,),
    "torch_variables": (dict,),
}
ALGORITHMS: dict[str, type[Any]] = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC}
# What a stranger's folder may ask of this computer, far above what any model needs: bytes of the manifest, how deep it is
# nested, numbers in one of its spaces, its environments and steps, bytes of the memory's state and of a rollout
MAX_MANIFEST, MAX_DEPTH, MAX_SPACE, MAX_ENVS, MAX_STEPS = 2**24, 32, 2**24, 2**16, 2**20
MAX_STATE, MAX_ROLLOUT = 2**31, 2**36


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """:raises ValueError: deeper nesting, or larger numbers, than any model has"""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where[:80]}... is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(item, f"{where}[{reprlib.repr(key)}]", depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= (2**64 if isinstance(value, int) else np.finfo(np.float64).max):
        raise ValueError(f"{where} must be a number of 64 bits, got {reprlib.repr(value)}")


def reading(what: str, read: Callable[[], Any]) -> Any:
    """Read a file of a stranger: whatever is wrong with it is a ValueError."""
    try:
        return read()
    except ImportError:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        text = text if len(text) < 2000 else f"{text[:1000]} ... {text[-1000:]}"  # it may quote the file
        raise ValueError(f"{what} is missing, damaged or does not fit: {text}") from error


def import_safetensors() -> Any:
    """
    :return: the package ``safetensors``
    :raises ImportError: it is not installed
    """
    try:
        import safetensors.numpy
        import safetensors.torch
    except ImportError as error:
        raise ImportError("Sharing models needs further packages: pip install 'sb3-shm[hub]'") from error
    return safetensors


def algorithm_name(model: Any) -> str:
    """
    :param model: a model
    :return: "shm_ppo" or "shm_sac"
    :raises ValueError: it is neither an SHMPPO nor an SHMSAC
    """
    for name, algorithm in ALGORITHMS.items():
        if type(model) is algorithm:
            return name
    raise ValueError(f"The model must be an SHMPPO or an SHMSAC, got a {type(model).__name__}")


def _what_it_is(path: Path) -> str:
    """:return: what somebody gave as a model's folder that is none, and what to give instead"""
    if not path.exists():
        return f"{path} does not exist"
    if path.is_file():
        return f"{path} is a file" + (": write SHMPPO.load or SHMSAC.load" if path.suffix == ".zip" else "")
    inside = sorted(str(file.parent) for file in path.glob(f"*/*/{MANIFEST}"))
    return f"{path} holds models: give one, {' or '.join(inside[:5])}" if inside else f"The folder {path}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    :param folder: a model's folder
    :return: what ``sb3_shm.json`` says: the keys of which a model is made are there, and of the right types
    :raises ValueError: there is none, it is damaged, or a newer version of this package wrote it
    """
    path = folder / MANIFEST
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    if size is None:
        raise ValueError(f"{_what_it_is(folder)}: this is no model of sb3-shm, as it has no file {MANIFEST}")
    try:
        if size > MAX_MANIFEST:
            raise ValueError(f"it has {size} bytes, more than {MAX_MANIFEST}")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("library") != "sb3-shm":
            raise ValueError('it must be a mapping with library = "sb3-shm"')
        if type(manifest.get("format")) is not int or manifest["format"] < 1:
            raise ValueError(f"format must be a whole number, 1 or more, got {reprlib.repr(manifest.get('format'))}")
        check_plain(manifest, MANIFEST)
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{MANIFEST} is damaged or not of sb3-shm: {error!r}") from error
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"sb3-shm {manifest.get('version')} made this model, in format {manifest['format']}; this is sb3-shm "
            f"{sb3_shm.__version__}, which reads formats up to {FORMAT}: pip install --upgrade sb3-shm"
        )
    algorithm = manifest.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {reprlib.repr(algorithm)}, the known ones are {', '.join(ALGORITHMS)}")
    for key, types in _TYPES.items():
        if type(manifest.get(key)) not in types:
            names = " or ".join(cls.__name__ for cls in types)
            raise ValueError(f"{key} in {MANIFEST} must be a {names}, got {reprlib.repr(manifest.get(key))}")
    return manifest


class OnlySpaces(gym.Env[Any, Any]):
    """An environment of which there is nothing but the spaces."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
