"""Batched POPGym, CartPole and Pendulum: in step with the single environments, which are POPGym's and Gymnasium's own."""

import copy
import itertools
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.novel import CLASSIC_TASKS
from sb3_shm.envs.oracles import ORACLES
from sb3_shm.envs.popgym import POPGYM_TASKS
from sb3_shm.envs.popgym.batched import RepeatPrevious
from sb3_shm.envs.popgym.boards import Battleship, Concentration
from sb3_shm.envs.single import make_single

# Longest episodes; those of Battleship may be shorter
LENGTHS = {
    "BattleshipEasy": 64,
    "BattleshipMedium": 100,
    "BattleshipHard": 144,
    "AutoencodeEasy": 103,
    "AutoencodeMedium": 207,
    "AutoencodeHard": 311,
    "RepeatPreviousEasy": 51,
    "RepeatPreviousMedium": 103,
    "RepeatPreviousHard": 155,
    "RepeatFirstEasy": 51,
    "RepeatFirstMedium": 415,
    "RepeatFirstHard": 831,
    "ConcentrationEasy": 104,
    "ConcentrationMedium": 208,
    "ConcentrationHard": 104,
}


pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes.*:UserWarning")

EASY_AND_HARD = [env_id for env_id in (*POPGYM_TASKS, *CLASSIC_TASKS) if "Medium" not in env_id]


def random_actions(space: gym.Space, n_envs: int, n_steps: int, seed: int = 0) -> np.ndarray:
    """:return: (n_steps, n_envs, ...)"""
    generator = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Box):
        return generator.uniform(space.low, space.high, (n_steps, n_envs, *space.shape)).astype(space.dtype)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return generator.integers(space.nvec, size=(n_steps, n_envs, len(space.nvec)))
    return generator.integers(space.n, size=(n_steps, n_envs))


def assert_in_step(
    env_id: str, n_steps: int, choose: Callable[[BatchedVecEnv], np.ndarray] | None = None, tolerance: float = 0
) -> int:
    """Step the batched and the usual vector environment of three copies together; return how many episodes ended."""
    usual, batched = make_vec_env(env_id, 3, seed=7), make_batched_env(env_id, 3, seed=7)
    assert batched.observation_space == usual.observation_space
    assert batched.action_space == usual.action_space
    np.testing.assert_array_equal(batched.reset(), usual.reset())
    n_ended = 0
    for random in random_actions(batched.action_space, 3, n_steps):
        actions = random if choose is None else choose(batched)
        observations, rewards, dones, infos = batched.step(actions)
        usual_observations, usual_rewards, usual_dones, usual_infos = usual.step(actions)
        np.testing.assert_array_equal(dones, usual_dones)
        assert observations.dtype == rewards.dtype == np.float32
        np.testing.assert_allclose(observations, usual_observations, rtol=0, atol=tolerance)
        np.testing.assert_allclose(rewards, usual_rewards, rtol=0, atol=tolerance)
        for i in dones.nonzero()[0]:
            info, usual_info = infos[i], usual_infos[i]
            np.testing.assert_allclose(
                info["terminal_observation"], usual_info["terminal_observation"], rtol=0, atol=tolerance
            )
            assert info["TimeLimit.truncated"] == usual_info["TimeLimit.truncated"]
            assert info["episode"]["l"] == usual_info["episode"]["l"]
            # Returns are sums of rewards that were rounded to float32, or were not
            assert info["episode"]["r"] == pytest.approx(usual_info["episode"]["r"], abs=3e-6, rel=1e-6)
            assert "is_success" not in info
            n_ended += 1
    return n_ended


@pytest.mark.parametrize("env_id", POPGYM_TASKS)
def test_in_step_with_popgym(env_id):
    """Observations, rewards, ends and infos equal POPGym's, over at least two episodes in each copy without a new seed."""
    pytest.importorskip("popgym")
    name = env_id.removesuffix("-v0").removesuffix("PrevAction")
    assert assert_in_step(env_id, 2 * LENGTHS[name] + 20) >= 6


