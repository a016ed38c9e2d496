"""Visual Match and Key-to-Door: exact, the same alone as in a vector, and won by who remembers."""

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from grid_reference import Game, place
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env
from sb3_shm.envs.batched import BatchedTask, BatchedVecEnv
from sb3_shm.envs.grid import GRID_TASKS
from sb3_shm.envs.grid.board import COLOURS, SOLID, Cell
from sb3_shm.envs.grid.key_to_door import KeyToDoor
from sb3_shm.envs.grid.visual_match import VisualMatch
from sb3_shm.envs.grid.world import APPLE_CELLS
from sb3_shm.envs.oracles import ORACLES, Oracle
from sb3_shm.envs.single import SingleEnv

NORTH, SOUTH, WEST, EAST = range(4)
TASKS = {"VisualMatch": VisualMatch, "KeyToDoor": KeyToDoor}
DISTRACTOR_STEPS = (60, 100, 250, 500, 1000)
# Steps besides the distractor's, and the reward for success
OF_VARIANT = {
    ("VisualMatch", ""): (25, 10),
    ("KeyToDoor", ""): (13, 10),
    ("VisualMatch", "MemoryRL"): (30, 5),
    ("KeyToDoor", "MemoryRL"): (25, 5),
}
FLAT_IDS = [f"{task}{steps}{variant}-v0" for task, variant in OF_VARIANT for steps in DISTRACTOR_STEPS]
SHORT_IDS = [env_id for env_id in FLAT_IDS if "60" in env_id]
IDS = FLAT_IDS + [env_id.replace("-v0", "Image-v0") for env_id in FLAT_IDS]


def unpack(env_id: str) -> tuple[str, int, int, int]:
    """:return: name of the task's class, steps in the distractor, steps in all, reward for success"""
    task = "VisualMatch" if env_id.startswith("VisualMatch") else "KeyToDoor"
    extra, reward = OF_VARIANT[task, "MemoryRL" if "MemoryRL" in env_id else ""]
    steps = int("".join(filter(str.isdigit, env_id.split("-")[0])))
    return task, steps, steps + extra, reward


def play(env: BatchedVecEnv, choose: Any, n_steps: int) -> tuple[np.ndarray, ...]:
    """:return: observations, rewards and dones of each step, and the last infos"""
    steps = [env.step(choose()) for _ in range(n_steps)]
    observations, rewards, dones, infos = zip(*steps, strict=True)
    return np.array(observations), np.array(rewards), np.array(dones), infos[-1]


def trajectory(env: gym.Env, actions: np.ndarray, seed: int | None) -> list[Any]:
    steps: list[Any] = [env.reset(seed=seed)[0]]
    for action in actions:
        observation, *rest = env.step(action)
        steps.append((observation, rest))
        if rest[1] or rest[2]:
            steps.append(env.reset()[0])
    return steps


def assert_equal(first: Any, second: Any) -> None:
    np.testing.assert_equal(first, second)


def test_ids():
    assert set(IDS) == set(GRID_TASKS) and len(IDS) == 40
    for env_id in IDS:
        env = gym.make(env_id)
        assert isinstance(env.unwrapped, SingleEnv)
        assert type(env.unwrapped.task) is TASKS[unpack(env_id)[0]]
        assert env.action_space == spaces.Discrete(4)
        image, flat = spaces.Box(0, 255, (3, 5, 5), np.uint8), spaces.Box(0, 1, (75,), np.float32)
        assert env.observation_space == (image if "Image" in env_id else flat)


