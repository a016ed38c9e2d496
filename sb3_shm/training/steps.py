"""Checks of what environments return and of what updates compute, step by step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from multiprocessing import connection
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

LARGEST_OBSERVATION, LARGEST_REWARD = 1e18, 1e15
"""Beyond these the networks' sums of squares, and the squared errors of values, leave the range of float32."""


def _place(
    is_bad: np.ndarray, step: int | None, environments: Sequence[int] | None, has_rows: bool, rows: str
) -> tuple[Any, str, str]:
    """:return: the index of the first row that is bad, whose it is and when, in words; see :func:`check_finite`"""
    row = int(np.argwhere(is_bad)[0][0]) if has_rows else 0
    whose = f" of {rows} {row if environments is None else environments[row]}" if has_rows else ""
    return row if has_rows else ..., whose, "" if step is None else f" at its step {step}"


def check_finite(
    what: str,
    data: np.ndarray | dict[str, np.ndarray] | tuple[Any, ...],
    step: int | None = None,
    environments: Sequence[int] | None = None,
    has_rows: bool = True,
    largest: float = LARGEST_OBSERVATION,
    rows: str = "environment",
) -> None:
    """
    :param what: what the data is, for the message
    :param data: one row per environment, or a dict of such
    :param step: number of the environments' step, for the message, if they are counted
    :param environments: the environments' indices, if the rows are not all of them
    :param has_rows: False if the data is of one environment and without a dimension for environments
    :param largest: greatest absolute value with which the networks can compute
    :param rows: what a row is of, for the message
    :raises ValueError: a value is NaN, infinite or too large; names environment and step
    """
    for part in data.values() if isinstance(data, dict) else [data]:
        array = np.asarray(part)
        if array.dtype.kind != "f" or array.size == 0:
            continue
        # A sum of squares is small only if all its terms are, or else it is worth the closer look
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.dot(flat, flat) <= largest:
                continue
        is_bad = ~(np.abs(array) <= largest)
        if is_bad.any():
            row, whose, when = _place(is_bad, step, environments, has_rows, rows)
            value = array[row]
            if not np.isfinite(array[is_bad]).all():
                raise ValueError(f"The {what}{whose} is not finite{when}: {value}")
            raise ValueError(
                f"The {what}{whose} is too large{when}, float32 overflows beyond {largest:g}: {value}. "
                f"Scale or clip it in the environment, and VecNormalize does the rest"
            )


def check_keys(what: str, data: Any, space: spaces.Space[Any]) -> None:
    """
    :param what: what the data is, for the message
    :param data: an observation
    :param space: its space
    :raises ValueError: the space is a Dict, and the data no dict of the same keys
    """
    if isinstance(space, spaces.Dict):
        keys = data.keys() if hasattr(data, "keys") else None
        if keys is None or set(keys) != set(space.spaces):
            got = type(data).__name__ if keys is None else f"the keys {', '.join(map(str, keys)) or 'of none'}"
            raise ValueError(f"The {what} must be a dict of the keys {', '.join(space.spaces)}, got {got}")