@pytest.mark.parametrize("env_id", [env_id for env_id in POPGYM_TASKS if "Prev" not in env_id and "First" not in env_id])
def test_in_step_with_popgym_to_a_good_end(env_id):
    """Where random actions hardly get: all ships sunk, all pairs found."""
    pytest.importorskip("popgym")
    task = BATCHED_TASKS[env_id][0].split(":")[1]
    noise = np.random.default_rng(0)

    def choose(env: BatchedVecEnv) -> np.ndarray:
        good, bad = ORACLES[task](env.task), random_actions(env.action_space, 3, 1, seed=int(noise.integers(1000)))[0]
        lucky = noise.random(3) < 0.9
        return np.where(lucky.reshape(-1, *[1] * (good.ndim - 1)), good, bad)

    assert assert_in_step(env_id, LENGTHS[env_id.removesuffix("-v0")] + 20, choose) >= 3


@pytest.mark.parametrize("env_id", CLASSIC_TASKS)
@pytest.mark.parametrize("player", ["random", "oracle"])
def test_in_step_with_gymnasium(env_id, player):
    """Time limits too: the oracle holds the pole for 500 steps."""
    task = BATCHED_TASKS[env_id][0].split(":")[1]
    choose = None if player == "random" else lambda env: ORACLES[task](env.task).astype(env.action_space.dtype)
    n_ended = assert_in_step(env_id, 520, choose, tolerance=1e-6)
    assert n_ended >= (30 if (env_id, player) == ("CartPoleNoVel-v0", "random") else 3)


def play(env: BatchedVecEnv, choose: Callable[[np.ndarray], Any], n_episodes: int) -> np.ndarray:
    """:return: returns of the first ``n_episodes`` episodes"""
    observations, returns = env.reset(), []
    while len(returns) < n_episodes:
        observations, _, dones, infos = env.step(choose(observations))
        returns += [infos[i]["episode"]["r"] for i in dones.nonzero()[0]]
    return np.array(returns[:n_episodes])


@pytest.mark.parametrize("env_id", [env_id for env_id in POPGYM_TASKS if "PrevAction" not in env_id])
def test_oracle(env_id):
    """Whoever knows the cards and the ships gets 1."""
    env = make_batched_env(env_id, 4, seed=0)
    oracle = ORACLES[BATCHED_TASKS[env_id][0].split(":")[1]]
    np.testing.assert_allclose(play(env, lambda _: oracle(env.task), 8), 1.0, atol=2e-6)


def test_classic_oracles():
    env = make_batched_env("CartPoleNoVel-v0", 16, seed=0)
    assert (play(env, lambda _: ORACLES["CartPoleNoVel"](env.task), 16) == 500).all()
    env = make_batched_env("PendulumNoVel-v0", 16, seed=0)
    assert play(env, lambda _: ORACLES["PendulumNoVel"](env.task), 16).mean() > -250
    assert play(env, lambda _: np.zeros((16, 1)), 16).mean() < -1000


@pytest.mark.parametrize("name", ["Autoencode", "RepeatPrevious", "RepeatFirst"])
def test_memory_is_needed(name):
    """Whoever names what is on show does no better than a guess; whoever remembers the observations gets 1."""
    env = make_batched_env(f"{name}Easy-v0", 64, seed=0)
    memoryless = play(env, lambda observations: observations[:, -4:].argmax(axis=1), 256)
    assert memoryless.mean() == pytest.approx(-0.5, abs=0.05)
    with_memory = play(env, PerfectMemory(name, env), 64)
    np.testing.assert_allclose(with_memory, 1.0, atol=2e-6)


class PerfectMemory:
    """Keeps all observations and nothing else. All copies' episodes have one length."""

    def __init__(self, name: str, env: BatchedVecEnv) -> None:
        self.name, self.length = name, LENGTHS[f"{name}Easy"]
        self.seen: list[np.ndarray] = []

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        if len(self.seen) == self.length:
            self.seen = []
        self.seen.append(observations[:, -4:].argmax(axis=1))
        t = len(self.seen) - 1
        if self.name == "RepeatFirst":
            return self.seen[0]
        if self.name == "RepeatPrevious":
            return self.seen[max(t - 3, 0)]
        return self.seen[102 - t] if observations[0, 0] else self.seen[0]