@pytest.mark.parametrize("env_id", IDS)
def test_check_env(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(env)
        sb3_check_env(env, warn=True)
    # Pictures of 5×5 cells are what the task shows
    assert all("different from the unwrapped" in str(w.message) or "minimal resolution" in str(w.message) for w in caught)


@pytest.mark.parametrize("env_id", FLAT_IDS)
def test_oracle_wins_and_lengths_are_exact(env_id):
    _, steps, length, reward = unpack(env_id)
    env, oracle = make_batched_env(env_id, 50 if steps == 60 else 5, seed=3), Oracle(env_id)
    env.reset()
    for _ in range(2 if steps == 60 else 1):
        _, rewards, dones, infos = play(env, lambda: oracle.act(env), length)
        assert dones[-1].all() and not dones[:-1].any()
        first, last = env.task.phases[0], length - env.task.phases[2]
        assert not rewards[:first].any()
        assert set(np.unique(rewards[first:last])) == {0, 1}
        assert (rewards[last:].sum(axis=0) == reward).all()
        for i, info in enumerate(infos):
            assert info["is_success"] is True
            assert info["TimeLimit.truncated"] is False
            assert info["episode"]["l"] == length
            assert info["episode"]["r"] == rewards[:, i].sum()


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_oracle_in_single_environments(env_id):
    env, oracle = gym.make(env_id), Oracle(env_id)
    for seed in range(3):
        env.reset(seed=seed)
        for step in range(1, unpack(env_id)[2] + 1):
            _, _, terminated, truncated, info = env.step(oracle.act(env))
            assert not truncated and terminated == (step == unpack(env_id)[2])
            assert info == ({"is_success": True} if terminated else {})


# 2,000 episodes: the standard error of a rate of 2% is 0.3%
@pytest.mark.parametrize("env_id, most", [("VisualMatch60-v0", 0.03), ("KeyToDoor60-v0", 0.02)])
def test_random_play(env_id, most):
    n = 2000
    env, generator = make_batched_env(env_id, n, seed=0), np.random.default_rng(0)
    env.reset()
    _, rewards, _, infos = play(env, lambda: generator.integers(4, size=n), unpack(env_id)[2])
    assert 0 < np.mean([info["is_success"] for info in infos]) < most
    first = env.task.phases[0]
    apples = rewards[first : first + 60].sum(axis=0) / 0.6
    assert 8.5 < apples.mean() < 9.5


VARIANTS = [(VisualMatch, (15, 60, 10)), (VisualMatch, (2, 45, 15)), (KeyToDoor, (10, 60, 3)), (KeyToDoor, (15, 45, 25))]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), skill=st.sampled_from([0.0, 0.5, 0.8, 1.0]), action_seed=st.integers(0, 1000))
@pytest.mark.parametrize("task_class, phases", VARIANTS)
def test_same_game_as_the_rules(task_class, phases, seed, skill, action_seed):
    """
    In step with a slow game of characters for two episodes; `skill` is how often the oracle chooses, so that all that can
    happen does.
    """
    env = SingleEnv(task_class(phases=phases, reward=7.0, image=True))
    generator = np.random.default_rng(action_seed)
    for episode_seed in (seed, None):
        observation, _ = env.reset(seed=episode_seed)
        game, done = Game(env.task), False
        eaten, total = 0, 0.0
        while not done:
            assert_same_state(env.task, game)
            np.testing.assert_array_equal(observation, game.picture())
            oracle = generator.random() < skill
            action = ORACLES[task_class.__name__](env.task)[0] if oracle else generator.integers(4)
            observation, reward, done, truncated, info = env.step(action)
            assert (reward, done, truncated) == (*game.step(int(action)), False)
            eaten += reward == 1
            total += reward
        np.testing.assert_array_equal(observation, game.picture())
        assert info["is_success"] == game.won
        assert total == eaten + 7.0 * game.won
        assert env.task.clocks[0] == sum(phases)
        assert game.won or skill < 1.0


