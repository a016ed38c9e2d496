"""One run in a process of its own: ``python -m experiments.worker FILE RUN``, file of the result, and run as JSON."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from sb3_shm.files import write_atomically
from experiments.base import Run
from experiments.folder import describe_machine

DISK_FULL = 28
"""Exit status of a run that could not write its result because the disk is full."""
# One thread, also in the libraries that read these when they are loaded
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


def start(run: Run, record_path: Path, log_path: Path) -> subprocess.Popen[bytes]:
    """
    Start a run. It ends when this process does, however that ends.

    :param run: the run
    :param record_path: file of its result, written when it has finished
    :param log_path: file of what it prints
    :return: its process: status 0 for finished, :data:`DISK_FULL`, or another one for a crash
    """
    with open(log_path, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.worker", str(record_path), json.dumps(asdict(run))],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ONE_THREAD},
        )


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end of the pipe closes: the parent has ended
    os._exit(1)


def main() -> None:
    """Compute the run of the command line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    record_path, text = Path(sys.argv[1]), sys.argv[2]
    run = Run(**json.loads(text))
    try:
        import torch as th

        th.set_num_threads(1)
        module, _, name = run.function.partition(":")
        begin = time.perf_counter()
        rows = getattr(importlib.import_module(module), name)(**run.kwargs)
        record = dict(**asdict(run), seconds=round(time.perf_counter() - begin, 1), **describe_machine(), rows=rows)
        write_atomically(record_path, json.dumps(record))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"The disk is full: {error}", file=sys.stderr)
        sys.exit(DISK_FULL)


if __name__ == "__main__":
    main()