def test_concentration_with_perfect_memory():
    """
    From observations and own actions alone: turn up unknown cards, and their equals once they are known. One memory of each
    copy; ranks, where pairs are rare.
    """
    env = make_batched_env("ConcentrationHardPrevAction-v0", 16, seed=0)
    observations, returns, n = env.reset(), [], 52
    known = np.full((16, n), -1)
    while len(returns) < 16:
        shown = observations[:, : 14 * n].reshape(16, n, 14).argmax(axis=2)
        known = np.where(shown < 13, shown, known)
        actions = np.zeros(16, dtype=np.int64)
        for i in range(16):
            second = env.task.first[i] >= 0
            latest = observations[i, 14 * n : -2].argmax()
            down = ~env.task.face_up[i]
            if second:
                partners = (known[i] == known[i, latest]) & down & (np.arange(n) != latest)
            else:
                ranks, counts = np.unique(known[i][down & (known[i] >= 0)], return_counts=True)
                partners = np.isin(known[i], ranks[counts > 1]) & down
            actions[i] = (partners if partners.any() else down & (known[i] < 0)).argmax()
        observations, _, dones, infos = env.step(actions)
        known[dones] = -1
        returns += [infos[i]["episode"]["r"] for i in dones.nonzero()[0]]
    random = play(env, lambda _: random_actions(env.action_space, 16, 1, seed=len(returns))[0], 64)
    # Every turn of two unknown cards costs 2/104, every pair brings 2/52
    assert np.mean(returns) > 0.5
    assert random.mean() < -0.7


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["RepeatPrevious", "RepeatFirst", "Autoencode"]), st.integers(1, 3))
def test_decks_are_whole(seed, name, n_decks):
    module, class_name = BATCHED_TASKS[f"{name}Easy-v0"][0].split(":")
    task = getattr(sys.modules[module], class_name)(n_envs=2, n_decks=n_decks)
    task.reset(np.arange(2), [np.random.default_rng(seed), np.random.default_rng(seed + 1)])
    for i in range(2):
        np.testing.assert_array_equal(np.bincount(task.suits[i]), [13 * n_decks] * 4)
    assert (task.suits[0] != task.suits[1]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 12))
def test_ships(seed, board_size):
    """Four straight ships that do not overlap; whoever shoots everywhere hits 12 times and gets 0."""
    task = Battleship(n_envs=3, board_size=board_size)
    task.reset(np.arange(3), [np.random.default_rng(seed + i) for i in range(3)])
    assert (task.board.sum(axis=1) == 12).all()
    # Each ship cell has a neighbour that is one
    board = np.pad(task.board.reshape(3, board_size, board_size), ((0, 0), (1, 1), (1, 1)))
    near = board[:, 2:, 1:-1] | board[:, :-2, 1:-1] | board[:, 1:-1, 2:] | board[:, 1:-1, :-2]
    assert near[board[:, 1:-1, 1:-1]].all()
    total, running = np.zeros(3), np.ones(3, dtype=bool)
    for row, column in itertools.product(range(board_size), repeat=2):
        rewards, terminated, truncated = task.step(np.tile([row, column], (3, 1)))
        total += running * rewards
        running &= ~(terminated | truncated)
    assert not running.any()
    # The last ship may be sunk before the last cell
    assert (total >= -1e-5).all()
    assert (total < 1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["colour", "rank"]))
def test_table_of_concentration(seed, match):
    """Each card has one kind or is face down; pairs stay; at most two others are on show; what is on show is true."""
    task = Concentration(n_envs=2, match=match)
    generator = np.random.default_rng(seed)
    task.reset(np.arange(2), [np.random.default_rng(seed), np.random.default_rng(seed + 1)])
    down = task.n_kinds
    for _ in range(104):
        before = task.face_up.copy()
        task.step(generator.integers(task.n_cards, size=2))
        table = task.observe().reshape(2, task.n_cards, down + 1)
        np.testing.assert_array_equal(table.sum(axis=2), 1)
        shown = table.argmax(axis=2)
        assert (task.face_up | ~before).all()
        assert (task.face_up.sum(axis=1) % 2 == 0).all()
        assert (shown[task.face_up] < down).all()
        assert (((shown < down) & ~task.face_up).sum(axis=1) <= 2).all()
        np.testing.assert_array_equal(shown[shown < down], task.kinds[shown < down])


