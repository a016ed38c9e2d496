"""
A model as a folder that a stranger may have made: JSON and safetensors, nothing that is unpickled.

``sb3_shm.json`` names the algorithm, its arguments and its spaces, ``model.safetensors`` holds the weights, and
``vec_normalize.safetensors`` the statistics of a VecNormalize. Classes are looked up in a table and never imported by name.
"""

import json
import math
import platform
import reprlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
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
from torch.nn.modules.module import register_module_parameter_registration_hook

import sb3_shm
from sb3_shm.memory import MEMORIES, SHM
from sb3_shm.memory.base import state_tensors
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.old_shm import OldSHM
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_ppo.policies import RecurrentSHMPolicy
from sb3_shm.shm_sac import SHMSAC
from sb3_shm.training.arguments import check_policy_class
from sb3_shm.training.old_models import convert_policy_kwargs
from sb3_shm.training.spaces import check_observation_space

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
# What a stranger's folder may ask of this computer, far above what any model needs: bytes of the manifest, how deep it is
# nested, numbers in one of its spaces, its environments and steps, bytes of the memory's state and of a rollout
_MAX_MANIFEST, _MAX_DEPTH, _MAX_SPACE, _MAX_ENVS, _MAX_STEPS = 2**24, 32, 2**24, 2**16, 2**20
_MAX_STATE, _MAX_ROLLOUT = 2**31, 2**36
_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
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
        if not isinstance(name, str):
            raise ValueError(f"__class__ in {MANIFEST} must be a name, got {reprlib.repr(name)}")
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
    :raises ValueError: that is no space, or one of more than 16 million numbers
    """
    try:
        if (size := _space_size(data)) > _MAX_SPACE:
            raise ValueError(f"it has {size} numbers, more than {_MAX_SPACE}")
        match data["type"]:
            case "Box":
                dtype: Any = _decode_dtype(data)
                shape = tuple(data["shape"])
                low, high = (np.array(data[name], dtype=object).astype(dtype) for name in ("low", "high"))
                if np.isnan(low).any() or np.isnan(high).any():
                    raise ValueError("a bound is no number")
                low, high = (np.full(shape, b) if b.ndim == 0 else b.reshape(shape) for b in (low, high))
                return spaces.Box(low, high, shape, dtype)
            case "Discrete":
                return spaces.Discrete(data["n"], start=data["start"])
            case "MultiDiscrete":
                nvec_dtype: Any = _decode_dtype(data)
                return spaces.MultiDiscrete(data["nvec"], dtype=nvec_dtype)
            case "MultiBinary":
                return spaces.MultiBinary(data["n"] if len(data["n"]) > 1 else data["n"][0])
            case "Dict":
                return spaces.Dict(OrderedDict((key, decode_space(part)) for key, part in data["spaces"]))
    except Exception as error:  # whatever a stranger makes Gymnasium and NumPy say
        raise ValueError(f"This is no space: {reprlib.repr(data)}: {error!r}") from error
    raise ValueError(f"This is no space: {reprlib.repr(data)}")


def _decode_dtype(data: dict[str, Any]) -> np.dtype[Any]:
    if data["dtype"] not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}")
    dtype: np.dtype[Any] = np.dtype(data["dtype"])
    return dtype


def _space_size(data: Any) -> int:
    """:return: numbers in what will be a space, before any of them is allocated"""
    if data["type"] == "Dict":
        return sum(_space_size(part) for _, part in data["spaces"])
    lengths = {"Box": data.get("shape"), "MultiDiscrete": [len(data.get("nvec", ""))], "MultiBinary": data.get("n")}
    shape = lengths.get(data["type"], [])
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError("a length must be a whole number, 0 or more")
    return math.prod(shape)


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


def _decode_argument(name: str, value: Any, default: Any) -> Any:
    """
    :param name: of an argument of the algorithm
    :param value: what :func:`_encode_argument` returned
    :param default: the argument's own
    :return: the argument; its range is checked by the algorithm, except where that is what a computer can do
    """
    if isinstance(default, bool) and type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {reprlib.repr(value)}")
    if name in ("n_steps", "stats_window_size") and value is not None:
        check_in_range(name, value, low=1, high=_MAX_STEPS, integer=True)
    if name == "seed" and value is not None:
        check_in_range(name, value, low=0, high=2**32 - 1, integer=True)
    if type(value) is int and abs(value) >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {value}")
    if isinstance(value, dict):
        numbers = value.get("linear")
        if not isinstance(numbers, list) or len(numbers) != 3:
            raise ValueError(f"{name} must be a number or dict(linear=[start, end, end_fraction]), got {reprlib.repr(value)}")
        for number in numbers:
            check_in_range(f"each number of {name}", number)
        return LinearSchedule(*numbers)
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
    # Under the names that they have in a policy that is not compiled (torch.compile)
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.policy.state_dict().items()}
    safetensors.torch.save_model(SimpleNamespace(state_dict=lambda: state), str(folder / WEIGHTS))
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


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """:raises ValueError: deeper nesting, or larger numbers, than any model has"""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where[:80]}... is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(item, f"{where}[{reprlib.repr(key)}]", depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= (2**64 if isinstance(value, int) else np.finfo(np.float64).max):
        raise ValueError(f"{where} must be a number of 64 bits, got {reprlib.repr(value)}")


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
        raise ValueError(f"This is no model of sb3-shm, as it has no file {MANIFEST}")
    try:
        if size > _MAX_MANIFEST:
            raise ValueError(f"it has {size} bytes, more than {_MAX_MANIFEST}")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("library") != "sb3-shm":
            raise ValueError('it must be a mapping with library = "sb3-shm"')
        if type(manifest.get("format")) is not int or manifest["format"] < 1:
            raise ValueError(f"format must be a whole number, 1 or more, got {reprlib.repr(manifest.get('format'))}")
        _check_plain(manifest, MANIFEST)
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
    policy, policy_kwargs = (decode(manifest[name], known) for name in ("policy", "policy_kwargs"))
    is_old = manifest["format"] == 1

    def make() -> Model:
        algorithm = ALGORITHMS[manifest["algorithm"]]
        parameters = signature(algorithm).parameters
        given = manifest["arguments"]
        if wrong := [name for name in given if name in _NOT_ARGUMENTS or name not in parameters]:
            raise ValueError(f"no arguments of a shared model: {', '.join(sorted(wrong))[:200]}")
        arguments = {name: _decode_argument(name, value, parameters[name].default) for name, value in given.items()}
        if is_old and manifest["algorithm"] == "shm_ppo":
            arguments["normalize_values"] = False
            arguments["seq_len"] = arguments["seq_len"] or arguments["n_steps"]
        model: Model = algorithm(
            policy,
            None,
            policy_kwargs=convert_policy_kwargs(policy_kwargs) if is_old else policy_kwargs,
            device=device,
            _init_setup_model=False,
            **arguments,
        )
        if isinstance(model, SHMPPO):
            check_in_range("n_steps", model.n_steps, low=1, integer=True)  # None is for a new model
        return model

    def set_up() -> None:
        if env is not None:
            model.n_envs = env.num_envs
            model.set_env(env)
        model._setup_model()

    def set_variables() -> None:
        for name in model._get_torch_save_params()[1]:
            variable = getattr(model, name)
            value = th.tensor(manifest["torch_variables"][name], dtype=variable.dtype)
            if value.shape != variable.shape or not value.isfinite().all():
                raise ValueError(f"{name} must be finite, of the shape {tuple(variable.shape)}")
            variable.data.copy_(value)

    def load_weights() -> None:
        safetensors.torch.load_model(model.policy, str(folder / WEIGHTS))
        _check_weights(model.policy)

    model: Model = reading(f"arguments in {MANIFEST}", make)
    for name in ("observation_space", "action_space"):
        setattr(model, name, reading(f"{name} in {MANIFEST}", partial(decode_space, manifest[name])))
    check_in_range(f"n_envs in {MANIFEST}", manifest["n_envs"], low=1, high=_MAX_ENVS, integer=True)
    check_in_range(f"num_timesteps in {MANIFEST}", manifest["num_timesteps"], low=0, integer=True)
    model.n_envs, model.num_timesteps = manifest["n_envs"], manifest["num_timesteps"]
    shapes: dict[str, tuple[int, ...]] = reading(WEIGHTS, lambda: _read_shapes(folder / WEIGHTS, "pt"))
    sketch = reading(MANIFEST, lambda: _sketch_policy(model, len(shapes), bool(classes)))
    if sketch is not None:
        reading(WEIGHTS, lambda: _compare_shapes(sketch, shapes))
        reading(MANIFEST, lambda: _check_room(model, sketch))
    reading(MANIFEST, set_up)
    reading(f"torch_variables in {MANIFEST}", set_variables)
    reading(WEIGHTS, load_weights)
    return model


def _read_shapes(path: Path, framework: str) -> dict[str, tuple[int, ...]]:
    """:return: shapes of the tensors of a file, from its header alone"""
    if not path.is_file():
        raise ValueError("there is no such file")
    with import_safetensors().safe_open(str(path), framework=framework) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping


def _sketch_policy(model: Model, n_tensors: int, has_classes: bool) -> Any:
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
    check_policy_class(model.policy_class, model.observation_space, model.policy_kwargs, *bases)
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


def _check_room(model: Model, policy: Any) -> None:
    """:raises ValueError: the memory of all environments, or a rollout, would be larger than any computer's"""
    initial_state = policy.initial_state(1) if isinstance(model, SHMPPO) else policy.pi_trunk.initial_state(1)
    state = sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(initial_state))
    if state * model.n_envs > _MAX_STATE:
        raise ValueError(f"the memory of n_envs = {model.n_envs} environments would take {state * model.n_envs} bytes")
    if isinstance(model, SHMPPO):
        obs = model.observation_space
        parts = list(obs.spaces.values()) if isinstance(obs, spaces.Dict) else [obs]
        row = 64 + sum(math.prod(part.shape or ()) * 8 for part in [*parts, model.action_space])
        if row * model.n_steps * model.n_envs > _MAX_ROLLOUT:
            raise ValueError(f"a rollout of n_steps = {model.n_steps} in n_envs = {model.n_envs} environments is too large")


