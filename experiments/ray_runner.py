"""Runs the grid of an experiment on a Ray cluster, whose nodes all have this package installed."""

from __future__ import annotations

import logging
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.base import Run
from experiments.folder import ResultsFolder
from experiments.runner import Outcome
from experiments.worker import start
from sb3_shm.files import write_atomically

RETRIES = 3
"""How often a run is started again after its node was lost."""


def _compute(run: Run) -> tuple[int, float, str | None, bytes]:
    """On a node: exit status, seconds, result and log of a run."""
    with tempfile.TemporaryDirectory() as name:
        record, log = Path(name) / "record", Path(name) / "log"
        begin = time.monotonic()
        with start(run, record, log) as process:
            try:
                status = process.wait()
            finally:
                process.kill()  # if the run was cancelled
        text = record.read_text(encoding="utf-8") if record.exists() else None
        return status, time.monotonic() - begin, text, log.read_bytes()


def import_ray() -> Any:
    """
    :return: Ray
    :raises ImportError: it is not installed
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f'Ray cannot be imported ({error}): pip install "sb3-shm[ray]"') from error
    return ray


def run_on_ray(folder: ResultsFolder, runs: list[Run], address: str, cpus: float, gpus: float) -> Iterator[Outcome]:
    """
    Each run is a task of its own. If its node is lost it starts again on another one, up to :data:`RETRIES` times; results are
    sent to this machine as runs end, so that a lost node costs what ran on it and nothing else.

    :param folder: where results and logs go, on this machine
    :param runs: what to run
    :param address: of the cluster, as for ``ray.init``: "auto", "host:port", "ray://host:port"
    :param cpus: CPUs that a run takes, may be a fraction
    :param gpus: GPUs that a run takes, may be a fraction
    :return: outcomes in the order in which the runs end; leaving the iteration ends what still runs
    :raises ImportError: Ray is not installed
    :raises ConnectionError: there is no cluster at this address
    """
    ray = import_ray()
    print(f"Connecting to the Ray cluster at {address}", flush=True)
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:  # Ray itself goes on trying for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ValueError, OSError, RuntimeError) as error:
        raise ConnectionError(f"There is no Ray cluster at {address}: {error}") from error
    compute = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_compute)
    running: dict[Any, Run] = {compute.remote(run): run for run in runs}
    try:
        while running:
            for future in ray.wait(list(running))[0]:
                run = running.pop(future)
                try:
                    status, seconds, text, log = ray.get(future)
                except ray.exceptions.RayError as error:  # lost once too often
                    status, seconds, text, log = 1, 0.0, None, str(error).encode()
                folder.log_path(run).write_bytes(log)
                if text is not None:
                    write_atomically(folder.record_path(run), text)
                yield Outcome(run, status, seconds)
    finally:
        for future in running:
            ray.cancel(future, force=True)
        ray.shutdown()
