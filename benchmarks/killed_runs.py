"""
Kill programs at random moments (SIGKILL), look at what they left, and go on from there. Linux only::

    python benchmarks/killed_runs.py save            # while a model is saved
    python benchmarks/killed_runs.py replay          # while a replay buffer is saved
    python benchmarks/killed_runs.py train           # rl-zoo3's train command
    python benchmarks/killed_runs.py experiment      # python -m experiments
    python benchmarks/killed_runs.py together        # two trainings at once, with one compile cache and one folder of logs

Ends with status 1 and says so if something was lost, broken or counted twice.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.save_util import load_from_pkl

from sb3_shm import SHMPPO, SHMSAC

TRAIN = ["train", "--env", "CartPoleNoVel-v0", "--device", "cpu", "--seed", "1", "--eval-episodes", "1"]
HYPERPARAMETERS = ["-params", "n_envs:1", "n_epochs:2", "n_steps:32", "batch_size:32"]


def kill_later(work: Callable[[], None], seconds: float, after: Path | None = None) -> bool:
    """
    Work in a process of its own, forked so that nothing is imported again.

    :param work: what it does
    :param seconds: when it is killed
    :param after: the seconds count from when this file is there; None for from the beginning
    :return: whether it was still at work
    """
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            work()
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if after is not None and not after.exists():
            end = time.monotonic() + seconds
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the program ended with status {status}"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def kill_saves(
    folder: Path, kills: int, rng: random.Random, name: str, save: Callable[[int], None], load: Callable[[], int]
) -> None:
    """
    Save without end, kill, load.

    :param folder: of the file
    :param kills: how often
    :param rng: draws the moments
    :param name: of the file
    :param save: saves the number
    :param load: loads the file and returns its number
    """
    interrupted = 0
    counter = os.open(folder / "finished", os.O_RDWR | os.O_CREAT)
    save(0)

    def save_on() -> None:
        for i in range(load() + 1, 10**6):
            save(i)
            os.pwrite(counter, i.to_bytes(4, "little"), 0)

    for _ in range(kills):
        kill_later(save_on, rng.uniform(0.05, 0.5))
        interrupted += (folder / f"{name}.part").exists()
        finished = int.from_bytes(os.pread(counter, 4, 0), "little")
        number = load()
        assert number in (finished, finished + 1), f"{finished} was saved, {number} is there"
    print(f"{kills} kills, {interrupted} of them in the middle of a file, after {number} saves: nothing lost")


def kill_save(folder: Path, kills: int, rng: random.Random) -> None:
    """Kill while an SHMPPO is saved."""
    model = SHMPPO("MlpSHMPolicy", "CartPole-v1", n_steps=32, seq_len=32, device="cpu")

    def save(number: int) -> None:
        model.num_timesteps = number
        model.save(folder / "model")

    kill_saves(folder, kills, rng, "model.zip", save, lambda: SHMPPO.load(folder / "model", device="cpu").num_timesteps)


def kill_replay(folder: Path, kills: int, rng: random.Random) -> None:
    """Kill while a replay buffer is saved."""
    model = SHMSAC("MlpSHMPolicy", "CartPole-v1", buffer_size=100_000, seq_len=8, device="cpu").learn(90)

    def save(number: int) -> None:
        model.replay_buffer.rewards[0, -1] = number
        model.save_replay_buffer(folder / "tape")

    def load() -> int:
        model.load_replay_buffer(folder / "tape")
        return int(load_from_pkl(folder / "tape.pkl").rewards[0, -1])

    kill_saves(folder, kills, rng, "tape.pkl", save, load)


def kill_train(folder: Path, kills: int, rng: random.Random) -> None:
    """Kill ``sb3-shm train``; every file must be whole, and ``--trained-agent`` goes on from the last checkpoint."""
    import sb3_shm.zoo.manager  # noqa: F401  # once, and not in each process
    from sb3_shm.zoo.__main__ import main

    os.chdir(folder)

    def train(*arguments: str) -> Callable[[], None]:
        def work() -> None:
            sys.argv = ["sb3-shm", *TRAIN, *arguments, *HYPERPARAMETERS]
            main()

        return work

    steps, resumed = [], 0
    for i in range(1, kills + 1):
        run = Path("logs/shm_ppo") / f"CartPoleNoVel-v0_{i + resumed}"
        # Some before there is anything, most while it trains
        first = run / "rl_model_64_steps.zip" if rng.random() < 0.8 else None
        assert kill_later(train("-n", "100000", "--save-freq", "64", "--eval-freq", "64"), rng.uniform(0, 3), first)
        numbers = sorted(int(path.name.split("_")[2]) for path in run.glob("rl_model_*_steps.zip"))
        steps.append(max(numbers, default=0))
        assert numbers == list(range(64, steps[-1] + 1, 64)), numbers
        for path in run.glob("*.zip"):
            model = SHMPPO.load(path, device="cpu")
            assert path.name == "best_model.zip" or path.name == f"rl_model_{model.num_timesteps}_steps.zip"
        if (run / "evaluations.npz").exists():
            with np.load(run / "evaluations.npz") as data:
                at = data["timesteps"].tolist()
            assert at == list(range(64, at[-1] + 1, 64)) and at[-1] >= steps[-1] - 64
        if numbers and (run / "CartPoleNoVel-v0" / "vecnormalize.pkl").exists():
            last = run / f"rl_model_{steps[-1]}_steps.zip"
            assert not kill_later(train("-n", "64", "--eval-freq", "-1", "-i", str(last)), 600)
            resumed += 1
            after = SHMPPO.load(run.with_name(f"CartPoleNoVel-v0_{i + resumed}") / "CartPoleNoVel-v0.zip", device="cpu")
            before = SHMPPO.load(last, device="cpu")
            assert after._n_updates == before._n_updates + 2 * 2  # two rollouts of two epochs
            assert after.num_timesteps == 64
    print(f"{kills} kills at checkpoints {steps}, {resumed} resumed: nothing lost, nothing counted twice")


def kill_experiment(folder: Path, kills: int, rng: random.Random) -> None:
    """Kill ``python -m experiments``, go on with ``--resume``, compare with what was not killed."""
    command = [sys.executable, "-m", "experiments", "gradient_norms", "--budget", "smoke", "--seeds", "2"]

    def rows(path: Path) -> list[str]:
        return [json.dumps(json.loads(file.read_text())["rows"]) for file in sorted((path / "runs").glob("*.json"))]

    quiet: Any = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run([*command, "--output", folder / "whole"], check=True, **quiet)
    whole = (folder / "whole" / "results.csv").read_text()
    done, finished = 0, 0
    while done < kills or not finished:
        output = folder / str(finished)
        arguments = [*command, "--output", str(output), *["--resume"] * (output / "configuration.json").exists()]
        before = {path: path.read_bytes() for path in output.glob("runs/*.json")}
        process = subprocess.Popen(arguments, **quiet)
        # Half of the kills come soon, half after another run has finished
        expected = len(before) + rng.randrange(2)
        while process.poll() is None and len(list(output.glob("runs/*.json"))) < expected:
            time.sleep(0.01)
        try:
            process.wait(rng.uniform(0, 5) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
        assert process.returncode in (0, -signal.SIGKILL)
        assert all(path.read_bytes() == content for path, content in before.items()), "a finished run was computed again"
        if process.returncode == 0:
            assert (output / "results.csv").read_text() == whole and rows(output) == rows(folder / "whole")
            finished += 1
    print(f"{done} kills, {finished} experiments finished with the results of one that was not killed, to the bit")


def run_together(folder: Path, kills: int, rng: random.Random) -> None:
    """Two trainings start at once, with an empty compile cache and the same folder of logs."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    for i in range(kills):
        command = [sys.executable, "-m", "sb3_shm.zoo", *TRAIN, "-n", "64", "--eval-freq", "32", *HYPERPARAMETERS]
        sizes = rng.sample(range(8, 129, 8), 2)  # two kernels
        arguments = [[*command, "--memory", "shm", f"memory_size:{size}"] for size in sizes]
        streams: Any = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        processes = [subprocess.Popen(words, cwd=folder, env=environment, **streams) for words in arguments]
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            assert "compile cache" not in errors, errors
        found = []
        for number in (2 * i + 1, 2 * i + 2):
            model = SHMPPO.load(folder / "logs/shm_ppo" / f"CartPoleNoVel-v0_{number}" / "CartPoleNoVel-v0.zip", device="cpu")
            found.append(model.policy_kwargs["memory_kwargs"]["memory_size"])
        assert sorted(found) == sorted(sizes), (found, sizes)
    print(f"{kills} pairs: each run has a folder of its own and its own model, the cache works for both")


COMMANDS = {
    "save": kill_save,
    "replay": kill_replay,
    "train": kill_train,
    "experiment": kill_experiment,
    "together": run_together,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=20, help="how many kills, or pairs of processes")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        COMMANDS[args.command](Path(name), args.kills, random.Random(args.seed))