def assert_same_state(task: Any, game: Game) -> None:
    assert place(task.positions[0]) == game.player
    assert not SOLID[task.boards[0, task.positions[0]]]
    apples = (task.boards[0] == Cell.APPLE).nonzero()[0]
    assert set(apples) <= set(APPLE_CELLS) and len(apples) <= 10
    assert {place(number) for number in apples} == {where for where, thing in game.objects.items() if thing == "a"}
    assert task.rooms[0] == game.phase
    assert task.success()[0] == game.won
    assert getattr(task, "has_key", [False])[0] == game.has_key


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), rate=st.sampled_from([0.0, 0.01, 0.03]))
@pytest.mark.parametrize("task_class", TASKS.values())
def test_copies_in_different_rooms(task_class, seed, rate):
    """Copies that begin their episodes at different times do not touch each other."""
    n, generator = 6, np.random.default_rng(seed)
    phases = (8, 30, 6)
    together, alone = task_class(n, phases=phases), [task_class(1, phases=phases) for _ in range(n)]
    of_copies, of_singles = ([np.random.default_rng(seed + i) for i in range(n)] for _ in range(2))
    begin = np.ones(n, dtype=bool)
    rooms = set()
    for _ in range(100):
        indices = begin.nonzero()[0]
        if len(indices):
            together.reset(indices, of_copies)
        for i in indices:
            alone[i].reset(np.zeros(1, dtype=np.int64), [of_singles[i]])
        np.testing.assert_array_equal(together.observe(), [task.observe()[0] for task in alone])
        actions = np.where(generator.random(n) < 0.7, ORACLES[task_class.__name__](together), generator.integers(4, size=n))
        results = together.step(actions)
        for i, task in enumerate(alone):
            assert_equal([column[i] for column in results], [column[0] for column in task.step(actions[i : i + 1])])
            assert together.success()[i] == task.success()[0]
        rooms.add(tuple(together.rooms))
        begin = results[1] | (generator.random(n) < rate)
    assert (rate > 0) == any(len(set(row)) > 1 for row in rooms)


@pytest.mark.parametrize("env_id", [*SHORT_IDS, "VisualMatch60Image-v0", "KeyToDoor60MemoryRLImage-v0"])
def test_vector_is_like_single_environments(env_id):
    """Copy i does what a single environment with seed + i does, over several episodes."""
    n, generator = 3, np.random.default_rng(0)
    batched, usual = make_batched_env(env_id, n, seed=5), make_vec_env(env_id, n, seed=5)
    assert batched.observation_space == usual.observation_space and batched.action_space == usual.action_space
    np.testing.assert_array_equal(batched.reset(), usual.reset())
    ended = 0
    for _ in range(3 * unpack(env_id)[2] + 5):
        skilled = generator.random(n) < 0.7
        actions = np.where(skilled, Oracle(env_id).act(batched), generator.integers(4, size=n))
        observations, rewards, dones, infos = batched.step(actions)
        others, other_rewards, other_dones, other_infos = usual.step(actions)
        assert observations.dtype == others.dtype and rewards.dtype == other_rewards.dtype
        assert_equal([observations, rewards, dones], [others, other_rewards, other_dones])
        for i in dones.nonzero()[0]:
            for info in (infos[i], other_infos[i]):
                del info["episode"]["t"]
            assert_equal(infos[i], other_infos[i])
        ended += dones.sum()
    assert ended == 3 * n


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_seeding(env_id):
    env, twin = gym.make(env_id), gym.make(env_id)
    actions = np.random.default_rng(1).integers(4, size=200)
    first = trajectory(env, actions, seed=3)
    assert_equal(first, trajectory(twin, actions, seed=3))
    # Again in the environment that has played already
    assert_equal(first, trajectory(twin, actions, seed=3))
    with pytest.raises(AssertionError):
        assert_equal(first, trajectory(twin, actions, seed=4))


def test_copies_differ():
    for env_id in SHORT_IDS:
        env = make_batched_env(env_id, 8, seed=0)
        env.reset()
        assert len(np.unique(env.task._apples, axis=0)) == 8


