"""
CartPole and Pendulum without their velocities: the smallest continuous tasks that need a memory, and quick to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from numpy.typing import NDArray


class CartPoleNoVelEnv(CartPoleEnv):
    """
    CartPole without velocities (id ``CartPoleNoVel-v0``).

    :param kwargs: As of Gymnasium's ``CartPole-v1``: ``render_mode``, ``sutton_barto_reward``.

    * Observation: ``[x, theta]``, the cart's position in metres and the pole's angle in radians, float32. Both velocities are
      left out (not set to zero).
    * Action: Discrete(2), push to the left or to the right.
    * Reward: 1 for each step, the last included.
    * Length: ends when |x| > 2.4 or |theta| > 12°; ``CartPoleNoVel-v0`` is cut after 500 steps.
    * Source: Gymnasium's CartPole-v1 (MIT licence), after Barto, Sutton and Anderson (1983).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        full = self.observation_space
        assert isinstance(full, spaces.Box)
        self.observation_space = spaces.Box(full.low[::2], full.high[::2], dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: Seed of the environment's random numbers.
        :param options: ``low`` and ``high``, the bounds of the start state.
        :return: The observation and an empty info.
        """
        observation, info = super().reset(seed=seed, options=options)
        return observation[::2].copy(), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: 0 (left) or 1 (right).
        :return: Observation, reward, terminated, truncated, info.
        """
        observation, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return observation[::2].copy(), reward, terminated, truncated, info


class PendulumNoVelEnv(PendulumEnv):
    """
    Pendulum without velocity (id ``PendulumNoVel-v0``).

    :param kwargs: As of Gymnasium's ``Pendulum-v1``: ``render_mode``, ``g``.

    * Observation: ``[cos(theta), sin(theta)]``, float32, theta = 0 upright. The velocity is left out (not set to zero).
    * Action: Box(-2, 2, (1,)), the torque in newton metres.
    * Reward: ``-(theta² + 0.1 theta_dot² + 0.001 torque²)``, between -16.3 and 0.
    * Length: never terminates; ``PendulumNoVel-v0`` is cut after 200 steps.
    * Source: Gymnasium's Pendulum-v1 (MIT licence).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: Seed of the environment's random numbers.
        :param options: ``x_init`` and ``y_init``, the bounds of the start angle and velocity.
        :return: The observation and an empty info.
        """
        observation, info = super().reset(seed=seed, options=options)
        return observation[:2].copy(), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: The torque, one number in an array.
        :return: Observation, reward, terminated, truncated, info.
        """
        observation, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return observation[:2].copy(), reward, terminated, truncated, info
