import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_shm.envs import ENV_IDS, register_envs
from sb3_shm.envs.popgym.single import LEVELS, POPGYM_NAMES, TASKS, FlatPOPGym, flat_box, make_flattener, make_popgym

popgym_envs = pytest.importorskip("popgym.envs")
from popgym.wrappers import Antialias, PreviousAction  # noqa: E402

POPGYM_IDS = [f"{name}{suffix}-v0" for name in POPGYM_NAMES for suffix in ("", "PrevAction")]
IDS = [*POPGYM_IDS, "CartPoleNoVel-v0", "PendulumNoVel-v0"]
DRAWN_TASKS = ("CartPole", "Pendulum")


def play(env: gym.Env, choose: Callable[[Any], Any], seed: int | None = None) -> tuple[float, int, bool, bool]:
    """Play one episode: its return, its length, and how it ended."""
    observation, _ = env.reset(seed=seed)
    total, steps = 0.0, 0
    while True:
        observation, reward, terminated, truncated, _ = env.step(choose(observation))
        total += float(reward)
        steps += 1
        if terminated or truncated:
            return total, steps, terminated, truncated


def trajectory(env: gym.Env, seed: int, n_steps: int = 80) -> list[tuple[Any, ...]]:
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False)]
    for _ in range(n_steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        steps.append((observation, reward, terminated, truncated))
        if terminated or truncated:
            steps.append((env.reset()[0], 0.0, False, False))
    return steps


def test_ids_are_those_of_popgym():
    ours = {f"popgym-{name}-v0".lower() for name in POPGYM_NAMES}
    # The Labyrinth tasks are only there if mazelib is installed
    theirs = {info["id"].lower() for info in popgym_envs.ALL.values() if "Labyrinth" not in info["id"]}
    assert ours == theirs
    assert len(TASKS) * len(LEVELS) == len(POPGYM_NAMES) == 42
    assert set(POPGYM_IDS) <= set(ENV_IDS)


def test_registration_keeps_what_is_there(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
    someone_elses = gym.envs.registration.EnvSpec(id="AutoencodeEasy-v0", entry_point="elsewhere:Env")
    monkeypatch.setitem(gym.registry, "AutoencodeEasy-v0", someone_elses)
    register_envs()
    assert gym.spec("AutoencodeEasy-v0") is someone_elses


def test_only_our_ids_are_registered():
    """None of our ids is one of Gymnasium's or popgym's own."""
    code = """
import gymnasium as gym, popgym.envs
before = set(gym.registry)
import sb3_shm.envs
from sb3_shm.envs import ENV_IDS
assert not before & set(ENV_IDS), before & set(ENV_IDS)
assert set(gym.registry) - before == set(ENV_IDS)
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning:gymnasium", "-c", code], check=True)


def test_popgym_is_imported_late():
    code = """
import sys, sb3_shm.envs, gymnasium as gym
assert "popgym" not in sys.modules
gym.make("CartPoleNoVel-v0")
assert "popgym" not in sys.modules
gym.make("AutoencodeEasy-v0")
assert "popgym" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_popgym(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-shm\[popgym\]"'):
        gym.make("AutoencodeEasy-v0")


def test_unknown_task():
    with pytest.raises(ValueError, match="Autoencode"):
        make_popgym("Autoencode")


@pytest.mark.parametrize("env_id", IDS)
def test_check_env(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # POPGym's wrappers must stay on: they are what is tested
        gymnasium_check_env(gym.make(env_id), skip_render_check=True)
    assert all("different from the unwrapped" in str(w.message) or "Box" in str(w.message) for w in caught)

    env = gym.make(env_id)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(env, warn=True, skip_render_check=True)
    # The torque of the Pendulum is left as released
    assert all("Box action space" in str(w.message) for w in caught)

    assert isinstance(env.observation_space, spaces.Box)
    assert env.observation_space.dtype == np.float32
    assert len(env.observation_space.shape) == 1
    assert isinstance(env.action_space, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box))


@pytest.mark.parametrize("env_id", IDS)
def test_seeding(env_id):
    env, twin = gym.make(env_id), gym.make(env_id)
    first, again, other = trajectory(env, seed=3), trajectory(twin, seed=3), trajectory(twin, seed=4)
    for step, twin_step in zip(first, again, strict=True):
        np.testing.assert_array_equal(step[0], twin_step[0])
        assert step[1:] == twin_step[1:]
        assert step[0] in env.observation_space
    different = len(first) != len(other) or any(
        (a[0] != b[0]).any() or a[1] != b[1] for a, b in zip(first, other, strict=True)
    )
    assert different


@pytest.mark.parametrize("name", POPGYM_NAMES)
@pytest.mark.parametrize("previous_action", [False, True])
def test_same_task_as_popgym(name, previous_action):
    """In step with POPGym's own environment: the same rewards and ends, and Gymnasium's flatten() of the same observations."""
    reference = getattr(popgym_envs, name)()
    if previous_action:
        reference = Antialias(PreviousAction(reference))
    env = gym.make(f"{name}{'PrevAction' if previous_action else ''}-v0")
    assert env.spec.max_episode_steps is None
    ours, theirs = trajectory(env, seed=5, n_steps=250), trajectory(reference, seed=5, n_steps=250)
    for (observation, *rest), (raw, *reference_rest) in zip(ours, theirs, strict=True):
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation, flatten(reference.observation_space, raw))
        assert rest == reference_rest
    space = spaces.flatten_space(reference.observation_space)
    np.testing.assert_array_equal(env.observation_space.low, space.low.astype(np.float32))
    np.testing.assert_array_equal(env.observation_space.high, space.high.astype(np.float32))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 3, 4]),
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiBinary(4),
        spaces.Box(-1.0, 1.0, (2, 3), dtype=np.float64),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4, start=3))),
        spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([2, 3], start=[5, 0]), spaces.Box(-2.0, 2.0, (2, 2)))),
        spaces.Tuple((spaces.Discrete(3), spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2))))),
        spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([[2, 3], [4, 5]]))),
        spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(0.0, 1.0, (2,))}),
    ],
    ids=str,
)
def test_flattener(space):
    space.seed(0)
    flattener = pickle.loads(pickle.dumps(make_flattener(space)))
    previous = None
    for _ in range(20):
        sample = space.sample()
        flat = flattener(sample)
        assert flat.dtype == np.float32
        assert flat.shape == (flatdim(space),)
        np.testing.assert_array_equal(flat, np.asarray(flatten(space, sample), dtype=np.float32))
        assert flat in flat_box(space)
        # A user may keep an observation: it must not be written over
        assert previous is None or not np.shares_memory(flat, previous)
        previous = flat


