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


def check_lengths(
    n_steps: int, n_envs: int, seq_len: int | None, batch_size: int | None, normalize_advantage: bool
) -> tuple[int, int]:
    """
    :param n_steps: steps per environment and rollout
    :param n_envs: number of environments
    :param seq_len: steps of a training sequence, None for ``n_steps``
    :param batch_size: steps of a minibatch, None for a quarter of the rollout
    :param normalize_advantage: whether advantages are divided by their standard deviation in the minibatch
    :return: ``seq_len`` and ``batch_size``, their defaults resolved
    :raises ValueError: whole sequences cannot make this rollout or these minibatches
    """
    seq_len = n_steps if seq_len is None else seq_len
    if seq_len < 1 or n_steps % seq_len:
        divisors = [length for length in range(1, n_steps + 1) if n_steps % length == 0]
        raise ValueError(f"seq_len must divide n_steps = {n_steps}: one of {divisors}; got {seq_len}")
    n_sequences = n_envs * n_steps // seq_len
    if batch_size is None:
        batch_size = max(n_sequences // 4, 1) * seq_len
    if batch_size < seq_len or batch_size % seq_len or batch_size > n_sequences * seq_len:
        raise ValueError(
            f"batch_size must be a multiple of seq_len = {seq_len} up to n_steps * n_envs = {n_steps * n_envs}, "
            f"so {seq_len} times 1 to {n_sequences}; got {batch_size}"
        )
    if normalize_advantage and batch_size == 1:
        raise ValueError("batch_size must be above 1 to normalise advantages (normalize_advantage=True)")
    return seq_len, batch_size


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