@pytest.mark.parametrize("env_id", EASY_AND_HARD)
def test_copies_and_pictures(env_id):
    """Same seed, same episode; copies differ; a copy of the environment goes on as the original does."""
    env, twin = make_batched_env(env_id, 3, seed=5), make_batched_env(env_id, 3, seed=5)
    first = env.reset()
    np.testing.assert_array_equal(first, twin.reset())
    start, *rest = random_actions(env.action_space, 3, 40, seed=1)
    # One action for all copies, so that only their own draws tell them apart
    history = [env.step(np.repeat(action[:1], 3, axis=0))[0] for action in [start, *rest]]
    assert any((step[0] != step[1]).any() for step in [first, *history])
    for kept in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        original = copy.deepcopy(env)
        for action in rest:
            for ours, theirs in zip(original.step(action)[:3], kept.step(action)[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    pictures = env.get_images()
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 3


@pytest.mark.parametrize("env_id", EASY_AND_HARD)
def test_one_copy_is_an_environment(env_id):
    """Without popgym, too, and with pictures."""
    path, kwargs = BATCHED_TASKS[env_id]
    env = make_single(path, render_mode="rgb_array", **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(env)
    messages = [str(w.message) for w in caught]
    # Not made by gym.make; the bounds of the Pendulum's torque are Gymnasium's
    assert not [text for text in messages if "spec" not in text and "symmetric and normalized" not in text]


def test_observations_are_not_written_over():
    for env_id in ("ConcentrationEasy-v0", "ConcentrationEasyPrevAction-v0", "RepeatPreviousEasy-v0", "CartPoleNoVel-v0"):
        env = make_batched_env(env_id, 2, seed=0)
        first = env.reset()
        kept = first.copy()
        for action in random_actions(env.action_space, 2, 5):
            env.step(action)
        np.testing.assert_array_equal(first, kept)


def test_popgym_is_not_imported():
    code = """
import sys, numpy as np
sys.modules["popgym"] = None
from sb3_shm.envs import make_batched_env
env = make_batched_env("ConcentrationEasy-v0", 2, seed=0)
env.reset()
env.step(np.array([0, 1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("env_id", ["BattleshipHard-v0", "ConcentrationEasy-v0", "RepeatPreviousEasyPrevAction-v0"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64])
def test_small_and_unsigned_actions(env_id, dtype):
    env, twin = make_batched_env(env_id, 8, seed=0), make_batched_env(env_id, 8, seed=0)
    env.reset()
    twin.reset()
    for actions in random_actions(env.action_space, 8, 60):
        for ours, theirs in zip(env.step(actions.astype(dtype))[:3], twin.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_batched_env("RepeatPreviousEasy", 2), "RepeatPreviousEasy-v0"),
        (lambda: make_batched_env("CountRecallEasy-v0", 2), "There is no batched version of 'CountRecallEasy-v0'"),
        (lambda: make_batched_env("RepeatPreviousEasy-v0", 0), "n_envs must be a whole number, 1 or more, got 0"),
        (lambda: make_batched_env("BattleshipEasy-v0", 2.0), "n_envs"),
        (lambda: RepeatPrevious(k=0), "k must be a whole number, from 1 to 51"),
        (lambda: RepeatPrevious(k=52), "k must be a whole number, from 1 to 51"),
        (lambda: RepeatPrevious(k=2.5), "k must be a whole number"),
        (lambda: RepeatPrevious(n_decks=0), "n_decks must be a whole number, 1 or more, got 0"),
        (lambda: Concentration(n_decks=-1), "n_decks must be a whole number, 1 or more, got -1"),
        (lambda: Battleship(board_size=4), "board_size must be a whole number, 5 or more"),
        (lambda: Battleship(board_size=8.5), "board_size must be a whole number"),
        (lambda: Concentration(match="suit"), "match must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_are_refused():
    env = make_batched_env("CartPoleNoVel-v0", 2)
    env.set_options({"low": 0.01})
    with pytest.raises(ValueError, match=r"no options, make_vec_env makes single ones; got \{'low': 0\.01\}"):
        env.reset()
    env.reset()  # they were for that one alone


@pytest.mark.parametrize(
    "env_id, actions",
    [
        ("RepeatPreviousEasy-v0", [0, 4]),
        ("RepeatPreviousEasy-v0", [-1, 0]),
        ("RepeatPreviousEasy-v0", [0.0, 1.0]),
        ("RepeatPreviousEasy-v0", [0]),
        ("BattleshipEasy-v0", [[0, 8], [0, 0]]),
        ("ConcentrationEasy-v0", [52, 0]),
        ("PendulumNoVel-v0", [[np.nan], [0.0]]),
        ("PendulumNoVel-v0", [[2.1], [0.0]]),
        ("CartPoleNoVel-v0", [2, 0]),
    ],
)
def test_bad_actions(env_id, actions):
    env = make_batched_env(env_id, 2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.reset()
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))
