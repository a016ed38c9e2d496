from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs.meta.tasks import PointRobot
from sb3_shm.envs.single import SingleEnv
from sb3_shm.envs.wrappers import MetaEpisode


class Corridor(gym.Env):
    """Walk to the goal at 3 of a task that keeps its colour until it is told to draw another."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space | None = None) -> None:
        self.seeds: list[int | None] = []
        self.options: list[Any] = []
        self.place = self.steps = 0
        self.colour = 0.0

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.colour], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.options.append(options)
        self.place = self.steps = 0
        self.colour = round(self.np_random.uniform(-1, 1), 3)
        return self._observation(), {}

    def step(self, action):
        self.place += 1 if action else -1
        self.steps += 1
        reached, late = self.place == 3, self.steps == 5
        info = {"is_success": reached} if reached or late else {}
        return self._observation(), float(reached), reached, late and not reached, info


def test_meta_episode_by_hand():
    env = MetaEpisode(Corridor(), 3)
    np.testing.assert_array_equal(env.observation_space.low, [-10, -10, 0])
    np.testing.assert_array_equal(env.observation_space.high, [10, 10, 1])
    first, _ = env.reset(seed=0, options={"a": 1})
    colour = first[1]
    # The goal, then too late, then too late with the goal as the last step
    right, left = 1, 0
    walk = [right] * 3 + [left] * 5 + [left, right, right, right, right]
    places = [1, 2, 3, -1, -2, -3, -4, -5, -1, 0, 1, 2, 3]
    done_at = {2: True, 7: False, 12: True}
    for i, (action, place) in enumerate(zip(walk, places, strict=True)):
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(observation, [place, colour, i in done_at])
        assert reward == (place == 3)
        assert (terminated, truncated) == (i == 12, False)
        if i in (2, 7):
            np.testing.assert_array_equal(info["start_observation"], [0, colour, 0])
        else:
            assert "start_observation" not in info
    assert info["is_success"] is True
    assert env.unwrapped.options == [{"a": 1}] * 3
    # Another episode: another task, and no success so far
    second, _ = env.reset()
    assert second[1] != colour
    assert second[2] == 0
    for i in range(15):
        observation, _, terminated, truncated, info = env.step(left)
        assert observation[1] == second[1]
        assert (terminated, truncated) == (False, i == 14)
    assert info["is_success"] is False
    assert env.unwrapped.options[3:] == [None] * 3


def test_meta_episode_seeds():
    def play(env: gym.Env, seed: int | None) -> list[float]:
        colours = [float(env.reset(seed=seed)[0][1])]
        for _ in range(3):
            for _ in range(15):
                colours.append(float(env.step(0)[0][1]))
            colours.append(float(env.reset()[0][1]))
        return colours

    env = MetaEpisode(Corridor(), 3)
    first = play(env, 7)
    assert len(set(first)) == 4  # episodes
    assert play(env, 7) == play(MetaEpisode(Corridor(), 3), 7) == first
    assert set(play(env, 8)).isdisjoint(first)
    assert set(play(MetaEpisode(Corridor(), 3), None)).isdisjoint(play(MetaEpisode(Corridor(), 3), None))
    # With other means to keep the task the environment is seeded only when the user asks for it
    keeper = Corridor()
    assert len(set(play(MetaEpisode(keeper, 3, same_seed=False), 7))) == 3 * 3 + 1
    assert keeper.seeds == [7] + [None] * 9
    # Nothing changes for a single rollout but the flag
    single, plain = MetaEpisode(Corridor(), 1), Corridor()
    np.testing.assert_array_equal(single.reset(seed=3)[0][:2], plain.reset(seed=3)[0])


class OneRollout(gym.Env):
    """One rollout of Point Robot, in an environment that keeps its goal."""

    observation_space = spaces.Box(-20, 20, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, goal: np.ndarray, starts: np.ndarray) -> None:
        self.goal, self.starts, self.rollout = goal, starts, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.position, self.steps = self.starts[self.rollout].copy(), 0
        self.rollout += 1
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = self.position + 0.1 * action.astype(np.float64)
        self.steps += 1
        reached = np.linalg.norm(self.position - self.goal) <= 0.05
        return self.position.astype(np.float32), float(reached), False, self.steps == 100, {}


def test_meta_episode_makes_point_robot():
    """Two rollouts of a plain environment, wrapped, are what PointRobot has built in."""
    task = PointRobot()
    whole = SingleEnv(task)
    expected_first, _ = whole.reset(seed=11)
    wrapped = MetaEpisode(OneRollout(task.goal[0], task._starts[0]), 2, same_seed=False)
    np.testing.assert_array_equal(wrapped.reset()[0], expected_first)
    total = 0.0
    for _ in range(200):
        action = np.clip((task.goal[0] - task.observe()[0, :2]) / 0.1, -0.5, 0.5).astype(np.float32)
        (seen, *rest), (seen_1, *rest_1) = whole.step(action)[:4], wrapped.step(action)[:4]
        np.testing.assert_array_equal(seen, seen_1)
        assert rest == rest_1
        total += rest[0]
    assert total > 50
    assert rest[1:] == [False, True]


def test_a_monitor_inside_counts_whole_episodes():
    """Where make_vec_env puts it. Its own episodes are rollouts."""
    env = make_vec_env("CartPoleNoVel-v0", 1, seed=0, wrapper_class=MetaEpisode, wrapper_kwargs=dict(n_rollouts=3))
    env.reset()
    infos, steps, ends = [], 0, 0
    while not infos:
        _, _, (done,), (info,) = env.step(np.array([0]))
        steps += 1
        ends += "start_observation" in info
        infos += [info["episode"]] if "episode" in info else []
        assert done == bool(infos)
    assert ends == 2 and infos[0]["l"] == infos[0]["r"] == steps > 20


@pytest.mark.parametrize("n_rollouts", [0, 1.5, True, "2"])
def test_numbers_of_rollouts(n_rollouts):
    with pytest.raises(ValueError, match="n_rollouts"):
        MetaEpisode(gym.make("CartPoleNoVel-v0"), n_rollouts)
