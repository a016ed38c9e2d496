"""Classic control without velocities: CartPole and Pendulum."""

from __future__ import annotations

from typing import Any

CLASSIC_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "CartPoleNoVel-v0": ("sb3_shm.envs.novel.batched:CartPoleNoVel", {}),
    "PendulumNoVel-v0": ("sb3_shm.envs.novel.batched:PendulumNoVel", {}),
}
"""Id -> where the task's class is, and its arguments."""
