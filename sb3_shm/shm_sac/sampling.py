"""
Which rows of the tape make a batch: arithmetic on indices, which knows nothing of what the rows hold. Rows of an environment
are counted from the oldest that the tape still has ("age"), not by their place in the ring.
"""

from typing import NamedTuple

import numpy as np


class Episodes(NamedTuple):
    """K whole episodes."""

    env: np.ndarray  # (K,), as all of them
    first: np.ndarray  # age of the first row
    rows: np.ndarray  # number of rows, that of the last observation included


def flat(array: np.ndarray) -> np.ndarray:
    """
    :param array: (n_envs, rows, ...)
    :return: a view of it, (n_envs * rows, ...). Taking along one axis is several times faster than indexing two.
    """
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def oldest_rows(written: np.ndarray, size: int) -> np.ndarray:
    """
    :param written: rows written by each environment, overwritten ones included, (n_envs,)
    :param size: rows that the tape holds of each environment
    :return: the oldest row that is still there, counted from the first ever written, (n_envs,)
    """
    oldest: np.ndarray = written - np.minimum(written, size)
    return oldest


def count_windows(written: np.ndarray, size: int, seq_len: int) -> np.ndarray:
    """
    :param written: rows written by each environment, (n_envs,)
    :param size: rows that the tape holds of each environment
    :param seq_len: transitions in a window
    :return: number of windows of ``seq_len + 1`` rows, (n_envs,)
    """
    windows: np.ndarray = np.maximum(np.minimum(written, size) - seq_len, 0)
    return windows


def find_episodes(is_transition: np.ndarray, steps: np.ndarray, written: np.ndarray, is_open: np.ndarray) -> Episodes:
    """
    :param is_transition: false on the rows of last observations, (n_envs, size) bool
    :param steps: step of each row within its episode, (n_envs, size)
    :param written: rows written by each environment, (n_envs,)
    :param is_open: whether the newest row is no episode's end but waits for its action, (n_envs,) bool
    :return: the episodes of which every row is still there
    """
    size = is_transition.shape[1]
    env, row = np.divmod(np.flatnonzero(~is_transition), size)
    last = (row - oldest_rows(written, size)[env]) % size
    first = last - steps[env, row]
    whole = (first >= 0) & (last < np.minimum(written, size)[env] - is_open[env])
    return Episodes(env[whole], first[whole], (last - first)[whole] + 1)


def draw_windows(choices: np.ndarray, seq_len: int, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw windows, uniformly and with replacement, by the generator that Stable-Baselines3 seeds.

    :param choices: what :func:`count_windows` returns, at least one in all
    :param seq_len: transitions in a window
    :param batch_size: number of windows
    :return: environment and age of each row, and true for each; (batch_size, seq_len + 1) each
    """
    ends = choices.cumsum()
    drawn = np.random.randint(ends[-1], size=batch_size)  # noqa: NPY002
    env_of = ends.searchsorted(drawn, side="right")
    ages = (drawn - (ends - choices)[env_of])[:, None] + np.arange(seq_len + 1)
    return np.broadcast_to(env_of[:, None], ages.shape), ages, np.ones(ages.shape, dtype=bool)


def draw_episodes(episodes: Episodes, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw episodes, uniformly and with replacement, by the generator that Stable-Baselines3 seeds.

    :param episodes: at least one
    :param batch_size: number of episodes
    :return: see :func:`lay_out`
    """
    drawn = np.random.randint(len(episodes.env), size=batch_size)  # noqa: NPY002
    return lay_out(*(part[drawn] for part in episodes))


def lay_out(envs: np.ndarray, first: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Lay episodes into the rows of a batch, each as long as the longest episode: the longest first, and each into the first row
    that has room for it. Episodes of equal lengths have a row each.

    :param envs: environment of each episode, (K,)
    :param first: its first row on the tape, (K,)
    :param rows: its number of rows, (K,)
    :return: environment and row on the tape for each place of the batch, and whether something lies there, (N, longest) each
    """
    longest = int(rows.max())
    free: list[int] = []
    env_of, age_of = (np.zeros((len(envs), longest), dtype=np.int64) for _ in range(2))
    held = np.zeros((len(envs), longest), dtype=bool)
    for i in np.argsort(-rows, kind="stable").tolist():
        n = int(rows[i])
        place = next((j for j, room in enumerate(free) if room >= n), len(free))
        if place == len(free):
            free.append(longest)
        begin = longest - free[place]
        env_of[place, begin : begin + n] = envs[i]
        age_of[place, begin : begin + n] = np.arange(first[i], first[i] + n)
        held[place, begin : begin + n] = True
        free[place] -= n
    return env_of[: len(free)], age_of[: len(free)], held[: len(free)]
