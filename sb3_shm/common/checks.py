"""Checks of what users and environments hand over."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.envs import suggested_id


def check_in_range(
    name: str, value: float, low: float | None = None, high: float | None = None, above: float | None = None
) -> None:
    """
    :param name: name of the argument
    :param value: its value
    :param low: smallest legal value
    :param high: greatest legal value
    :param above: the value must be greater than this
    :raises ValueError: the value is outside, or no finite number
    """
    legal = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    legal += [f"above {above}"] * (above is not None)
    if (
        not np.isfinite(value)
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise ValueError(f"{name} must be {' and '.join(legal)}, got {value}")


def check_observation_space(space: spaces.Space[Any], env: VecEnv | None = None) -> None:
    """
    :param space: observation space
    :param env: the environment it belongs to, for the message
    :raises ValueError: a space that Stable-Baselines3 cannot read
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    legal = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if all(isinstance(part, legal) for part in parts):
        return
    spec = env.get_attr("spec")[0] if env is not None else None
    better_id = suggested_id(spec.id) if spec is not None else None
    hint = f": use the id {better_id!r}, the same task with a flat Box" if better_id else "; wrap it with FlattenObservation"
    raise ValueError(
        "The observation space must be Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these, "
        f"got {space} of {spec.id if spec is not None else 'the environment'}{hint}"
    )


def check_finite(
    what: str, data: np.ndarray | dict[str, np.ndarray] | tuple[Any, ...], step: int, environments: Sequence[int] | None = None
) -> None:
    """
    :param what: what the data is, for the message
    :param data: one row per environment, or a dict of such
    :param step: number of the environments' step, for the message
    :param environments: the environments' indices, if the rows are not all of them
    :raises ValueError: a value is NaN or infinite; names environment and step
    """
    for array in data.values() if isinstance(data, dict) else [np.asarray(data)]:
        # A sum is finite only if all its terms are, or else it is worth the closer look
        if array.dtype.kind == "f" and not np.isfinite(array.sum()) and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            index = row if environments is None else environments[row]
            raise ValueError(f"The {what} of environment {index} is not finite at its step {step}: {array[row]}")
