"""
Memory and open files of long trainings. Linux only::

    python benchmarks/long_runs.py updates     # 1,000 updates of each algorithm
    python benchmarks/long_runs.py episodes    # one episode of 100,000 steps

Prints them on the way, and ends with status 1 if they grow after the first fifth.
"""

import argparse
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_shm import SHMPPO, SHMSAC

ALLOWED_MIB = 8
"""Growth that is no leak: the allocator's, and the list of the last 100 episodes."""


class Endless(gym.Env[np.ndarray, int]):
    """Noise, without an end."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), float(action), False, False, {}


class Watch(BaseCallback):
    """
    Notes memory and open files.

    :param every: steps between two notes
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.notes: list[tuple[int, float, int]] = []

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.notes.append((self.num_timesteps, mib, len(os.listdir("/proc/self/fd"))))
        return True


def train(name: str, model: SHMPPO | SHMSAC, steps: int) -> None:
    """
    :param name: to print
    :param model: what is trained
    :param steps: how long
    """
    watch = Watch(steps // 10)
    model.learn(steps, watch)
    for at, mib, files in watch.notes:
        print(f"{name}: step {at}, {mib:.1f} MiB, {files} files", flush=True)
    _, mib, files = watch.notes[1]
    assert watch.notes[-1][1] - mib < ALLOWED_MIB, "the memory grows"
    assert watch.notes[-1][2] <= files, "the open files grow"
    print(f"{name}: {model._n_updates} updates, from step {watch.notes[1][0]} on {watch.notes[-1][1] - mib:+.1f} MiB")


def updates() -> None:
    """1,000 updates of each algorithm."""
    train(
        "SHMPPO",
        SHMPPO("MlpSHMPolicy", "CartPole-v1", n_steps=32, batch_size=32, seq_len=32, n_epochs=1, device="cpu"),
        32_000,
    )
    options = dict(buffer_size=1000, seq_len=16, batch_size=4, train_freq=4, learning_starts=100, device="cpu")
    train("SHMSAC", SHMSAC("MlpSHMPolicy", "CartPole-v1", **options), 4100)  # type: ignore[arg-type]


def episodes() -> None:
    """An episode of 100,000 steps."""
    train("SHMPPO", SHMPPO("MlpSHMPolicy", Endless(), n_steps=500, seq_len=125, n_epochs=1, device="cpu"), 100_000)


COMMANDS = {"updates": updates, "episodes": episodes}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    th.set_num_threads(1)
    COMMANDS[parser.parse_args().command]()