def test_previous_action_layout():
    env = gym.make("BattleshipEasyPrevAction-v0")
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(np.flatnonzero(first), [0, 2, 10, 19])  # no hit, action (0, 0), first step
    second = env.step(np.array([3, 7]))[0]
    np.testing.assert_array_equal(np.flatnonzero(second)[1:], [2 + 3, 10 + 7, 18])


def test_infos_are_kept():
    """popgym's CountRecall returns the array it goes on counting in."""
    env = gym.make("CountRecallEasy-v0")
    _, info = env.reset(seed=0)
    kept = info["counts"].copy()
    later = env.step(0)[4]
    np.testing.assert_array_equal(info["counts"], kept)
    assert later["counts"].sum() == kept.sum() + 1


RANDOM_RETURNS = {
    # Mean return of a random policy x 100 and the length of an episode, for Easy, Medium and Hard
    "Autoencode": ((-50, -50, -50), (103, 207, 311)),
    "RepeatPrevious": ((-51, -51, -50), (51, 103, 155)),
    "Battleship": ((-44, -43, -41), (64, 100, 144)),
    "Concentration": ((-19, -18, -83), (104, 208, 104)),
}


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("task", RANDOM_RETURNS)
def test_random_policy(task, level):
    env = gym.make(f"{task}{LEVELS[level]}-v0")
    env.action_space.seed(0)
    n_episodes = 300 if level == 0 else 120
    episodes = [play(env, lambda _: env.action_space.sample(), seed=i) for i in range(n_episodes)]
    returns, lengths, terminated, truncated = (np.array(column) for column in zip(*episodes, strict=True))

    expected, length = (column[level] for column in RANDOM_RETURNS[task])
    standard_error = returns.std() / np.sqrt(n_episodes)
    # The table is rounded to 0.01, and sampled itself
    assert abs(returns.mean() - expected / 100) < 4 * standard_error + 0.01
    if task == "Battleship":
        # Ends early only when the last ship is sunk
        assert lengths.max() == length
        assert terminated[lengths < length].all()
        assert truncated[lengths == length].all()
    else:
        assert (lengths == length).all()
        assert truncated.all() if task == "Concentration" else (terminated.all() and not truncated.any())


