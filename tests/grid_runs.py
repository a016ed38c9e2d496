"""Small runs for the tests of the grid, which a process of its own can import."""

import errno
import time
from pathlib import Path

import numpy as np

from experiments import Experiment, Run


def draw(seed, folder, seconds=0.0, gate=None):
    """Random numbers; leaves a line for each start, and waits for the file ``gate`` if there is one."""
    with open(Path(folder) / f"started_{seed}", "a") as file:
        file.write("started\n")
    print(f"seed {seed} prints")
    time.sleep(seconds)
    while gate is not None and not Path(gate).exists():
        time.sleep(0.02)
    return [dict(seed=seed, value=float(value)) for value in np.random.default_rng(seed).normal(size=3)]


def crash(seed):
    raise RuntimeError(f"seed {seed} has no luck")


def fill_the_disk(seed):
    raise OSError(errno.ENOSPC, "No space left on device")


def report(rows, folder):
    (folder / "figure.svg").write_text("<svg/>")
    return f"{len(rows)} rows of {rows['run'].nunique()} runs, sum {rows['value'].sum():.6f}"


def experiment(*runs):
    """The runs, whatever the budget; with several seeds, the first ones."""
    return Experiment("drawn", "Random numbers", lambda budget, seeds: list(runs[:seeds]), report)


def drawing(seed, folder, **kwargs):
    return Run(f"draw_{seed}", "grid_runs:draw", dict(seed=seed, folder=str(folder), **kwargs))