def test_colours_of_tiles_are_drawn_once_for_a_seed():
    env = make_batched_env("VisualMatch60-v0", 300, seed=0)
    env.reset()
    orders, colours = env.task.orders.copy(), env.task.colours.copy()
    assert (np.sort(orders) == [0, 1, 2]).all()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 0.001
    env.reset()
    np.testing.assert_array_equal(env.task.orders, orders)
    assert (env.task.colours != colours).any()
    env.seed(1)
    env.reset()
    np.testing.assert_array_equal(env.task.orders[:-1], orders[1:])


def test_draws_are_uniform():
    n = 6000
    match, key = VisualMatch(n), KeyToDoor(n)
    generators = [np.random.default_rng(i) for i in range(n)]
    for task in (match, key):
        task.reset(np.arange(n), generators)
    # Both choices of a task together
    pairs = (match.colours, match._sign_cells, 3 * 8), (key.key_cells, key.positions, 10 * 10)
    for first, second, n_pairs in pairs:
        _, counts = np.unique(np.stack([first, second]), axis=1, return_counts=True)
        assert len(counts) == n_pairs and stats.chisquare(counts).pvalue > 0.001
    _, counts = np.unique(key._apples, return_counts=True)
    assert len(counts) == 22 and abs(counts / n - 10 / 22).max() < 0.03
    assert (np.diff(np.sort(key._apples)) > 0).all()


def test_colours():
    golden = {
        Cell.PLAYER: (228, 148, 109),
        Cell.WALL: (25, 25, 25),
        Cell.FLOOR: (204, 204, 204),
        Cell.KEY: (159, 81, 44),
        Cell.DOOR: (134, 206, 235),
        Cell.APPLE: (140, 178, 0),
        Cell.INDICATOR: (255, 255, 255),
    }
    for cell, colour in golden.items():
        assert tuple(COLOURS[cell]) == colour
    assert (COLOURS[Cell.RED_SIGN : Cell.BLUE_SIGN + 1] == 255 * np.eye(3)).all()


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_flat_is_the_picture(env_id):
    flat, image = gym.make(env_id), gym.make(env_id.replace("-v0", "Image-v0"))
    actions = np.random.default_rng(1).integers(4, size=unpack(env_id)[2] - 1)
    pairs = zip(trajectory(flat, actions, 0)[1:], trajectory(image, actions, 0)[1:], strict=True)
    for (vector, results), (picture, image_results) in pairs:
        np.testing.assert_array_equal(vector, (picture / 255).astype(np.float32).ravel())
        assert results == image_results


def place_player(task: Any, row: int, column: int) -> None:
    task._at[:] = task._offsets + (row + 2) * 15 + column + 2


def test_apple_comes_back_after_20_frames():
    task = VisualMatch(phases=(1, 100, 1), image=True)
    task.reset(np.zeros(1, dtype=int), [np.random.default_rng(0)])
    task.step(np.array([NORTH]))
    assert (task.boards == Cell.APPLE).sum() == 10
    row, column = place(task._apples[0, 0])
    place_player(task, row, column - 1 if column > 1 else column + 1)
    towards, away = (EAST, WEST) if column > 1 else (WEST, EAST)
    apple = list(COLOURS[Cell.APPLE])
    seen = 2, 3 if column > 1 else 1
    assert list(task.observe()[0][:, seen[0], seen[1]]) == apple
    rewards, _, _ = task.step(np.array([towards]))
    assert rewards == [1]
    for _ in range(20):
        task.step(np.array([away]))
        place_player(task, row, column - 1 if column > 1 else column + 1)
        assert list(task.observe()[0][:, seen[0], seen[1]]) == list(COLOURS[Cell.FLOOR])
    task.step(np.array([away]))
    place_player(task, row, column - 1 if column > 1 else column + 1)
    assert list(task.observe()[0][:, seen[0], seen[1]]) == apple
    assert (task.boards == Cell.APPLE).sum() == 10


