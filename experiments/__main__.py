"""The command line of the experiments."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.base import BUDGETS, Experiment, Run
from experiments.folder import ResultsFolder
from experiments.ray_runner import import_ray, run_on_ray
from experiments.runner import Outcome, run_grid, run_processes

# Name -> where its Experiment is; nothing is imported before it is asked for
_PPO, _SAC = "experiments.ppo_experiments", "experiments.sac_experiments"
EXPERIMENTS = {
    "popgym": f"{_PPO}:POPGYM_EXPERIMENT",
    "memories": f"{_PPO}:MEMORIES_EXPERIMENT",
    "ablation_calibration": f"{_PPO}:ABLATION_CALIBRATION",
    "ablation_theta": f"{_PPO}:ABLATION_THETA",
    "memory_size": f"{_PPO}:MEMORY_SIZE",
    "rewriting": f"{_PPO}:REWRITING",
    "rewriting_parts": f"{_PPO}:REWRITING_PARTS",
    "meta_rl": f"{_SAC}:META_RL",
    "meta_rl_ppo": f"{_PPO}:META_RL_PPO",
    "credit_assignment": f"{_PPO}:CREDIT_ASSIGNMENT",
    "credit_assignment_sac": f"{_SAC}:CREDIT_ASSIGNMENT_SAC",
    "recall_colour": "experiments.recall:COLOUR",
    "novel": "experiments.peer:NOVEL",
    "minigrid": "experiments.peer:MINIGRID",
    **{
        name: f"experiments.{name}:EXPERIMENT"
        for name in ("defaults", "recall", "stability", "gradient_norms", "length_scaling", "parallel_vs_recurrent")
    },
}
LINES_OF_LOG = 15


def load_experiment(name: str) -> Experiment:
    """
    :param name: one of ``EXPERIMENTS``
    :return: the experiment
    """
    module, _, attribute = EXPERIMENTS[name].partition(":")
    experiment: Experiment = getattr(importlib.import_module(module), attribute)
    return experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: the command line's, None for those of this process
    :return: exit status: 0 if every run has finished, else 1
    :raises SystemExit: illegal arguments, or a folder of other results; says why on stderr
    """
    parser = argparse.ArgumentParser(
        "python -m experiments",
        description="The paper's experiments and its open questions: a grid of runs, then tables and figures.",
    )
    parser.add_argument("name", choices=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="small",
        help="%(default)s if left out: some seconds a run, hours in all, or the paper's",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (0, 1, ...), else %(default)s")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=cores, help="runs at a time, each with one thread: %(default)s if left out"
    )
    parser.add_argument("--ray-address", help='run on the Ray cluster at this address, "auto" for the one that runs here')
    parser.add_argument("--cpus-per-run", type=float, help="with --ray-address, may be a fraction, else 1")
    parser.add_argument("--gpus-per-run", type=float, help="with --ray-address, may be a fraction, else 0")
    parser.add_argument("--resume", action="store_true", help="go on with a folder of results: finished runs are kept")
    parser.add_argument("--output", type=Path, help="folder of the results, default results/NAME-BUDGET")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(args, name)}")
    for option, value in (("--cpus-per-run", args.cpus_per_run), ("--gpus-per-run", args.gpus_per_run)):
        if value is not None and args.ray_address is None:
            parser.error(f"{option} needs --ray-address: --jobs says how many runs there are at a time on this machine")
        if value is not None and not 0 <= value < float("inf"):
            parser.error(f"{option} must be 0 or more, got {value}")
    if args.ray_address is not None:
        try:
            import_ray()  # before there is a folder
        except ImportError as error:
            parser.error(str(error))
    cpus = 1 if args.cpus_per_run is None else args.cpus_per_run
    gpus = 0 if args.gpus_per_run is None else args.gpus_per_run
    path = args.output or Path("results") / f"{args.name}-{args.budget}"
    try:
        folder = ResultsFolder(path, load_experiment(args.name), args.budget, args.seeds, args.resume)
    except ImportError as error:
        parser.error(f'{error}: pip install "sb3-shm[experiments]"')
    except (ValueError, OSError) as error:  # other results, a place where nothing can be written
        parser.error(str(error))
    try:
        with FileLock(path / ".lock").acquire(timeout=0):
            runs = folder.unfinished()
            if args.ray_address is None:
                outcomes = run_processes(folder, runs, args.jobs)
            else:
                outcomes = run_on_ray(folder, runs, args.ray_address, cpus, gpus)
            return run_and_report(folder, runs, outcomes, list(arguments))
    except Timeout:
        parser.error(f"{path} is in use: another process runs this experiment")
    except (ImportError, OSError) as error:  # a missing extra, no cluster, a full disk
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"Stopped. Go on with --resume: {len(folder.unfinished())} runs are left", file=sys.stderr)
        return 130


def run_and_report(folder: ResultsFolder, runs: list[Run], outcomes: Iterator[Outcome], command: list[str]) -> int:
    """
    :param folder: of the results
    :param runs: what to run
    :param outcomes: how the runs end
    :param command: how the program was called
    :return: exit status
    """
    print(f"{len(folder.runs)} runs in {folder.path}, {len(folder.runs) - len(runs)} of them finished already", flush=True)
    crashed = run_grid(folder, outcomes, len(runs))
    if len(folder.unfinished()) < len(folder.runs):
        print(f"\n{folder.write_results(command)}")
    for outcome in crashed:
        report_crash(folder, outcome)
    return 1 if crashed else 0


def report_crash(folder: ResultsFolder, outcome: Outcome) -> None:
    """
    Print the end of the log of a run that crashed.

    :param folder: of the results
    :param outcome: of the run
    """
    log = folder.log_path(outcome.run)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_LOG:]
    print(f"\nCRASHED with status {outcome.status}: {outcome.run.id}, the end of {log}:", file=sys.stderr)
    print("\n".join(f"  {line}" for line in lines), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