@pytest.mark.parametrize("level, k", [("Easy", 4), ("Medium", 32), ("Hard", 64)])
def test_repeat_previous_oracle(level, k):
    """Remembering the card of k-1 observations before the latest one earns 1."""
    env = gym.make(f"RepeatPrevious{level}-v0")
    for seed in range(5):
        seen: list[int] = []

        def choose(observation: Any, seen: list[int] = seen) -> int:
            seen.append(int(observation.argmax()))
            return seen[-k] if len(seen) >= k else 0

        assert play(env, choose, seed)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("level", LEVELS)
def test_autoencode_oracle(level):
    """Naming the watched cards from the last to the first earns 1. The mode turns to 0 (play) with the last card."""
    env = gym.make(f"Autoencode{level}-v0")
    for seed in range(5):
        cards: list[int] = []

        playing = False

        def choose(observation: Any, cards: list[int] = cards) -> int:
            nonlocal playing
            if not playing:
                cards.append(int(observation[2:].argmax()))
                playing = bool(observation[0])
            return cards.pop() if playing else 0

        assert play(env, choose, seed)[0] == pytest.approx(1.0)
        assert not cards


# popgym draws its boards with np.chararray
@pytest.mark.filterwarnings("ignore:`np.chararray` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", POPGYM_NAMES)
def test_text_rendering(name, capsys):
    if any(task in name for task in DRAWN_TASKS):
        with pytest.raises(ValueError, match="rgb_array"):
            make_popgym(name, render_mode="ansi")
        assert make_popgym(name, render_mode="rgb_array").metadata["render_fps"] >= 30
        return
    env = gym.make(f"{name}-v0", render_mode="ansi")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    text = env.render()
    assert isinstance(text, str)
    assert text.strip()
    assert not capsys.readouterr().out
    env = gym.make(f"{name}-v0", render_mode="human")
    env.reset(seed=0)
    assert env.render() is None
    assert capsys.readouterr().out.strip()
    assert gym.make(f"{name}-v0").render() is None
    # What Stable-Baselines3 passes with every id
    assert gym.make(f"{name}-v0", render_mode="rgb_array").render_mode is None


@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v0", "PendulumNoVel-v0"])
def test_no_velocity(env_id):
    full_id, kept, limit = {
        "CartPoleNoVel-v0": ("CartPole-v1", [0, 2], 500),
        "PendulumNoVel-v0": ("Pendulum-v1", [0, 1], 200),
    }[env_id]
    env, full = gym.make(env_id), gym.make(full_id)
    assert env.spec.max_episode_steps == full.spec.max_episode_steps == limit
    assert env.observation_space.shape == (2,)
    np.testing.assert_array_equal(env.observation_space.high, full.observation_space.high[kept])
    for ours, theirs in zip(trajectory(env, 1, 300), trajectory(full, 1, 300), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0][kept])
        assert ours[1:] == theirs[1:]


def test_spec_and_env_can_be_copied():
    """A spec makes the same environment again, wrappers of POPGym included."""
    for env_id in ("AutoencodeEasyPrevAction-v0", "BattleshipHard-v0", "PendulumNoVel-v0"):
        env = gym.make(env_id)
        for copy in (gym.make(pickle.loads(pickle.dumps(env.spec))), pickle.loads(pickle.dumps(env))):
            assert copy.observation_space == env.observation_space
            assert copy.action_space == env.action_space
            assert str(copy) == str(env)


def test_subprocesses():
    """A worker process starts with an empty registry: a spec brings its entry point along, and "module:id" its import."""
    env_fns = [gym.spec("AutoencodeEasyPrevAction-v0").make, lambda: gym.make("sb3_shm:AutoencodeEasyPrevAction-v0")]
    env = SubprocVecEnv(env_fns, start_method="spawn")
    env.seed(0)
    assert env.reset().shape == (2, 12)
    env.close()


@pytest.mark.parametrize("env_id", ["AutoencodeEasy-v0", "BattleshipEasyPrevAction-v0", "PositionOnlyPendulumEasy-v0"])
def test_ppo_accepts(env_id):
    """One id for each kind of action, through Stable-Baselines3's vectorised environments."""
    env = make_vec_env(env_id, n_envs=2, seed=0)
    assert isinstance(env.envs[0].env, FlatPOPGym)
    PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(64)
    PPO("MlpPolicy", env_id, device="cpu")