def test_apple_comes_back_under_the_player():
    task = KeyToDoor(phases=(1, 100, 1))
    task.reset(np.zeros(1, dtype=int), [np.random.default_rng(0)])
    task.step(np.array([NORTH]))
    task.boards[0, task.positions + 15] = Cell.APPLE
    task.boards[0, task.positions + 30] = Cell.WALL
    rewards = [task.step(np.array([SOUTH]))[0][0] for _ in range(50)]
    # Eaten in step 0, back at the end of step 21, eaten in step 22
    assert np.flatnonzero(rewards).tolist() == [0, 22, 44]


def test_colour_is_shown_in_the_first_room_only():
    task = VisualMatch(3, image=True)
    task.reset(np.arange(3), [np.random.default_rng(0) for _ in range(3)])
    # Three copies alike but for the colour
    task.colours[:] = range(3)
    task._enter(np.arange(3), *task._rooms(np.arange(3), last=False))
    generator = np.random.default_rng(1)
    pure = (255 * np.eye(3, dtype=np.uint8))[:, :, None, None]
    for step in range(15 + 60):
        observations = task.observe()
        shown = [(observation == pure[i]).all(axis=0).sum() for i, observation in enumerate(observations)]
        assert shown == ([1, 1, 1] if step < 15 else [0, 0, 0])
        if step >= 15:
            assert (observations == observations[0]).all()
        task.step(np.full(3, generator.integers(4)))
    assert (task.observe() == task.observe()[0]).all()


def test_key_is_shown_in_the_first_room_only():
    task = KeyToDoor(2, image=True)
    task.reset(np.arange(2), [np.random.default_rng(0) for _ in range(2)])
    for step in range(10):
        actions = ORACLES["KeyToDoor"](task)
        # The second copy walks into the southern wall
        actions[1] = SOUTH
        task.step(actions)
        assert step == 9 or (task.observe()[0] != task.observe()[1]).any()
    assert task.has_key.tolist() == [True, False]
    generator = np.random.default_rng(1)
    for _ in range(60):
        observations = task.observe()
        np.testing.assert_array_equal(observations[0], observations[1])
        task.step(np.full(2, generator.integers(4)))
    np.testing.assert_array_equal(task.observe()[0][:, 0, 2], COLOURS[Cell.DOOR])
    np.testing.assert_array_equal(*task.observe())


def begin(task: BatchedTask, seed: int = 0) -> None:
    task.reset(np.arange(task.n_envs), [np.random.default_rng(seed) for _ in range(task.n_envs)])


def step_all(task: BatchedTask, actions: list[int]) -> list[float]:
    return [float(task.step(np.array([action]))[0][0]) for action in actions]


def test_indicator():
    task = KeyToDoor(image=True)
    begin(task)
    row, column = place(task.key_cells[0])
    place_player(task, row + 1, column)

    def white() -> np.ndarray:
        return (task.observe()[0] == 255).all(axis=0)

    assert not white().any()
    assert step_all(task, [NORTH]) == [0]
    expected = np.zeros((5, 5), dtype=bool)
    expected[0 - row + 2, 5 - column + 2] = True
    np.testing.assert_array_equal(white(), expected)
    assert task.has_key[0]
    step_all(task, [SOUTH])
    assert not white().any()
    # There is no second key to be found, and none that lights up again
    step_all(task, [NORTH])
    assert not white().any() and not (task.boards == Cell.KEY).any()


