"""
Environment steps per second: one environment, Stable-Baselines3's DummyVecEnv, and the batched version, on random actions.

    python benchmarks/environments.py                        # one id of each task, 256 copies
    python benchmarks/environments.py --all
    python benchmarks/environments.py RepeatPreviousEasy-v0 ConcentrationHard-v0 --n-envs 64

Resets count. Each figure is the best of several repetitions of some tenths of a second; actions are drawn beforehand. What a
repetition does not reach (the end of a very long episode) is not in its figure.
"""

import argparse
import itertools
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm.envs import BATCHED_TASKS, make_batched_env

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ids", nargs="*", metavar="id", help="one id of each task by default")
parser.add_argument("--all", action="store_true", help="every id that has a batched version")
parser.add_argument("--n-envs", type=int, default=256)
parser.add_argument("--seconds", type=float, default=0.3, help="of each repetition")
parser.add_argument("--repetitions", type=int, default=3)
args = parser.parse_args()
unknown = [env_id for env_id in args.ids if env_id not in BATCHED_TASKS]
if unknown:
    parser.error(f"there is no batched version of {', '.join(unknown)}")

# Stable-Baselines3 asks POPGym's environments for pictures they cannot draw
warnings.filterwarnings("ignore", message=".*render_modes.*")


def draw_actions(space: gym.Space[Any], shape: tuple[int, ...]) -> Any:
    generator = np.random.default_rng(0)
    if isinstance(space, gym.spaces.Box):
        return generator.uniform(space.low, space.high, (*shape, *space.shape)).astype(space.dtype)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return generator.integers(space.nvec, size=(*shape, len(space.nvec)))
    return generator.integers(space.n, size=shape)


def best_speed(step: Callable[[Any], Any], actions: Iterable[Any], n_envs: int) -> float:
    """:return: the most environment steps per second of all repetitions"""
    forever, best = itertools.cycle(list(actions)), 0.0
    for _ in range(args.repetitions):
        n_steps, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < args.seconds:
            # Steps of one copy are too short for a look at the clock after each
            for action in itertools.islice(forever, max(1, 256 // n_envs)):
                step(action)
                n_steps += n_envs
        best = max(best, n_steps / passed)
    return best


def single(env_id: str) -> float:
    env = gym.make(env_id)
    env.reset(seed=0)

    def step(action: Any) -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return best_speed(step, draw_actions(env.action_space, (2048,)), 1)


def vectorised(make: Callable[..., Any], env_id: str) -> float:
    env = make(env_id, args.n_envs, seed=0)
    env.reset()
    return best_speed(env.step, draw_actions(env.action_space, (128, args.n_envs)), args.n_envs)


# The first id of each task stands for the others
representatives = {path: env_id for env_id, (path, _) in reversed(BATCHED_TASKS.items())}
ids = args.ids or [env_id for env_id in BATCHED_TASKS if args.all or env_id in representatives.values()]

print(f"{args.n_envs} copies, numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
print("Environment steps per second:\n")
print("| id | single | DummyVecEnv | batched | batched / DummyVecEnv |\n|---|---|---|---|---|")
for env_id in ids:
    alone, dummy, batched = single(env_id), vectorised(make_vec_env, env_id), vectorised(make_batched_env, env_id)
    print(f"| {env_id} | {alone:,.0f} | {dummy:,.0f} | {batched:,.0f} | {batched / dummy:.0f} |", flush=True)