def check_range(
    what: str,
    data: np.ndarray | dict[str, np.ndarray],
    space: spaces.Space[Any],
    step: int | None = None,
    environments: Sequence[int] | None = None,
    has_rows: bool = True,
    rows: str = "environment",
) -> None:
    """
    :param what: what the data is, for the message
    :param data: one row per environment, or a dict of such
    :param space: space of a row; of all but Discrete and MultiDiscrete nothing is asked
    :param step: see :func:`check_finite`, as the rest
    :raises ValueError: a number that the space does not have; names environment and step
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            check_range(f"part {key!r} of the {what}", data[key], part, step, environments, has_rows, rows)
        return
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return
    array, shape = np.asarray(data), () if isinstance(space, spaces.Discrete) else space.nvec.shape
    if array.dtype.kind not in "biuf" or array.shape[array.ndim - len(shape) :] != shape:
        return  # of which Stable-Baselines3 says more
    is_bad = (array < 0) | (array >= (space.n if isinstance(space, spaces.Discrete) else space.nvec))
    if is_bad.any():
        row, whose, when = _place(is_bad, step, environments, has_rows, rows)
        raise ValueError(f"The {what}{whose} is not of the space {space}{when}: {array[row]}")


def check_step(model: BaseAlgorithm, obs: Any, rewards: np.ndarray, step: int) -> None:
    """
    :param model: what learns from it
    :param obs: observations after a step
    :param rewards: (n_envs,)
    :param step: number of the environments' step
    :raises ValueError: one of them is not finite, or too large, or a number that the observation space does not have
    """
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is not None:  # whose statistics spread what is not finite to all environments
        check_finite("observation", vec_normalize.old_obs, step)
        check_finite("reward", vec_normalize.old_reward, step, largest=float(np.finfo(np.float32).max))
    check_finite("observation", obs, step)
    check_finite("reward", rewards, step, largest=LARGEST_REWARD)
    check_range("observation", obs, model.observation_space, step)


def check_terminal_observations(
    infos: list[dict[str, Any]], ended: list[int], observation_space: spaces.Space[Any], step: int
) -> Any:
    """
    :param infos: one per environment
    :param ended: environments whose info holds a ``terminal_observation``, at least one
    :param observation_space: their space
    :param step: number of the environments' step
    :return: the last observations of their episodes, (len(ended), ...) or a dict of them
    :raises ValueError: one of them is not finite, or a number that the space does not have
    """
    last = [infos[i]["terminal_observation"] for i in ended]
    if isinstance(observation_space, spaces.Dict):
        stacked: Any = {key: np.stack([obs[key] for obs in last]) for key in observation_space.spaces}
    else:
        stacked = np.stack(last)
    check_finite("terminal observation", stacked, step, environments=ended)
    check_range("terminal observation", stacked, observation_space, step, ended)
    return stacked


def next_observations(
    obs: Any, dones: np.ndarray, infos: list[dict[str, Any]], step: int, env: VecEnv, normalize: VecNormalize | None
) -> Any:
    """
    :param obs: observations after a step, (n_envs, ...) or a dict of them
    :param dones: (n_envs,) bool
    :param infos: one per environment
    :param step: number of the environments' step
    :param env: the environments
    :param normalize: the VecNormalize that made this of them, if any
    :return: the same in arrays of their own as the environments gave them, and where an episode ended its last one
    :raises ValueError: a last observation is not finite
    """
    obs = deepcopy(obs if normalize is None else normalize.get_original_obs())
    ended = [i for i in np.flatnonzero(dones).tolist() if infos[i].get("terminal_observation") is not None]
    if ended:
        last = check_terminal_observations(infos, ended, env.observation_space, step)
        last = last if normalize is None else normalize.unnormalize_obs(last)
        pairs: list[Any] = [(obs[key], last[key]) for key in obs] if isinstance(obs, dict) else [(obs, last)]
        for array, ends in pairs:  # what was an integer is almost one again
            array[ended] = np.rint(ends) if np.issubdtype(array.dtype, np.integer) else ends
    return obs


def check_losses(what: str, losses: np.ndarray, gradient_norms: np.ndarray, step: int) -> None:
    """
    :param what: what they are, for the message
    :param losses: of successive minibatches, (n,), which :class:`~sb3_shm.training.transfer.Guard` watched over
    :param gradient_norms: the norms of their gradients, (n,)
    :param step: number of environment steps before them
    :raises ValueError: one of them is not finite
    """
    bad = np.flatnonzero(~np.isfinite(losses + gradient_norms))
    if not len(bad):
        return
    i = bad[0]
    if not np.isfinite(losses[i]):
        what, value = f"The {what}", losses[i]
        advice = (
            "lower learning_rate, set or lower max_grad_norm, make rewards and observations smaller (VecNormalize), or bound "
            "the memory (memory_kwargs=dict(clip=...))"
        )
    else:  # what an input adds to a memory grows with each step after it
        what, value = f"The {what} is finite, but its gradient's norm", gradient_norms[i]
        advice = (
            "make observations and rewards smaller (VecNormalize), train on shorter sequences (seq_len), lower learning_rate, "
            'or, with a Hadamard memory, take theta="random" or a lower clip (memory_kwargs)'
        )
    raise ValueError(
        f"{what} is {value} in minibatch {i} of the update after {step} steps. Neither this gradient was applied nor any "
        f"later one: {advice}"
    )


@contextmanager
def naming_dead_workers(env: VecEnv | None) -> Iterator[None]:
    """
    Within it, a broken pipe to a process of a SubprocVecEnv becomes an error that says whose, and how it ended.

    :param env: training environments
    :raises RuntimeError: instead of EOFError and ConnectionError, if an environment's process has ended
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        base = None if env is None else env.unwrapped
        if not isinstance(base, SubprocVecEnv):
            raise
        # A pipe breaks shortly before its process has ended
        ended = connection.wait([process.sentinel for process in base.processes], timeout=5)
        for process in base.processes:
            if process.sentinel in ended:
                process.join(timeout=5)
        codes = {i: process.exitcode for i, process in enumerate(base.processes) if process.exitcode is not None}
        if not codes:
            raise
        i, code = next(iter(codes.items()))
        why = "it raised an exception, whose traceback it printed above" if code == 1 else "it left by itself"
        if code < 0:
            why = f"signal {-code} ended it" + (", as the system does when memory runs out" if code == -9 else "")
        others = f" (so did those of {', '.join(map(str, list(codes)[1:]))})" if len(codes) > 1 else ""
        raise RuntimeError(f"The process of environment {i} ended with exit code {code}: {why}{others}") from error