def test_door():
    task = KeyToDoor(phases=(1, 1, 40), reward=5.0, image=True)
    begin(task)
    task.has_key[:] = False
    step_all(task, [SOUTH, SOUTH])
    assert task.rooms == [2]
    assert step_all(task, [NORTH] * 5) == [0] * 5
    assert place(task.positions[0]) == (2, 5) and not task.success()[0]

    begin(task)
    task.has_key[:] = True
    step_all(task, [SOUTH, SOUTH])
    before = task.success()
    assert step_all(task, [NORTH, NORTH]) == [0, 5]
    assert task.success()[0] and not before[0] and place(task.positions[0]) == (1, 5)
    # The door is drawn over the player, stays open, pays once, and leads out to the board's edge
    np.testing.assert_array_equal(task.observe()[0][:, 2, 2], COLOURS[Cell.DOOR])
    assert step_all(task, [NORTH, NORTH, NORTH, SOUTH, SOUTH, NORTH, NORTH]) == [0] * 7
    assert place(task.positions[0]) == (0, 5)
    step_all(task, [WEST] * 9)
    assert place(task.positions[0]) == (0, 0)
    assert not task.step(np.array([SOUTH]))[1][0]


def test_wrong_colour_ends_all_hope():
    task = VisualMatch(3, phases=(1, 1, 40))
    for seed in range(3):
        begin(task, seed)
        np.testing.assert_array_equal(task.orders, task.orders[:1].repeat(3, axis=0))
        task.colours[:] = task.orders[0]
        for _ in range(2):
            task.step(np.zeros(3, dtype=int))
        assert task.rooms.tolist() == [2, 2, 2]
        # To the tile in the middle, and from there along the wall to the other two
        path = [NORTH] * 4 + [WEST] * 3 + [EAST] * 6
        rewards = np.array([task.step(np.full(3, action))[0] for action in path])
        assert rewards.sum(axis=0).tolist() == [0, 10, 0]
        assert rewards[3, 1] == 10
        assert task.success().tolist() == [False, True, False]
        assert not ((task.boards >= Cell.RED_TILE) & (task.boards <= Cell.BLUE_TILE)).any()


def test_no_way_out_of_the_ring():
    env = gym.make("VisualMatch60-v0")
    first, _ = env.reset(seed=0)
    for step in range(14):
        np.testing.assert_array_equal(env.step(step % 4)[0], first)
    assert (env.step(0)[0] != first).any()


