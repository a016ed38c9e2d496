"""
Benchmark environments. Importing this package registers them with Gymnasium:

* ``<Task><Level>-v0`` and ``<Task><Level>PrevAction-v0``: the tasks of POPGym, see ``sb3_shm.envs.popgym``;
* ``CartPoleNoVel-v0`` and ``PendulumNoVel-v0``: without velocities, see ``sb3_shm.envs.novel``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from sb3_shm.envs.popgym import POPGYM_NAMES, suggested_id

__all__ = ["ENV_IDS", "register_envs", "suggested_id"]

# Entry points are strings: a spec can then be pickled (SubprocVecEnv), and nothing is imported before it is made
_POPGYM_ENTRY_POINT = "sb3_shm.envs.popgym:make_popgym"


def _specs() -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = {
        "CartPoleNoVel-v0": {"entry_point": "sb3_shm.envs.novel:CartPoleNoVelEnv", "max_episode_steps": 500},
        "PendulumNoVel-v0": {"entry_point": "sb3_shm.envs.novel:PendulumNoVelEnv", "max_episode_steps": 200},
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


register_envs()
