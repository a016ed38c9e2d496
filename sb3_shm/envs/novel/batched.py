"""
CartPole and Pendulum without velocities, N copies stepped together. ``make_batched_env("CartPoleNoVel-v0", 256)`` makes them;
``gym.make`` makes Gymnasium's own environments under the same ids (see ``sb3_shm.envs.novel.single``). The same seed
gives the same episodes: both compute the same formulas in float64.

Source: Gymnasium's CartPole-v1 and Pendulum-v1 (MIT licence), whose formulas were written again here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators
from sb3_shm.envs.drawing import INK, PAPER, blank, draw_line, fill_disc, fill_rectangle


class _Motion(BatchedTask):
    """A state of numbers, drawn uniformly around 0 at the start, and a time limit."""

    spread: ClassVar[list[float]]
    """Bounds of the start state."""
    max_steps: ClassVar[int]

    def __init__(self, n_envs: int = 1) -> None:
        super().__init__(n_envs)
        self.state = np.zeros((n_envs, len(self.spread)))
        self.t = np.zeros(n_envs, dtype=np.int64)

    def reset(self, indices: Array, generators: Generators) -> None:
        """
        :param indices: which copies begin anew, (m,)
        :param generators: of all N copies
        """
        high = np.array(self.spread)
        for i in indices.tolist():
            self.state[i] = generators[i].uniform(-high, high)
        self.t[indices] = 0

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N,) or (N, 1)
        :return: rewards (N,) float32, terminated (N,), truncated (N,)
        """
        rewards, terminated = self._move(actions)
        self.t += 1
        return rewards, terminated, self.t >= self.max_steps

    @abstractmethod
    def _move(self, actions: Array) -> tuple[Array, Array]:
        """:return: rewards (N,) float32, terminated (N,)"""


class CartPoleNoVel(_Motion):
    """
    CartPole without velocities (id ``CartPoleNoVel-v0``): hold a pole upright on a cart.

    :param n_envs: N, number of copies

    * Observation: ``[x, theta]``, the cart's position in metres and the pole's angle in radians.
    * Action: Discrete(2), push to the left (0) or to the right (1).
    * Reward: 1 for each step, the last included.
    * Length: terminates when |x| > 2.4 or |theta| > 12°, is truncated after 500 steps.
    * Success: not defined.
    * Source: Gymnasium's CartPole-v1, after Barto, Sutton and Anderson (1983).
    """

    spread: ClassVar[list[float]] = [0.05] * 4
    max_steps: ClassVar[int] = 500
    render_fps: ClassVar[int] = 50
    max_x = 2.4
    max_theta = 12 * 2 * math.pi / 360

    def __init__(self, n_envs: int = 1) -> None:
        super().__init__(n_envs)
        high = np.array([2 * self.max_x, 2 * self.max_theta], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Discrete(2)

    def observe(self) -> Array:
        """
        :return: (N, 2) float32
        """
        return self.state[:, ::2].astype(np.float32)

    def _move(self, actions: Array) -> tuple[Array, Array]:
        # The constants and the order of operations are Gymnasium's, so that the last bits agree
        gravity, total_mass, pole_mass, half_length, seconds = 9.8, 0.1 + 1.0, 0.1, 0.5, 0.02
        x, x_dot, theta, theta_dot = self.state.T
        force = np.where(actions == 1, 10.0, -10.0)
        cos, sin = np.cos(theta), np.sin(theta)
        push = (force + pole_mass * half_length * np.square(theta_dot) * sin) / total_mass
        theta_acc = (gravity * sin - cos * push) / (half_length * (4.0 / 3.0 - pole_mass * np.square(cos) / total_mass))
        x_acc = push - pole_mass * half_length * theta_acc * cos / total_mass
        self.state = np.stack(
            (x + seconds * x_dot, x_dot + seconds * x_acc, theta + seconds * theta_dot, theta_dot + seconds * theta_acc),
            axis=1,
        )
        terminated = (np.abs(self.state[:, 0]) > self.max_x) | (np.abs(self.state[:, 2]) > self.max_theta)
        return np.ones(self.n_envs, dtype=np.float32), terminated

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: cart and pole, (height, width, 3)
        """
        height, width = 200, 400
        x, _, theta, _ = self.state[index]
        image = blank(height, width, PAPER)
        row, column = 150, width / 2 + x * width / 2 / self.max_x
        fill_rectangle(image, row, 0, row + 2, width, INK)
        fill_rectangle(image, row - 10, int(column) - 25, row + 10, int(column) + 25, INK)
        tip = (row - 100 * math.cos(theta), column + 100 * math.sin(theta))
        draw_line(image, [(row, column), tip], (200, 140, 80), thickness=8)
        return image


class PendulumNoVel(_Motion):
    """
    Pendulum without velocity (id ``PendulumNoVel-v0``): swing a rod up and hold it there.

    :param n_envs: N, number of copies

    * Observation: ``[cos(theta), sin(theta)]``, theta = 0 upright.
    * Action: Box(-2, 2, (1,)), the torque in newton metres.
    * Reward: ``-(theta² + 0.1 theta_dot² + 0.001 torque²)``, between -16.3 and 0.
    * Length: truncated after 200 steps.
    * Success: not defined.
    * Source: Gymnasium's Pendulum-v1.
    """

    spread: ClassVar[list[float]] = [math.pi, 1.0]
    max_steps: ClassVar[int] = 200
    render_fps: ClassVar[int] = 30

    def __init__(self, n_envs: int = 1) -> None:
        super().__init__(n_envs)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), dtype=np.float32)

    def observe(self) -> Array:
        """
        :return: (N, 2) float32
        """
        theta = self.state[:, 0]
        return np.stack((np.cos(theta), np.sin(theta)), axis=1).astype(np.float32)

    def _move(self, actions: Array) -> tuple[Array, Array]:
        # The torque counts in float32: as Gymnasium computes with what its action space holds
        gravity, max_speed, seconds = 10.0, 8.0, 0.05
        torque = actions[:, 0].astype(np.float32)
        theta, theta_dot = self.state.T
        from_top = (theta + np.pi) % (2 * np.pi) - np.pi
        costs = from_top**2 + 0.1 * theta_dot**2 + 0.001 * torque**2
        speed = theta_dot + (3 * gravity / 2 * np.sin(theta) + 3.0 * torque) * seconds
        speed = np.clip(speed, -max_speed, max_speed)
        self.state = np.stack((theta + speed * seconds, speed), axis=1)
        return (-costs).astype(np.float32), np.zeros(self.n_envs, dtype=bool)

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the rod, (height, width, 3)
        """
        image = blank(300, 300, PAPER)
        theta = self.state[index, 0]
        tip = (150 - 100 * math.cos(theta), 150 - 100 * math.sin(theta))
        draw_line(image, [(150, 150), tip], (205, 77, 77), thickness=20)
        fill_disc(image, 150, 150, 6, INK)
        return image
