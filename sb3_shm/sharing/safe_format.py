"""
A model as a folder that a stranger may have made: JSON and safetensors, nothing that is unpickled.

``sb3_shm.json`` names the algorithm, its arguments and its spaces, ``model.safetensors`` holds the weights, and
``vec_normalize.safetensors`` the statistics of a VecNormalize. Classes are looked up in a table and never imported by name.
"""

import json
import platform
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

import sb3_shm
from sb3_shm.memory import MEMORIES
from sb3_shm.memory.old_shm import OldSHM
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC
from sb3_shm.training.old_models import convert_policy_kwargs

Model: TypeAlias = SHMPPO | SHMSAC

FORMAT = 2
MANIFEST, WEIGHTS, STATISTICS = "sb3_shm.json", "model.safetensors", "vec_normalize.safetensors"
ALGORITHMS: dict[str, type[Any]] = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC}

_CLASSES: dict[str, type] = {
    "sb3_shm.OldSHM": OldSHM,
    **{
        f"torch.nn.{name}": getattr(nn, name)
        for name in ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SiLU", "Softplus", "Tanh")
    },
    **{f"torch.optim.{name}": getattr(th.optim, name) for name in ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")},
    **{
        f"stable_baselines3.{name}": getattr(torch_layers, name)
        for name in ("CombinedExtractor", "FlattenExtractor", "NatureCNN")
    },
}
_NAMES = {cls: name for name, cls in _CLASSES.items()}
# How this computer runs, and what is written under names of its own
_NOT_ARGUMENTS = (
    "policy",
    "env",
    "policy_kwargs",
    "action_noise",
    "tensorboard_log",
    "verbose",
    "device",
    "_init_setup_model",
    "unavailable",
)
_NORMALIZE_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


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


def encode(value: Any, where: str) -> Any:
    """
    :param value: plain values, classes, and lists and dictionaries of them
    :param where: what it is, for the error
    :return: the same for JSON; tuples become lists, a memory of this package its name
    :raises ValueError: something else is in it
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, type):
        for name, memory in MEMORIES.items():
            if value is memory:
                return name
        return {"__class__": _NAMES.get(value, f"{value.__module__}.{value.__qualname__}")}
    raise ValueError(f"{where} cannot be written as JSON: use numbers, strings, lists, dictionaries or classes; got {value!r}")


def decode(value: Any, classes: Mapping[str, type]) -> Any:
    """
    :param value: what :func:`encode` returned
    :param classes: the user's own classes by their full names
    :return: the value
    :raises ValueError: it names a class that is not known
    """
    if isinstance(value, list):
        return [decode(item, classes) for item in value]
    if isinstance(value, dict) and "__class__" in value:
        name = value["__class__"]
        if name in _CLASSES:
            return _CLASSES[name]
        if name in classes:
            return classes[name]
        raise ValueError(
            f"The model uses the class {name}, which does not belong to sb3-shm: import it from where you trust it and pass "
            "classes=[...] with it, or, if you trust whoever made the model, trust=True"
        )
    if isinstance(value, dict):
        return {key: decode(item, classes) for key, item in value.items()}
    return value


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    :param space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
    :return: the space for JSON
    :raises ValueError: another space
    """
    match space:
        case spaces.Box():
            return {
                "type": "Box",
                "low": _bound(space.low),
                "high": _bound(space.high),
                "shape": list(space.shape),
                "dtype": str(space.dtype),
            }
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "dtype": str(space.dtype)}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": list(space.shape)}
        case spaces.Dict():
            # A list, for the order counts
            return {"type": "Dict", "spaces": [[key, encode_space(part)] for key, part in space.spaces.items()]}
    raise ValueError(f"Only Box, Discrete, MultiDiscrete, MultiBinary and Dict spaces can be written as JSON, got {space}")


def _bound(bound: np.ndarray) -> Any:
    """One number where all are the same, as in images. JSON has no infinity."""
    numbers = [number if np.isfinite(number) else str(number) for number in bound.flatten().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def decode_space(data: Any) -> spaces.Space[Any]:
    """
    :param data: what :func:`encode_space` returned
    :return: the space
    :raises ValueError: that is no space
    """
    try:
        match data["type"]:
            case "Box":
                dtype: Any = np.dtype(data["dtype"])
                shape = tuple(data["shape"])
                low, high = (np.array(data[name], dtype=object).astype(dtype) for name in ("low", "high"))
                low, high = (np.full(shape, b) if b.ndim == 0 else b.reshape(shape) for b in (low, high))
                return spaces.Box(low, high, shape, dtype)
            case "Discrete":
                return spaces.Discrete(data["n"], start=data["start"])
            case "MultiDiscrete":
                nvec_dtype: Any = np.dtype(data["dtype"])
                return spaces.MultiDiscrete(data["nvec"], dtype=nvec_dtype)
            case "MultiBinary":
                return spaces.MultiBinary(data["n"] if len(data["n"]) > 1 else data["n"][0])
            case "Dict":
                return spaces.Dict(OrderedDict((key, decode_space(part)) for key, part in data["spaces"]))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"This is no space: {data!r}") from error
    raise ValueError(f"This is no space: {data!r}")


