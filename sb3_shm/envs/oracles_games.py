"""
Scripted players of the card and board games, of the rewriting tasks, and of CartPole and Pendulum; ``sb3_shm.envs.oracles``
offers them by task.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sb3_shm.envs.batched import Array, BatchedTask
from sb3_shm.envs.novel.batched import CartPoleNoVel, PendulumNoVel
from sb3_shm.envs.popgym.batched import Autoencode, RepeatFirst, RepeatPrevious
from sb3_shm.envs.popgym.boards import Battleship, Concentration
from sb3_shm.envs.rewriting.color_cubes import ColorCubes
from sb3_shm.envs.rewriting.t_maze import EndlessTMaze


def autoencode(task: BatchedTask) -> Array:
    """
    :param task: Autoencode
    :return: the suits from the last to the first, (N,)
    """
    assert isinstance(task, Autoencode)
    return _suits(task.suits, np.minimum(2 * (task.n_cards - 1) - task.t, task.n_cards - 1))


def repeat_first(task: BatchedTask) -> Array:
    """
    :param task: RepeatFirst or LongRepeatFirst
    :return: the first suit, (N,)
    """
    assert isinstance(task, RepeatFirst)
    return _suits(task.suits, np.zeros_like(task.t))


def repeat_previous(task: BatchedTask) -> Array:
    """
    :param task: RepeatPrevious
    :return: the suit of k - 1 observations ago, (N,)
    """
    assert isinstance(task, RepeatPrevious)
    return _suits(task.suits, np.maximum(task.t + 1 - task.k, 0))


def battleship(task: BatchedTask) -> Array:
    """
    :param task: Battleship
    :return: a ship's cell that was not hit yet, (N, 2)
    """
    assert isinstance(task, Battleship)
    cells = (task.board & ~task.shot_at).argmax(axis=1)
    return np.stack(np.divmod(cells, task.board_size), axis=1)


def concentration(task: BatchedTask) -> Array:
    """
    :param task: Concentration
    :return: a card that is face down, or the one that makes a pair with the card on show, (N,)
    """
    assert isinstance(task, Concentration)
    rows = np.arange(task.n_envs)
    second = task.first >= 0
    fitting = ~task.face_up
    fitting[second] &= task.kinds[second] == task.kinds[rows, task.first][second, None]
    fitting[rows[second], task.first[second]] = False
    cards: Array = fitting.argmax(axis=1)
    return cards


def endless_t_maze(task: BatchedTask) -> Array:
    """
    :param task: EndlessTMaze
    :return: forward, or at a junction the turn of the cue, (N,)
    """
    assert isinstance(task, EndlessTMaze)
    rows, corridor = np.arange(task.n_envs), task.corridors
    return np.where(task.x == task.lengths[rows, corridor], 1 + task.cues[rows, corridor], 0)


def color_cubes(task: BatchedTask) -> Array:
    """
    :param task: ColorCubes
    :return: where the cube in question lies, (N,)
    """
    assert isinstance(task, ColorCubes)
    return task.places[np.arange(task.n_envs), task.t].astype(np.int64)


def cart_pole(task: BatchedTask) -> Array:
    """
    :param task: CartPoleNoVel
    :return: to the side to which the pole falls, a little more to the middle, (N,)
    """
    assert isinstance(task, CartPoleNoVel)
    falls = task.state @ np.array([0.1, 0.2, 1.0, 0.3])
    return np.where(falls > 0, 1, 0)


def pendulum(task: BatchedTask) -> Array:
    """
    :param task: PendulumNoVel
    :return: the torque that brings the energy to that of the top, and near the top holds it there, (N, 1)
    """
    assert isinstance(task, PendulumNoVel)
    theta, speed = task.state.T
    theta = (theta + np.pi) % (2 * np.pi) - np.pi
    # Energy relative to rest at the top, over the moment of inertia (a rod of 1 m and 1 kg): 3/2 g = 15
    lacking = -(speed**2 / 2 + 15 * (np.cos(theta) - 1))
    swing = np.where(speed < 0, -1, 1) * lacking
    hold = -10 * theta - 2 * speed
    return np.clip(np.where(np.abs(theta) < 0.4, hold, swing), -2, 2)[:, None]


def _suits(suits: Array, places: Array) -> Array:
    return suits[np.arange(len(suits)), places].astype(np.int64)


GAME_ORACLES: dict[str, Callable[[BatchedTask], Array]] = {
    "Autoencode": autoencode,
    "Battleship": battleship,
    "CartPoleNoVel": cart_pole,
    "ColorCubes": color_cubes,
    "Concentration": concentration,
    "EndlessTMaze": endless_t_maze,
    "LongRepeatFirst": repeat_first,
    "PendulumNoVel": pendulum,
    "RepeatFirst": repeat_first,
    "RepeatPrevious": repeat_previous,
}
"""Name of the task's class -> what plays it."""
