"""
Gymnasium's CartPole, Pendulum, Acrobot, MountainCarContinuous and LunarLander without their velocities: small tasks that need
a memory, the first two quick to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from numpy.typing import NDArray

from sb3_shm.envs.wrappers import HideEntries


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


def make_acrobot(render_mode: str | None = None) -> HideEntries:
    """
    Acrobot without velocities (id ``AcrobotNoVel-v0``): swing the lower of two links above a line.

    :param render_mode: as of Gymnasium's ``Acrobot-v1``
    :return: the environment

    * Observation: cosine and sine of both angles, 4 numbers.
    * Action: Discrete(3), the torque -1, 0 or 1 between the links.
    * Reward: -1 for each step but the last.
    * Length: ends above the line; ``AcrobotNoVel-v0`` is cut after 500 steps.
    * Source: Gymnasium's Acrobot-v1 (MIT licence).
    """
    return HideEntries(AcrobotEnv(render_mode=render_mode), [4, 5])


def make_mountain_car_continuous(render_mode: str | None = None) -> HideEntries:
    """
    MountainCarContinuous without velocity (id ``MountainCarContinuousNoVel-v1``): drive out of a valley with too weak a motor.

    :param render_mode: as of Gymnasium's ``MountainCarContinuous-v0``
    :return: the environment

    * Observation: the position, one number.
    * Action: Box(-1, 1, (1,)), the force.
    * Reward: 100 at the goal, -0.1 force² for each step.
    * Length: ends at the goal; ``MountainCarContinuousNoVel-v1`` is cut after 999 steps.
    * Source: Gymnasium's MountainCarContinuous-v0 (MIT licence).
    """
    return HideEntries(Continuous_MountainCarEnv(render_mode=render_mode), [1])


def make_lunar_lander(render_mode: str | None = None) -> HideEntries:
    """
    LunarLander without velocities (id ``LunarLanderNoVel-v0``, where Box2D is installed): land between two flags.

    :param render_mode: as of Gymnasium's ``LunarLander-v3``
    :return: the environment

    * Observation: position, angle and whether each leg touches the ground, 5 numbers.
    * Action: Discrete(4), nothing or one of three engines.
    * Reward: as of LunarLander-v3, 200 and more for a good landing.
    * Length: ends with the landing or a crash; ``LunarLanderNoVel-v0`` is cut after 1000 steps.
    * Source: Gymnasium's LunarLander-v3 (MIT licence).
    """
    from gymnasium.envs.box2d.lunar_lander import LunarLander

    return HideEntries(LunarLander(render_mode=render_mode), [2, 3, 5])


# Where gym.make looks which render_mode, as "rgb_array_list", it must make of another
make_acrobot.metadata = AcrobotEnv.metadata  # type: ignore[attr-defined]
make_mountain_car_continuous.metadata = Continuous_MountainCarEnv.metadata  # type: ignore[attr-defined]
# Gymnasium's class cannot be imported without Box2D
make_lunar_lander.metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}  # type: ignore[attr-defined]