def _compare_shapes(policy: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """:raises ValueError: these are not the shapes of the policy's weights"""
    tensors = policy.state_dict(keep_vars=True)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{name[:200]} is no weight of this policy")
        if shape != tensors[name].shape:
            raise ValueError(f"{name} must have the shape {tuple(tensors[name].shape)}, got {shape}")
    # What two modules share is written once; and models of version 0.1 have no value_statistics
    written = {id(tensors[name]) for name in shapes}
    if missing := [name for name, tensor in tensors.items() if id(tensor) not in written and name != "value_statistics"]:
        raise ValueError(f"it lacks {reprlib.repr(missing)}")


def _check_weights(policy: nn.Module) -> None:
    """:raises ValueError: weights with which the policy cannot act"""
    for name, tensor in policy.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    if isinstance(policy, RecurrentSHMPolicy) and not policy.value_statistics[-1] > 0:
        raise ValueError("value_statistics must end with a standard deviation above 0")
    for name, module in policy.named_modules():
        if isinstance(module, SHM) and module.draws_rows and not (module.deterministic_rows < module.n_theta).all():
            raise ValueError(f"{name}.deterministic_rows must be below n_theta = {module.n_theta}")


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
        if not isinstance(settings, dict):
            raise ValueError(f"it must be a mapping, got {reprlib.repr(settings)}")
        own_spaces = [decode_space(settings[name]) for name in ("observation_space", "action_space")]
        for name in ("norm_obs", "norm_reward"):
            if not isinstance(settings[name], bool):
                raise ValueError(f"{name} must be true or false, got {reprlib.repr(settings[name])}")
        for name in ("clip_obs", "clip_reward", "epsilon"):
            check_in_range(name, settings[name], above=0)
        check_in_range("gamma", settings["gamma"], low=0, high=1)
        inner = DummyVecEnv([lambda: _OnlySpaces(*own_spaces)]) if venv is None else venv
        if venv is not None:
            check_for_correct_spaces(venv, *own_spaces)
        arguments = {name: settings[name] for name in _NORMALIZE_SETTINGS} | {"norm_reward": False}
        return VecNormalize(inner, training=False, **arguments)

    def load_statistics() -> None:
        shapes = _read_shapes(folder / STATISTICS, "numpy")
        expected = {
            f"{name}.{part}": np.shape(getattr(statistics, part))
            for name, statistics in _all_statistics(vec_normalize).items()
            for part in ("mean", "var", "count")
        }
        if shapes != expected:
            raise ValueError(f"it must hold {reprlib.repr(expected)}, got {reprlib.repr(shapes)}")
        arrays = import_safetensors().numpy.load_file(str(folder / STATISTICS))
        for name, array in arrays.items():
            low = -np.inf if name.endswith("mean") else 0
            if array.dtype != np.float64 or not np.isfinite(array).all() or not (array >= low).all():
                raise ValueError(f"{name} must hold finite numbers of 64 bits{', 0 or more' * (low == 0)}")
        for name, statistics in _all_statistics(vec_normalize).items():
            statistics.mean, statistics.var = arrays[f"{name}.mean"], arrays[f"{name}.var"]
            statistics.count = float(arrays[f"{name}.count"])

    vec_normalize: VecNormalize = reading(f"vec_normalize in {MANIFEST}", build)
    reading(STATISTICS, load_statistics)
    return vec_normalize
