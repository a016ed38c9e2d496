"""
Scripted players that read a task's true state: what an agent with a perfect memory could do. They serve as upper bounds, in
tests and in ``examples/play.py``.

A new one is a function that takes a task and returns the actions of all its copies, and an entry in ``ORACLES``.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.envs import BATCHED_TASKS
from sb3_shm.envs.batched import Array, BatchedTask, BatchedVecEnv
from sb3_shm.envs.grid.board import MOVES, N_CELLS, SOLID, Cell
from sb3_shm.envs.grid.key_to_door import KeyToDoor
from sb3_shm.envs.grid.visual_match import VisualMatch
from sb3_shm.envs.grid.world import APPLE_CELLS, GridTask
from sb3_shm.envs.meta.plane import STEP_SIZE, PlaneTask
from sb3_shm.envs.meta.tasks import Wind
from sb3_shm.envs.oracles_games import GAME_ORACLES
from sb3_shm.envs.single import SingleEnv

_UNREACHABLE = N_CELLS  # longer than any path


@lru_cache(maxsize=256)
def _steps_between(room: bytes, goal: int) -> Array:
    # The number of steps from every cell to the goal. `room` says of each cell whether nobody may walk through it; the goal
    # itself may be such a cell
    closed = np.frombuffer(room, dtype=bool)
    steps = np.full(N_CELLS, _UNREACHABLE)
    steps[goal] = 0
    (inside,) = (~closed).nonzero()
    for _ in inside:
        nearest = steps[inside[:, None] + MOVES].min(axis=1) + 1
        steps[inside] = np.minimum(steps[inside], nearest)
    return steps


def _walk(task: GridTask, closed: Array, goals: Array) -> Array:
    # The first move of a shortest path of each copy to its goal; on the goal any move
    actions = np.zeros(task.n_envs, dtype=np.int64)
    for i, (position, goal) in enumerate(zip(task.positions, goals, strict=True)):
        actions[i] = _steps_between(closed[i].tobytes(), int(goal))[position + MOVES].argmin()
    return actions


def _nearest_apples(task: GridTask) -> Array:
    width = int(MOVES[1])
    rows, columns = np.divmod(task.positions[:, None], width)
    # Nothing stands in the way in the room with the apples
    distance = abs(rows - APPLE_CELLS // width) + abs(columns - APPLE_CELLS % width)
    distance[task.boards[:, APPLE_CELLS] != Cell.APPLE] = _UNREACHABLE
    nearest: Array = APPLE_CELLS[distance.argmin(axis=1)]
    return nearest


def visual_match(task: BatchedTask) -> Array:
    """
    Eats the nearest apple, and walks to the colour that was shown without touching another.

    :param task: VisualMatch
    :return: actions, (N,)
    """
    assert isinstance(task, VisualMatch)
    goals = np.where(task.rooms == 1, _nearest_apples(task), task.goals)
    boards = task.boards
    return _walk(task, SOLID[boards] | ((boards >= Cell.RED_TILE) & (boards <= Cell.BLUE_TILE)), goals)


def key_to_door(task: BatchedTask) -> Array:
    """
    Takes the key, eats the nearest apple, opens the door.

    :param task: KeyToDoor
    :return: actions, (N,)
    """
    assert isinstance(task, KeyToDoor)
    goals = np.choose(task.rooms, [task.key_cells, _nearest_apples(task), task.goals])
    return _walk(task, SOLID[task.boards], goals)


def plane(task: BatchedTask) -> Array:
    """
    Goes straight to the goal, against the wind, and stays there.

    :param task: Wind or PointRobot
    :return: actions, (N, 2)
    """
    assert isinstance(task, PlaneTask)
    way = task.goal - task.observe()[:, :2]
    if isinstance(task, Wind):
        way = way - task.task
    return np.clip(way / STEP_SIZE, -1, 1)


ORACLES: dict[str, Callable[[BatchedTask], Array]] = {
    "VisualMatch": visual_match,
    "KeyToDoor": key_to_door,
    "Wind": plane,
    "PointRobot": plane,
    **GAME_ORACLES,
}
"""Name of the task's class -> what plays it."""


class Oracle:
    """
    Plays an environment of this package.

    :param env_id: its id
    :raises ValueError: nobody has written an oracle for it
    """

    def __init__(self, env_id: str) -> None:
        known = {key: path.split(":")[1] for key, (path, _) in BATCHED_TASKS.items() if path.split(":")[1] in ORACLES}
        if env_id not in known:
            near = get_close_matches(env_id, known, n=5, cutoff=0.6)
            nearest = f"; the nearest ids are {', '.join(near)}" if near else ""
            raise ValueError(f"There is no oracle for {env_id!r}, only for the tasks {', '.join(ORACLES)}{nearest}")
        self._play = ORACLES[known[env_id]]

    def act(self, env: gym.Env[Any, Any] | VecEnv) -> Any:
        """
        :param env: the environment as it is now: a :class:`BatchedVecEnv` or a :class:`SingleEnv`, either may be wrapped
        :return: the actions (N, ...) of a vector environment, or the action
        :raises TypeError: ``env`` is another environment, whose state cannot be read
        """
        base = env.unwrapped
        if not isinstance(base, BatchedVecEnv | SingleEnv):
            raise TypeError(f"{env} is not a task of sb3_shm; sb3_shm.envs.single.make_single makes one of the same id")
        actions = self._play(base.task)
        return actions if isinstance(base, BatchedVecEnv) else actions[0]
