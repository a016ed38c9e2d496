"""Runs the grid of an experiment in processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import Popen

from experiments.base import Run
from experiments.folder import ResultsFolder
from experiments.worker import DISK_FULL, start


@dataclass(frozen=True)
class Outcome:
    """
    How a run ended.

    :param run: the run
    :param status: 0 if its result is there, :data:`~experiments.worker.DISK_FULL`, else it crashed
    :param seconds: how long it took
    """

    run: Run
    status: int
    seconds: float


def run_processes(folder: ResultsFolder, runs: list[Run], jobs: int) -> Iterator[Outcome]:
    """
    :param folder: where results and logs go
    :param runs: what to run
    :param jobs: how many at a time
    :return: outcomes in the order in which the runs end; leaving the iteration ends what still runs
    """
    waiting = runs[::-1]
    running: dict[str, tuple[Run, Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop()
                process = start(run, folder.record_path(run), folder.log_path(run))
                running[run.id] = run, process, time.monotonic()
            time.sleep(0.05)
            for run, process, begin in list(running.values()):
                if process.poll() is not None:
                    del running[run.id]
                    yield Outcome(run, process.returncode, time.monotonic() - begin)
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.wait()


def run_grid(folder: ResultsFolder, outcomes: Iterator[Outcome], number: int) -> list[Outcome]:
    """
    Print a line for each run that ends.

    :param folder: where results and logs go
    :param outcomes: the ends of the runs
    :param number: how many runs there are
    :return: those that crashed
    :raises OSError: the disk is full
    """
    crashed = []
    begin = time.monotonic()
    for i, outcome in enumerate(outcomes, start=1):
        seconds = (time.monotonic() - begin) / i * (number - i)
        left = f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
        end = "finished" if outcome.status == 0 else f"CRASHED, see {folder.log_path(outcome.run)},"
        print(f"[{i}/{number}] {outcome.run.id} {end} after {outcome.seconds:.0f} s, about {left} left", flush=True)
        if outcome.status == DISK_FULL:
            raise OSError(f"The disk of {folder.path} is full. Make room and go on with --resume")
        if outcome.status:
            crashed.append(outcome)
    return crashed
