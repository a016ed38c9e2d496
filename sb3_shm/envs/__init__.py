"""
Benchmark environments. Importing this package registers them with Gymnasium:

* ``<Task><Level>-v0`` and ``<Task><Level>PrevAction-v0``: the tasks of POPGym, see ``sb3_shm.envs.popgym``;
* ``Wind...-v0`` and ``PointRobot...-v0``: the meta-learning tasks of the paper, see ``sb3_shm.envs.meta``;
* ``CartPoleNoVel-v0``, ``PendulumNoVel-v0``, ``AcrobotNoVel-v0``, ``MountainCarContinuousNoVel-v1`` and, where Box2D is
  installed, ``LunarLanderNoVel-v0``: without velocities, see ``sb3_shm.envs.novel``;
* ``VisualMatch<D>-v0`` and ``KeyToDoor<D>-v0`` with D = 60, 100, 250, 500 or 1000, also as ``...Image-v0``, ``...MemoryRL-v0``
  and ``...MemoryRLImage-v0``: a colour or a key to remember for D steps, see ``sb3_shm.envs.grid.visual_match`` and
  ``sb3_shm.envs.grid.key_to_door``;
* ``EndlessTMaze...-v0``, ``ColorCubes<Level>-v0``, ``RepeatFirst1000-v0`` and ``RepeatFirst10000-v0``: what is known becomes
  wrong, or must be known for very long, see ``sb3_shm.envs.rewriting``.

``sb3_shm.envs.wrappers`` adds previous action, previous reward and a first-step flag to the observations of any environment,
makes one episode of several rollouts, and hides entries of the observations.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sb3_shm.envs.batched import BatchedTask, BatchedVecEnv
from sb3_shm.envs.grid import GRID_TASKS
from sb3_shm.envs.meta import META_TASKS
from sb3_shm.envs.novel import CLASSIC_TASKS
from sb3_shm.envs.popgym import POPGYM_TASKS
from sb3_shm.envs.popgym.single import POPGYM_NAMES
from sb3_shm.envs.rewriting import REWRITING_TASKS

__all__ = ["BATCHED_TASKS", "ENV_IDS", "make_batched_env", "register_envs"]

# What can be stepped by array operations: id -> where the task's class is, and its arguments
BATCHED_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    **CLASSIC_TASKS,
    **POPGYM_TASKS,
    **GRID_TASKS,
    **META_TASKS,
    **REWRITING_TASKS,
}

# Entry points are strings: a spec can then be pickled (SubprocVecEnv), and nothing is imported before it is made
_POPGYM_ENTRY_POINT = "sb3_shm.envs.popgym.single:make_popgym"
_VECTOR_ENTRY_POINTS = {
    env_id: f"sb3_shm.envs.vector:{'make_popgym_vector' if env_id in POPGYM_TASKS else 'make_vector'}"
    for env_id in BATCHED_TASKS
} | {
    "CartPoleNoVel-v0": "sb3_shm.envs.vector:make_cart_pole_vector",
    "PendulumNoVel-v0": "sb3_shm.envs.vector:make_pendulum_vector",
}


def _specs() -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = {
        "CartPoleNoVel-v0": {"entry_point": "sb3_shm.envs.novel.single:CartPoleNoVelEnv", "max_episode_steps": 500},
        "PendulumNoVel-v0": {"entry_point": "sb3_shm.envs.novel.single:PendulumNoVelEnv", "max_episode_steps": 200},
        "AcrobotNoVel-v0": {"entry_point": "sb3_shm.envs.novel.single:make_acrobot", "max_episode_steps": 500},
        # Version 0 is rl-zoo3's
        "MountainCarContinuousNoVel-v1": {
            "entry_point": "sb3_shm.envs.novel.single:make_mountain_car_continuous",
            "max_episode_steps": 999,
        },
    }
    if find_spec("Box2D") is not None:
        specs["LunarLanderNoVel-v0"] = {
            "entry_point": "sb3_shm.envs.novel.single:make_lunar_lander",
            "max_episode_steps": 1000,
        }
    for name in POPGYM_NAMES:
        for suffix, previous_action in (("", False), ("PrevAction", True)):
            specs[f"{name}{suffix}-v0"] = {
                "entry_point": _POPGYM_ENTRY_POINT,
                "kwargs": {"name": name, "previous_action": previous_action},
                # As POPGym registers its own, and because a step is so short that each wrapper shows
                "order_enforce": False,
                "disable_env_checker": True,
            }
    for env_id, (task, kwargs) in BATCHED_TASKS.items():
        # The tasks of POPGym and Gymnasium keep their own single environments; the tasks keep their own time
        specs.setdefault(
            env_id,
            {
                "entry_point": "sb3_shm.envs.single:make_single",
                "kwargs": {"task": task, **kwargs},
                "order_enforce": False,
                "disable_env_checker": True,
            },
        )
    for env_id, entry_point in _VECTOR_ENTRY_POINTS.items():
        specs[env_id]["vector_entry_point"] = entry_point
    return specs


_SPECS = _specs()
ENV_IDS = tuple(_SPECS)


def register_envs() -> None:
    """
    Register every environment of this package with Gymnasium. An id that is registered already is left as it is, so calling
    this again does nothing.
    """
    for env_id, spec in _SPECS.items():
        if env_id not in gym.registry:
            gym.register(id=env_id, **spec)


def make_batched_env(env_id: str, n_envs: int, seed: int | None = None) -> BatchedVecEnv:
    """
    N copies of a task as one vector environment whose step is a few array operations: many times the speed of
    ``make_vec_env(env_id, n_envs)``, and the same seeds give the same episodes where the docstring of the task says so.

    :param env_id: one of ``BATCHED_TASKS``
    :param n_envs: number of copies
    :param seed: copy i is seeded with ``seed + i``; None for one from numpy's global generator, as VecEnv.seed()
    :return: the vector environment, to use as ``SHMPPO("MlpSHMPolicy", env)``
    :raises ValueError: there is no batched version of ``env_id``, or ``n_envs`` is below 1
    """
    if env_id not in BATCHED_TASKS:
        near = get_close_matches(str(env_id), BATCHED_TASKS, n=5, cutoff=0.3)
        raise ValueError(f"There is no batched version of {env_id!r}, the nearest ids are {', '.join(near) or 'none'}")
    path, kwargs = BATCHED_TASKS[env_id]
    task: BatchedTask = load_env_creator(path)(n_envs=n_envs, **kwargs)  # type: ignore[assignment]
    env = BatchedVecEnv(task, gym.spec(env_id))
    env.seed(seed)
    return env


register_envs()
