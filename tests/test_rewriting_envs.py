"""Endless T-Maze, Color-Cubes and long RepeatFirst."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.oracles import ORACLES
from sb3_shm.envs.rewriting import REWRITING_TASKS
from sb3_shm.envs.rewriting.color_cubes import ColorCubes
from sb3_shm.envs.rewriting.repeat_first import LongRepeatFirst
from sb3_shm.envs.rewriting.t_maze import EndlessTMaze

SHORT_IDS = [env_id for env_id in REWRITING_TASKS if "10000" not in env_id]
FORWARD, LEFT = 0, 1


def play(env: BatchedVecEnv, choose: Callable[[np.ndarray], Any], n_episodes: int) -> list[dict[str, Any]]:
    """:return: infos at the ends of the first ``n_episodes`` episodes"""
    observations, ends = env.reset(), []
    while len(ends) < n_episodes:
        observations, _, dones, infos = env.step(choose(observations))
        ends += [infos[i] for i in dones.nonzero()[0]]
    return ends[:n_episodes]


def mean_return(ends: list[dict[str, Any]]) -> float:
    return float(np.mean([end["episode"]["r"] for end in ends]))


def successes(ends: list[dict[str, Any]]) -> float:
    return float(np.mean([end["is_success"] for end in ends]))


@pytest.mark.parametrize("env_id", REWRITING_TASKS)
def test_check_env(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(gym.make(env_id), skip_render_check=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)
    assert not [str(w.message) for w in caught if "spec" not in str(w.message)]


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_copies_are_single_environments(env_id):
    """Copy i does what a single environment with the seed + i does, over several episodes."""
    usual, batched = make_vec_env(env_id, 3, seed=2), make_batched_env(env_id, 3, seed=2)
    generator = np.random.default_rng(0)
    oracle = ORACLES[BATCHED_TASKS[env_id][0].split(":")[1]]
    assert batched.observation_space == usual.observation_space
    np.testing.assert_array_equal(batched.reset(), usual.reset())
    n_ended = np.zeros(3, dtype=int)
    for _ in range(2100 if env_id == "RepeatFirst1000-v0" or "50" in env_id else 900):
        # Good enough to get far, bad enough for mistakes
        noise = generator.integers(batched.action_space.n, size=3)
        actions = np.where(generator.random(3) < 0.99, oracle(batched.task), noise)
        ours, theirs = batched.step(actions), usual.step(actions)
        for part, usual_part in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(part, usual_part)
        for i in ours[2].nonzero()[0]:
            assert ours[3][i]["is_success"] == theirs[3][i]["is_success"]
            np.testing.assert_array_equal(ours[3][i]["terminal_observation"], theirs[3][i]["terminal_observation"])
        n_ended += ours[2]
    assert (n_ended >= 2).all()


BEST = {
    # Return and length of the best player
    "EndlessTMaze-v0": (5, 55),
    "EndlessTMazeUniform-v0": (5, None),
    "EndlessTMaze50-v0": (20, 1020),
    "EndlessTMazeUniform50-v0": (20, None),
    "ColorCubesEasy-v0": (1, 102),
    "ColorCubesMedium-v0": (1, 204),
    "ColorCubesHard-v0": (1, 408),
    "RepeatFirst1000-v0": (1, 1_000),
    "RepeatFirst10000-v0": (1, 10_000),
}


@pytest.mark.parametrize("env_id", REWRITING_TASKS)
def test_oracle(env_id):
    env = make_batched_env(env_id, 8, seed=0)
    oracle = ORACLES[BATCHED_TASKS[env_id][0].split(":")[1]]
    ends = play(env, lambda _: oracle(env.task), 16)
    best, length = BEST[env_id]
    assert successes(ends) == 1
    for end in ends:
        assert end["episode"]["r"] == pytest.approx(best, abs=1e-5)
        assert length is None or end["episode"]["l"] == length
        assert not end["TimeLimit.truncated"]


class TMazePlayer:
    """
    Keeps the cue it saw first, or that it saw last, of each copy. If the lengths are drawn, it tries the turn at each step
    before it goes on, because it cannot see the junction.
    """

    def __init__(self, env: BatchedVecEnv, rewrites: bool) -> None:
        self.task, self.rewrites = env.task, rewrites
        self.cue = np.full(env.num_envs, -1)
        self.tried = np.zeros(env.num_envs, dtype=bool)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        at_start, new = observations[:, 0] == 0, self.task.t == 0
        self.cue = np.where(at_start & (new | self.rewrites), observations[:, 1:].argmax(axis=1), self.cue)
        try_now = observations[:, 0] == 1
        if self.task.uniform:
            try_now |= ~at_start & ~self.tried
        self.tried = try_now
        return np.where(try_now, LEFT + self.cue, FORWARD)


@pytest.mark.parametrize("env_id", [env_id for env_id in REWRITING_TASKS if "TMaze" in env_id])
def test_t_maze_from_observations(env_id):
    """The last cue leads to the end. The first one does not: from the second junction on it is a guess."""
    env = make_batched_env(env_id, 64, seed=1)
    n, longest = env.task.n_corridors, env.task.max_length
    ends = play(env, TMazePlayer(env, rewrites=True), 64)
    assert successes(ends) == 1
    price = 0.01 * (longest - 1) / 2 if env.task.uniform else 0
    assert mean_return(ends) == pytest.approx(n * (1 - price), abs=0.01 * longest * np.sqrt(n / 64))
    if not env.task.uniform:
        assert mean_return(ends) == pytest.approx(n, abs=1e-5)

    ends = play(env, TMazePlayer(env, rewrites=False), 192)
    assert successes(ends) < 4 * 0.5 ** (n - 1) + 0.01
    # One junction, then a fair coin: 1 + 1 - 1 on average, a little more because the last one ends it all
    assert mean_return(ends) < 1.6


def test_t_maze_cues():
    """Both cues are as frequent, one is on show at the start of each corridor and nowhere else."""
    env = make_batched_env("EndlessTMaze50-v0", 64, seed=0)
    observations = [env.reset()]
    for _ in range(1019):
        observations.append(env.step(ORACLES["EndlessTMaze"](env.task))[0])
    seen = np.stack(observations)
    np.testing.assert_array_equal(seen[:, :, 1:].sum(axis=2), seen[:, :, 0] == 0)
    assert (seen[:, :, 1:].sum(axis=(0, 2)) == 20).all()
    assert seen[:, :, 1].sum() / (20 * 64) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(20 * 64))


def test_t_maze_by_hand():
    """A turn within a corridor costs 0.01, waiting there ends nothing; a junction forgives nothing."""
    task = EndlessTMaze(n_envs=3, n_corridors=2, max_length=2)
    task.reset(np.arange(3), [np.random.default_rng(0)] * 3)
    task.cues[:] = [[0, 1], [1, 0], [0, 0]]
    np.testing.assert_array_equal(task.observe(), [[0, 1, 0], [0, 0, 1], [0, 1, 0]])

    def step(*actions: int) -> tuple[list[float], list[bool]]:
        rewards, terminated, truncated = task.step(np.array(actions))
        assert not truncated.any()
        return rewards.tolist(), terminated.tolist()

    bump = float(np.float32(-0.01))
    assert step(0, 1, 2) == ([0, bump, bump], [False] * 3)
    np.testing.assert_array_equal(task.observe(), [[0.5, 0, 0], [0, 0, 1], [0, 1, 0]])
    step(0, 0, 0)
    step(1, 0, 0)  # the first copy turns at the junction
    np.testing.assert_array_equal(task.observe(), [[0, 0, 1], [1, 0, 0], [1, 0, 0]])
    assert step(0, 2, 0) == ([0, 1, -1], [False, False, True])  # right, and into the wall
    assert step(0, 0, 0)[1][:2] == [False, False]
    assert step(2, 0, 0) == ([1, 0, -1], [True, False, True])
    assert task.success().tolist() == [True, False, False]
    assert step(2, 2, 0)[0][1] == -1


def test_t_maze_is_cut():
    """Whoever only bumps into walls is stopped after six times the way, which truncates."""
    env = make_batched_env("EndlessTMaze-v0", 2, seed=0)
    (end, *_) = play(env, lambda _: np.full(2, LEFT), 2)
    assert end["episode"]["l"] == 6 * 11 * 5
    assert end["episode"]["r"] == pytest.approx(-3.3, abs=1e-4)
    assert end["TimeLimit.truncated"]
    assert not end["is_success"]


class CubesPlayer:
    """Writes down where each cube was shown first, or last."""

    def __init__(self, env: BatchedVecEnv, rewrites: bool) -> None:
        self.task, self.rewrites = env.task, rewrites
        self.places = np.zeros((env.num_envs, env.task.n_cubes), dtype=np.int64)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        k, rows = self.task.n_cubes, np.arange(self.task.n_envs)
        colours, places = observations[:, 3 : 3 + k].argmax(axis=1), observations[:, 3 + k :].argmax(axis=1)
        write = (observations[:, 0] == 1) & ((self.task.t < k) | self.rewrites)
        self.places[rows[write], colours[write]] = places[write]
        return self.places[rows, colours]


@pytest.mark.parametrize("env_id", [env_id for env_id in REWRITING_TASKS if "ColorCubes" in env_id])
def test_color_cubes_from_observations(env_id):
    """The last place of each cube is always right, the first one mostly wrong, and a constant answer nearly always."""
    env = make_batched_env(env_id, 32, seed=1)
    ends = play(env, CubesPlayer(env, rewrites=True), 32)
    assert successes(ends) == 1
    assert mean_return(ends) == pytest.approx(1, abs=1e-5)
    ends = play(env, CubesPlayer(env, rewrites=False), 64)
    assert -0.75 < mean_return(ends) < 0.1
    assert successes(ends) == 0
    ends = play(env, lambda _: np.zeros(32, dtype=np.int64), 64)
    assert mean_return(ends) == pytest.approx(2 / env.task.n_places - 1, abs=0.06)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.data())
def test_color_cubes_invariants(seed, board_size, data):
    """Cubes are never in one place; exact numbers of moves and questions; a cube that moves was elsewhere before."""
    n_cubes = data.draw(st.integers(1, board_size**2 - 1))
    task = ColorCubes(n_envs=2, n_cubes=n_cubes, board_size=board_size, n_events=50)
    task.reset(np.arange(2), [np.random.default_rng(seed), np.random.default_rng(seed + 1)])
    places = np.full((2, n_cubes), -1)
    counts = np.zeros(3, dtype=int)
    for t in range(task.length):
        observations = task.observe()
        assert all(observation in task.observation_space for observation in observations)
        for i, observation in enumerate(observations):
            kind, colour = observation[:3].argmax(), observation[3 : 3 + n_cubes]
            place = observation[3 + n_cubes :]
            assert observation[:3].sum() == 1
            assert colour.sum() == (kind != task.NOTHING)
            assert place.sum() == (kind == task.SHOWN)
            if kind == task.SHOWN:
                assert places[i, colour.argmax()] != place.argmax()
                places[i, colour.argmax()] = place.argmax()
                assert len(set(places[i][places[i] >= 0])) == (places[i] >= 0).sum()
            counts[kind] += t >= n_cubes
        rewards, terminated, truncated = task.step(np.zeros(2, dtype=np.int64))
        asked = observations[:, 1] == 1
        np.testing.assert_allclose(np.abs(rewards), asked / 20)
        assert not truncated.any()
        assert (terminated == (t == task.length - 1)).all()
    np.testing.assert_array_equal(counts, [2 * 10, 2 * 20, 2 * 20])
    np.testing.assert_array_equal(task.observe()[:, :3], [[0, 0, 1]] * 2)


def test_long_repeat_first():
    """Symbols are uniform and independent of each other; the latest is worth a guess."""
    env = make_batched_env("RepeatFirst1000-v0", 32, seed=0)
    observations = env.reset()
    seen, first = [observations.argmax(axis=1)], observations.argmax(axis=1)
    total = np.zeros(32)
    for t in range(1000):
        observations, rewards, dones, _ = env.step(seen[-1])
        total += rewards
        assert dones.all() == dones.any() == (t == 999)
        if not dones.all():
            seen.append(observations.argmax(axis=1))
    symbols = np.stack(seen)
    n = symbols.size
    assert np.bincount(symbols.ravel()) / n == pytest.approx([0.25] * 4, abs=4 * np.sqrt(0.1875 / n))
    assert (symbols[1:] == symbols[:-1]).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / n))
    np.testing.assert_allclose(total, 2 * (symbols == first).mean(axis=0) - 1, atol=1e-4)
    assert total.mean() == pytest.approx(-0.5, abs=0.02)


def test_success_of_long_repeat_first():
    """One mistake is enough to fail."""
    task = LongRepeatFirst(n_envs=2, n_steps=3)
    task.reset(np.arange(2), [np.random.default_rng(0), np.random.default_rng(1)])
    for _ in range(2):
        task.step(task.suits[:, 0])
    assert task.success().all()
    _, terminated, _ = task.step((task.suits[:, 0] + [0, 1]) % 4)
    assert terminated.all()
    assert task.success().tolist() == [True, False]


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_copies_and_pictures(env_id):
    """Same seed, same episode; copies differ; a copy of the environment goes on as the original does."""
    env = make_batched_env(env_id, 4, seed=5)
    twin = make_batched_env(env_id, 4, seed=5)
    oracle = ORACLES[BATCHED_TASKS[env_id][0].split(":")[1]]
    history = [env.reset()]
    np.testing.assert_array_equal(history[0], twin.reset())
    for _ in range(60):
        actions = oracle(env.task)
        history.append(env.step(actions)[0])
        np.testing.assert_array_equal(history[-1], twin.step(actions)[0])
    assert any((step[0] != step[i]).any() for step in history for i in (1, 2, 3))
    for kept in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        original = copy.deepcopy(env)
        for _ in range(150):
            actions = oracle(original.task)
            for ours, theirs in zip(original.step(actions)[:3], kept.step(actions)[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    single = pickle.loads(pickle.dumps(gym.make(env_id, render_mode="rgb_array")))
    single.reset(seed=0)
    first = single.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert len(np.unique(first.reshape(-1, 3), axis=0)) >= 3
    pictures = env.get_images()
    assert all(picture.shape == first.shape for picture in pictures)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_batched_env("EndlessTMaze", 2), "EndlessTMaze-v0"),
        (lambda: make_batched_env("ColorCubesEasy-v0", -1), "n_envs must be a whole number, 1 or more, got -1"),
        (lambda: EndlessTMaze(n_corridors=0), "n_corridors must be a whole number, 1 or more, got 0"),
        (lambda: EndlessTMaze(max_length=0), "max_length must be a whole number, 1 or more"),
        (lambda: EndlessTMaze(max_length=2.5), "max_length must be a whole number, 1 or more, got 2.5"),
        (lambda: ColorCubes(n_cubes=9, board_size=3), "n_cubes must be a whole number, from 1 to 8, got 9"),
        (lambda: ColorCubes(n_cubes=1.5), "n_cubes must be a whole number"),
        (lambda: ColorCubes(board_size=-2), "board_size must be a whole number, 2 or more, got -2"),
        (lambda: ColorCubes(n_events=4), "n_events must be a whole number, 5 or more"),
        (lambda: LongRepeatFirst(n_steps=0), "n_steps must be a whole number, 1 or more"),
        (lambda: LongRepeatFirst(n_steps=10.5), "n_steps must be a whole number"),
        (lambda: gym.make("EndlessTMaze-v0", render_mode="ansi"), "render_mode must be"),
    ],
)
# Gymnasium warns about the render mode before we refuse it
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("env_id", ["EndlessTMaze-v0", "ColorCubesEasy-v0", "RepeatFirst1000-v0"])
def test_bad_actions(env_id):
    env = gym.make(env_id)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    for action in (-1, env.action_space.n, 0.5, np.nan, [0, 0]):
        with pytest.raises(ValueError, match="actions must"):
            env.step(action)
    # The episode goes on, and after its end a reset is due
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(0)
        over = terminated or truncated
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