@pytest.mark.parametrize("env_id", SHORT_IDS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_of_environments_go_on_alike(env_id, clone):
    generator = np.random.default_rng(0)
    for env in (gym.make(env_id), make_batched_env(env_id, 2, seed=0)):
        batched = isinstance(env, BatchedVecEnv)
        shape = (2,) if batched else ()
        if batched:
            env.reset()
        else:
            env.reset(seed=0)
        for _ in range(30):
            env.step(generator.integers(4, size=shape))
        twin = clone(env)
        # Over the end of the episode: the order of the colours stays, and the generators go on
        for _ in range(unpack(env_id)[2] + 30):
            action = generator.integers(4, size=shape)
            results = env.step(action)
            assert_equal(results[:3], twin.step(action)[:3])
            if not batched and results[2]:
                assert_equal(env.reset(), twin.reset())
        if batched:
            np.testing.assert_array_equal(getattr(env.task, "orders", 0), getattr(twin.task, "orders", 0))


def test_spec_makes_the_same_environment():
    env = gym.make("KeyToDoor250MemoryRLImage-v0")
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.unwrapped.task.phases == (15, 250, 10)
    assert again.observation_space == env.observation_space


@pytest.mark.parametrize("action", [4, -1, 0.5, np.nan, np.array([0]), np.array([1, 2]), "north"])
def test_wrong_actions(action):
    env = gym.make("KeyToDoor60-v0")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions"):
        env.step(action)
    vector = make_batched_env("KeyToDoor60-v0", 2)
    vector.reset()
    with pytest.raises(ValueError, match="actions"):
        vector.step([action, action] if np.ndim(action) == 0 else action[:1])


def test_step_without_an_episode():
    env = gym.make("KeyToDoor60-v0")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    for _ in range(73):
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"n_envs": 0}, "n_envs"),
        ({"n_envs": 1.5}, "n_envs"),
        ({"phases": (15, 60)}, "phases"),
        ({"phases": (15, 0, 10)}, "phases"),
        ({"phases": (15, 60.0, 10)}, "phases"),
        ({"phases": (15, 60, True)}, "phases"),
        ({"reward": 0}, "reward"),
        ({"reward": float("nan")}, "reward"),
        ({"reward": float("inf")}, "reward"),
    ],
)
@pytest.mark.parametrize("task_class", TASKS.values())
def test_wrong_arguments(task_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        task_class(**kwargs)


def test_wrong_ids_and_render_modes():
    with pytest.raises(ValueError, match="VisualMatch60-v0"):
        make_batched_env("VisualMatch61-v0", 2)
    with pytest.raises(ValueError, match="n_envs"):
        make_batched_env("VisualMatch60-v0", 0)
    with pytest.raises(ValueError, match="render_mode"):
        gym.make("VisualMatch60-v0").unwrapped.__class__(VisualMatch(), "human")


def colour_at(picture: np.ndarray, row: float, column: float) -> tuple[int, ...]:
    """:return: what is drawn in the middle of a cell of the board; row -3 is the strip above it"""
    return tuple(picture[int((row + 3.5) * 24), int((column + 2.5) * 24)].tolist())


@pytest.mark.parametrize("env_id", SHORT_IDS)
def test_render(env_id):
    env, oracle = make_batched_env(env_id, 2, seed=0), Oracle(env_id)
    env.reset()
    for step in range(unpack(env_id)[2] - 1):
        env.step(oracle.act(env))
        # All of the first and last room, some of the long one between
        if 15 < step < 65 and step % 5:
            continue
        task, pictures = env.task, env.get_images()
        for i, picture in enumerate(pictures):
            assert picture.shape == (288, 360, 3) and picture.dtype == np.uint8
            position = place(task.positions[i])
            behind_door = task.boards[i, task.positions[i]] == Cell.OPEN_DOOR
            assert colour_at(picture, *position) == tuple(COLOURS[Cell.DOOR if behind_door else Cell.PLAYER])
            for number in (task.boards[i] == Cell.APPLE).nonzero()[0]:
                row, column = place(number)
                shown = np.array(colour_at(picture, row, column))
                near = abs(row - position[0]) <= 2 and abs(column - position[1]) <= 2
                if (row, column) != position:
                    np.testing.assert_array_equal(shown, COLOURS[Cell.APPLE] if near else COLOURS[Cell.APPLE] // 3 * 2)
            cue = colour_at(picture, -3, -2)
            if isinstance(task, VisualMatch):
                assert cue == tuple(255 * np.eye(3, dtype=int)[task.colours[i]])
            else:
                assert (cue != (40, 40, 40)) == (task.has_key[i] or task.success()[i])
    single = gym.make(env_id, render_mode="rgb_array")
    single.reset(seed=0)
    for action in oracle.act(single), 1, 2:
        single.step(action)
    assert single.render().shape == (288, 360, 3)
    assert gym.make(env_id).render() is None


def test_learning_runs():
    SHMPPO("MlpSHMPolicy", make_batched_env("VisualMatch60-v0", 4, seed=0), n_steps=32, batch_size=128, n_epochs=1).learn(128)
    env = make_vec_env("KeyToDoor60Image-v0", 2, seed=0)
    PPO("MlpPolicy", env, n_steps=80, batch_size=160, n_epochs=1, device="cpu").learn(160)


@pytest.mark.parametrize(
    "task", ["os:getcwd", "sb3_shm.envs.single:make_single", "sb3_shm.envs.single:SingleEnv", 3, "sb3_shm.sharing.hub:main"]
)
def test_a_task_from_a_file_imports_and_calls_nothing_else(task):
    """Arguments of an environment may come with a stranger's model."""
    with pytest.raises(ValueError, match="is no task of sb3_shm"):
        gym.make("WindTrain50-v0", task=task)
