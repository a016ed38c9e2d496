"""Checks of environments and their spaces, before anything is built for them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv

_LEAST_PICTURE = 36  # what NatureCNN's three layers, of kernels 8, 4, 3 and strides 4, 2, 1, can read
LEGAL = (
    "Box with at least one dimension and none of length 0, Discrete or MultiDiscrete (one dimension) with start=0, or "
    "MultiBinary"
)


def is_legal(space: spaces.Space[Any]) -> bool:
    """Whether Stable-Baselines3 reads values of this space as they are."""
    match space:
        case spaces.Box():
            return len(space.shape) > 0 and 0 not in space.shape
        case spaces.Discrete():
            return bool(space.start == 0)
        case spaces.MultiDiscrete():
            return len(space.shape) == 1 and not np.any(space.start)
        case spaces.MultiBinary():
            return True
    return False


def check_action_space(space: spaces.Space[Any]) -> None:
    """
    :param space: action space
    :raises ValueError: a space whose actions the policy cannot draw
    """
    if not is_legal(space) or (isinstance(space, spaces.Box) and space.dtype not in (np.float32, np.float64)):
        hint = ""
        if isinstance(space, spaces.Box) and space.shape == ():
            hint = f": write Box({space.low}, {space.high}, (1,))"
        elif isinstance(space, spaces.Dict | spaces.Tuple):
            hint = ": write MultiDiscrete of all choices, or a Box of all numbers, and take it apart in the environment"
        raise ValueError(f"The action space must be {LEGAL}; a Box of float32 or float64; got {space}{hint}")
    if isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:
        raise ValueError(
            f"The action space must be MultiBinary of one dimension, got {space}: "
            f"write MultiBinary({math.prod(space.shape)}), and reshape the actions in the environment"
        )


def is_small_picture(space: spaces.Space[Any], normalized_image: bool = False) -> bool:
    """
    :param space: observation space
    :param normalized_image: whether every Box with three dimensions is a picture, not only those of uint8 from 0 to 255
    :return: whether it holds pictures, channels first, that are too small for NatureCNN
    """
    return is_image_space(space, normalized_image=normalized_image) and min(space.shape[1:]) < _LEAST_PICTURE  # type: ignore[index]


def check_pictures(
    space: spaces.Space[Any], extractor: type[Any], extractor_kwargs: Mapping[str, Any] | None, normalize_images: bool
) -> None:
    """
    :param space: observation space
    :param extractor: what reads it; of other classes than NatureCNN and CombinedExtractor nothing is known
    :param extractor_kwargs: its arguments
    :param normalize_images: whether the policy divides by 255
    :raises ValueError: NatureCNN would meet what is no picture, or one that is too small
    """
    if extractor not in (NatureCNN, CombinedExtractor):
        return
    is_float = (extractor_kwargs or {}).get("normalized_image", extractor is NatureCNN and not normalize_images)
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        is_picture = is_image_space(part, normalized_image=is_float)
        if extractor is NatureCNN and not is_picture:
            raise ValueError(
                f"NatureCNN, the features extractor of CnnSHMPolicy, reads pictures (Box of uint8 from 0 to 255 with three "
                f"dimensions; of any numbers with normalize_images=False), got {part}: write 'MlpSHMPolicy'"
            )
        if is_small_picture(part, is_float):
            raise ValueError(
                f"NatureCNN, which reads the pictures, needs {_LEAST_PICTURE} x {_LEAST_PICTURE} pixels at least, got {part}: "
                "leave features_extractor_class out: 'CnnSHMPolicy' and 'MultiInputSHMPolicy' choose one for small pictures"
            )


def check_has_env(env: Any) -> None:
    """
    :param env: in which a model is to learn
    :raises ValueError: there is none, as after ``load(path)``
    """
    if env is None:
        raise ValueError(
            "there is no environment to learn in: write load(path, env=env), or model.set_env(env) before learn()"
        )


def check_env(env: Any, check_actions: Callable[[spaces.Space[Any]], None]) -> None:
    """
    Check an environment before anything is made of it: SB3 would stop at many spaces without a word on what they should be.

    :param env: what a user gave as environment
    :param check_actions: check of the action space
    :raises ValueError: it is none that can be stepped, or one of its spaces cannot work
    """
    if isinstance(env, type) or not all(hasattr(env, name) for name in ("reset", "step", "observation_space", "action_space")):
        hint = ""
        if isinstance(env, type):
            hint = f": write {env.__name__}()"
        elif isinstance(env, list | tuple) or (callable(env) and not hasattr(env, "step")):
            hint = ": of a function that makes one, or of several, DummyVecEnv([function, ...]) makes a VecEnv"
        raise ValueError(
            "env must be a gymnasium environment (single or vector), the id of one or a VecEnv of Stable-Baselines3, "
            f"got {env!r}{hint}"
        )
    if isinstance(env, gym.Env | VecEnv):  # OpenAI Gym's spaces are others; SB3 converts them, and they are checked after that
        check_observation_space(env.observation_space, env)
        check_actions(env.action_space)
        space = env.action_space
        if isinstance(space, spaces.Box) and not np.isfinite([space.low, space.high]).all():  # which SB3 asks of environments
            raise ValueError(
                f"The action space needs finite bounds of every action, got {space}: write the bounds that are meant "
                "into its action space, for example Box(-1, 1, shape)"
            )


def check_observation_space(space: spaces.Space[Any], env: VecEnv | gym.Env[Any, Any] | None = None) -> None:
    """
    :param space: observation space
    :param env: the environment it belongs to, for the message
    :raises ValueError: a space that Stable-Baselines3 cannot read
    """
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    if parts and all(is_legal(part) for part in parts):
        return
    is_flat = space.is_np_flattenable and spaces.flatdim(space) > 0
    spec = env.get_attr("spec")[0] if isinstance(env, VecEnv) else getattr(env, "spec", None)
    # POPGym's own tasks, whose observations are tuples, are registered flat by the same name without "popgym-"
    better_id = next((i for i in gym.registry if spec is not None and f"popgym-{i}".lower() == spec.id.lower()), None)
    other = "; let the environment give arrays of one shape, none empty"
    if is_flat:
        other = "; wrap it: gymnasium.wrappers.FlattenObservation(env)"
    hint = f": use the id {better_id!r}, the same task with a flat Box" if better_id else other
    raise ValueError(
        f"The observation space must be {LEGAL}, or a Dict of these, "
        f"got {space} of {spec.id if spec is not None else 'the environment'}{hint}"
    )
