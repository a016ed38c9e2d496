"""Arguments and spaces of a model as plain JSON and back: what a stranger's file may hold."""

import math
import reprlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_shm.memory import MEMORIES
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.old_shm import OldSHM
from sb3_shm.policies.pictures import SmallCNN, SmallCombinedExtractor
from sb3_shm.sharing.manifest import MANIFEST, MAX_SPACE, MAX_STEPS, Model

CLASSES: dict[str, type] = {
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
    **{f"sb3_shm.{cls.__name__}": cls for cls in (SmallCNN, SmallCombinedExtractor)},
}
NAMES = {cls: name for name, cls in CLASSES.items()}
# How this computer runs, and what is written under names of its own
NOT_ARGUMENTS = (
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
DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")


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
        return {"__class__": NAMES.get(value, f"{value.__module__}.{value.__qualname__}")}
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
        if name in CLASSES:
            return CLASSES[name]
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
        if (size := _space_size(data)) > MAX_SPACE:
            raise ValueError(f"it has {size} numbers, more than {MAX_SPACE}")
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
    if data["dtype"] not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}")
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


def encode_argument(model: Model, name: str) -> Any:
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
    # Not the present one, as many a schedule ends at 0, which no argument may be
    warnings.warn(f"{name} is a schedule that cannot be written as JSON, its first value is written instead", stacklevel=5)
    return float(schedule(1.0))


def decode_argument(name: str, value: Any, default: Any) -> Any:
    """
    :param name: of an argument of the algorithm
    :param value: what :func:`encode_argument` returned
    :param default: the argument's own
    :return: the argument; its range is checked by the algorithm, except where that is what a computer can do
    """
    if isinstance(default, bool) and type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {reprlib.repr(value)}")
    if name in ("n_steps", "stats_window_size") and value is not None:
        check_in_range(name, value, low=1, high=MAX_STEPS, integer=True)
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