def _encode_argument(model: Model, name: str) -> Any:
    # Stable-Baselines3 keeps this one under another name
    value = getattr(model, "_stats_window_size" if name == "stats_window_size" else name)
    if isinstance(value, TrainFreq):
        return [value.frequency, value.unit.value]
    if not callable(value):
        return encode(value, name)
    schedule: Any = value.value_schedule if isinstance(value, FloatSchedule) else value
    if isinstance(schedule, ConstantSchedule):
        return float(schedule.val)
    if isinstance(schedule, LinearSchedule):
        return {"linear": [float(schedule.start), float(schedule.end), float(schedule.end_fraction)]}
    if type(schedule).__name__ == "SimpleLinearSchedule":  # rl-zoo3's "lin_..."
        return {"linear": [float(schedule.initial_value), 0.0, 1.0]}
    warnings.warn(f"{name} is a schedule that cannot be written as JSON, its present value is written instead", stacklevel=5)
    return float(schedule(model._current_progress_remaining))


def _decode_argument(value: Any) -> Any:
    if isinstance(value, dict):
        return LinearSchedule(*value["linear"])
    # train_freq is the only list, and wants a tuple
    return tuple(value) if isinstance(value, list) else value


def save_folder(model: Model, folder: Path, environment: dict[str, Any], vec_normalize: VecNormalize | None) -> None:
    """
    Write ``sb3_shm.json``, ``model.safetensors`` and, if any, ``vec_normalize.safetensors``.

    :param model: an SHMPPO or SHMSAC
    :param folder: existing folder
    :param environment: id and further arguments of the environment, ``dict(id=..., kwargs=...)``
    :param vec_normalize: the environments' VecNormalize
    :raises ValueError: another model, or an argument of the policy that JSON cannot hold
    """
    safetensors = import_safetensors()
    algorithm = algorithm_name(model)
    aliases = {policy: alias for alias, policy in reversed(model.policy_aliases.items())}
    names = [name for name in signature(type(model)).parameters if name not in _NOT_ARGUMENTS]
    variables = {name: getattr(model, name) for name in model._get_torch_save_params()[1]}
    manifest = {
        "format": FORMAT,
        "library": "sb3-shm",
        "version": sb3_shm.__version__,
        "versions": {
            "python": platform.python_version(),
            "torch": th.__version__,
            "stable_baselines3": sb3.__version__,
            "gymnasium": gym.__version__,
            "numpy": np.__version__,
        },
        "environment": encode(environment, "environment"),
        "algorithm": algorithm,
        "policy": aliases.get(model.policy_class) or encode(model.policy_class, "policy"),
        "arguments": {name: _encode_argument(model, name) for name in names},
        "policy_kwargs": encode(model.policy_kwargs, "policy_kwargs"),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "n_envs": model.n_envs,
        "num_timesteps": int(model.num_timesteps),
        "torch_variables": {name: variable.tolist() for name, variable in variables.items() if variable is not None},
        "vec_normalize": None,
    }
    safetensors.torch.save_model(model.policy, str(folder / WEIGHTS))
    if vec_normalize is not None:
        manifest["vec_normalize"] = {
            **{name: encode(getattr(vec_normalize, name), name) for name in _NORMALIZE_SETTINGS},
            "observation_space": encode_space(vec_normalize.venv.observation_space),
            "action_space": encode_space(vec_normalize.action_space),
        }
        arrays = {
            f"{name}.{part}": np.asarray(getattr(statistics, part), dtype=np.float64)
            for name, statistics in _all_statistics(vec_normalize).items()
            for part in ("mean", "var", "count")
        }
        safetensors.numpy.save_file(arrays, str(folder / STATISTICS))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def _all_statistics(vec_normalize: VecNormalize) -> dict[str, Any]:
    obs = vec_normalize.obs_rms if vec_normalize.norm_obs else {}
    return {"returns": vec_normalize.ret_rms} | (
        {f"obs.{key}": of_key for key, of_key in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    :param folder: a model's folder
    :return: what ``sb3_shm.json`` says
    :raises ValueError: there is none, it is damaged, or a newer version of this package wrote it
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        assert manifest["library"] == "sb3-shm" and isinstance(manifest["format"], int)
    except FileNotFoundError as error:
        raise ValueError(f"This is no model of sb3-shm, as it has no file {MANIFEST}") from error
    except (AssertionError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST} is damaged or not of sb3-shm: {error!r}") from error
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"sb3-shm {manifest.get('version')} made this model, in format {manifest['format']}; this is sb3-shm "
            f"{sb3_shm.__version__}, which reads formats up to {FORMAT}: pip install --upgrade sb3-shm"
        )
    if manifest.get("algorithm") not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {manifest.get('algorithm')!r}, the known ones are {', '.join(ALGORITHMS)}")
    return manifest  # type: ignore[no-any-return]


def reading(what: str, read: Callable[[], Any]) -> Any:
    """Read a file of a stranger: whatever is wrong with it is a ValueError."""
    try:
        return read()
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{what} is missing, damaged or does not fit: {error}") from error


def load_folder(
    folder: Path, env: VecEnv | None = None, device: th.device | str = "auto", classes: Sequence[type] = ()
) -> Model:
    """
    Build the model that :func:`save_folder` wrote. The optimizers start afresh.

    :param folder: a model's folder
    :param env: environments for the model, already normalised if it wants that
    :param device: "auto", "cpu", "cuda", ...
    :param classes: classes of your own that the model names
    :return: the model
    :raises ValueError: a damaged file, an unknown class, or an argument that does not exist
    """
    safetensors = import_safetensors()
    manifest = read_manifest(folder)
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    # Outside of what follows, for its error says what to do
    policy, policy_kwargs = (decode(manifest.get(name), known) for name in ("policy", "policy_kwargs"))
    is_old = manifest["format"] == 1

    def build() -> Model:
        arguments = {name: _decode_argument(value) for name, value in manifest["arguments"].items()}
        if wrong := set(arguments) & set(_NOT_ARGUMENTS):
            raise ValueError(f"no arguments of a shared model: {', '.join(sorted(wrong))}")
        if is_old and manifest["algorithm"] == "shm_ppo":
            arguments["normalize_values"] = False
            arguments["seq_len"] = arguments["seq_len"] or arguments["n_steps"]
        model: Model = ALGORITHMS[manifest["algorithm"]](
            policy,
            None,
            policy_kwargs=convert_policy_kwargs(policy_kwargs) if is_old else policy_kwargs,
            device=device,
            _init_setup_model=False,
            **arguments,
        )
        model.observation_space = decode_space(manifest["observation_space"])
        model.action_space = decode_space(manifest["action_space"])
        model.n_envs = int(manifest["n_envs"])
        model.num_timesteps = int(manifest["num_timesteps"])
        if env is not None:
            model.n_envs = env.num_envs
            model.set_env(env)
        model._setup_model()
        for name in model._get_torch_save_params()[1]:
            variable = getattr(model, name)
            variable.data.copy_(th.tensor(manifest["torch_variables"][name], dtype=variable.dtype))
        return model

    model: Model = reading(MANIFEST, build)
    reading(WEIGHTS, lambda: safetensors.torch.load_model(model.policy, str(folder / WEIGHTS)))
    return model


class _OnlySpaces(gym.Env[Any, Any]):
    """An environment of which there is nothing but the spaces."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space


def load_vec_normalize(folder: Path, venv: VecEnv | None = None) -> VecNormalize | None:
    """
    :param folder: a model's folder
    :param venv: environments to normalise; None for some that cannot be stepped
    :return: the environments with the statistics of the model's VecNormalize, which stay as they are (``training=False``) and
        leave rewards alone; None if the model has none
    :raises ValueError: a damaged file
    """
    settings = read_manifest(folder).get("vec_normalize")
    if settings is None:
        return None

    def build() -> VecNormalize:
        own_spaces = [decode_space(settings[name]) for name in ("observation_space", "action_space")]
        inner = DummyVecEnv([lambda: _OnlySpaces(*own_spaces)]) if venv is None else venv
        if venv is not None:
            check_for_correct_spaces(venv, *own_spaces)
        arguments = {name: settings[name] for name in _NORMALIZE_SETTINGS} | {"norm_reward": False}
        vec_normalize = VecNormalize(inner, training=False, **arguments)
        arrays = import_safetensors().numpy.load_file(str(folder / STATISTICS))
        for name, statistics in _all_statistics(vec_normalize).items():
            for part in ("mean", "var"):
                array = arrays[f"{name}.{part}"]
                if array.shape != getattr(statistics, part).shape or not np.isfinite(array).all():
                    raise ValueError(f"{name}.{part} has the shape {array.shape} or is not finite")
                setattr(statistics, part, array)
            statistics.count = float(arrays[f"{name}.count"])
        return vec_normalize

    return reading(STATISTICS, build)  # type: ignore[no-any-return]
