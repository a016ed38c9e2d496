"""The command line: rl-zoo3's own commands, to which our algorithms, environments and hyperparameters are known."""

import argparse
import importlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch as th

from sb3_shm import __version__
from sb3_shm.memory import MEMORIES
from sb3_shm.memory.backends.cpu_openmp import available_cores
from sb3_shm.zoo.exchange import exchanged
from sb3_shm.zoo.plots import check_draws_pictures, check_has_input, check_has_runs
from sb3_shm.zoo.registration import ALGORITHMS, register

# Command -> rl-zoo3's module. The first five are functions of the same name, the others run as programs only
COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot_train": "rl_zoo3.plots",
    "all_plots": "rl_zoo3.plots",
    "plot_from_file": "rl_zoo3.plots",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "benchmark": "rl_zoo3.benchmark",
}
_FUNCTIONS = ("train", "enjoy", "plot_train", "all_plots", "plot_from_file")
_WITH_ALGO = ("train", "enjoy", "record_video", "record_training")
_READING_FOLDERS = ("enjoy", "record_video", "record_training", "benchmark")
# What rl-zoo3 imports without depending on it
_MODULES_OF_EXTRA = ("pandas", "requests", "scipy", "seaborn")

_DESCRIPTION = f"""\
rl-zoo3's commands with the algorithms of sb3-shm ({", ".join(ALGORITHMS)}), its environments and its hyperparameters.
All arguments after the command are rl-zoo3's own: see `sb3-shm train --help`. What differs:

  --algo         shm_ppo if left out
  --folder       of enjoy, record_video, record_training: logs if left out, where train writes
  --conf-file    of train: the hyperparameters that sb3-shm has for the algorithm if left out
  --release      of train: the settings of the paper's released code, for hours or days, instead of those that
                 learn on a laptop
  --memory NAME [ARGUMENT:VALUE ...]
                 of train: another memory, everything else as in the environment's hyperparameters,
                 e.g. --memory gru hidden_size:128 or --memory shm theta:neural; NAME is one of
                 {", ".join(MEMORIES)}
  watch          instead of a command of rl-zoo3: a page that shows an agent's memory while it plays
  hub            instead of a command of rl-zoo3: load, share and pack models, as `python -m sb3_shm.sharing`
  --trust        of {", ".join(_READING_FOLDERS)}: you trust whoever made the folder with
                 the model. Its YAML may then hold Python objects, texts to evaluate and names to import. With or without
                 it the model itself is unpickled, which can run anything: take a stranger's model with
                 `sb3-shm hub load`
"""


def _with_our_commands(command: Sequence[str], trust: Sequence[str] = ()) -> list[str]:
    """
    :param command: what rl-zoo3 starts as a process of its own
    :param trust: ["--trust"], or empty
    :return: the same for our algorithms, wherever it is started
    """
    ours = [sys.executable, "-m", "sb3_shm.zoo"]
    if list(command[:2]) == ["python", "enjoy.py"]:
        return [*ours, "enjoy", *command[2:], *trust]
    if list(command[:3]) == ["python", "-m", "rl_zoo3.record_video"]:
        return [*ours, "record_video", *command[3:], *trust]
    return list(command)


def _latest_run_with_model(log_path: str, env_id: str) -> int:
    """
    In the place of rl-zoo3's ``get_latest_run_id`` where agents are read: not the latest folder if a run in it failed.

    :param log_path: folder of an algorithm's experiments
    :param env_id: id of the environment
    :return: number of the latest experiment that holds a model, 0 for none
    """
    from sb3_shm.zoo.folders import experiments, holds_model  # need YAML

    found = filter(holds_model, experiments(Path(log_path).parent, Path(log_path).name, env_id))
    return max((int(path.name.rpartition("_")[2]) for path in found), default=0)


def keep_to_cores() -> None:
    """Use no more threads than there are cores: torch does not know what share of them a container is given."""
    cores, threads = available_cores(), th.get_num_threads()
    if cores < threads and "OMP_NUM_THREADS" not in os.environ:
        print(f"This container may use {cores} core(s): so many threads, not {threads}; --num-threads chooses another number")
        th.set_num_threads(cores)


def _say_if_nothing_is_shown(command: str) -> None:
    try:
        import matplotlib
    except ImportError:  # which comes with rl-zoo3's plots
        return
    if command == "plot_train" and matplotlib.get_backend().lower() == "agg":
        print("plot_train shows a window, and here is no display: all_plots writes files", file=sys.stderr)


def main() -> None:
    """
    Run one of rl-zoo3's commands, with the arguments in ``sys.argv``.

    :raises SystemExit: no such command, or something is not installed; says so on stderr
    """
    parser = argparse.ArgumentParser("sb3-shm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sb3-shm {__version__}")
    parser.add_argument("command", choices=[*COMMANDS, "watch", "hub"], nargs="?")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="rl-zoo3's")
    args = parser.parse_args()
    if args.command is None:
        parser.print_help()
        return
    if args.command == "hub":
        try:
            from sb3_shm.sharing.__main__ import main as share
        except ImportError as error:
            parser.error(f'{error}; all that hub needs: pip install "sb3-shm[hub]"')
        sys.exit(share(args.arguments))
    if args.command == "watch":
        try:
            from sb3_shm.zoo.watch import watch
        except ImportError as error:
            parser.error(f'{error}; all that watch needs: pip install "sb3-shm[watch]"')
        watch(args.arguments)
        return
    try:
        register()
    except ImportError as error:
        parser.error(str(error))
    if args.command == "record_training" and shutil.which("ffmpeg") is None:
        parser.error("record_training needs the program ffmpeg")
    arguments = args.arguments
    if {"-h", "--help"} & set(arguments):  # rl-zoo3's own follows
        print(_DESCRIPTION)
    if args.command in ("train", "enjoy"):
        from sb3_shm.zoo.arguments import quote_env_kwargs, train_arguments  # reads YAML, which comes with rl-zoo3

        arguments = quote_env_kwargs(args.command, arguments)
    if args.command == "train":
        arguments = train_arguments(arguments)
        keep_to_cores()
    elif args.command in _WITH_ALGO:
        arguments = ["--algo", "shm_ppo", "--folder", "logs", *arguments]  # what comes later wins
    check_has_input(args.command, arguments)
    if args.command in ("plot_train", "all_plots"):
        check_has_runs(args.command, arguments)
        _say_if_nothing_is_shown(args.command)
    trust: list[str] = []
    around: AbstractContextManager[None] = nullcontext()
    folder: AbstractContextManager[list[str]] = nullcontext(arguments)
    if args.command in _READING_FOLDERS:
        trust = ["--trust"] * ("--trust" in arguments)
        arguments = [argument for argument in arguments if argument != "--trust"]
        from sb3_shm.zoo.folders import check_has_model, reading_safely, unpacked  # need YAML, too

        if args.command in ("enjoy", "record_video"):
            check_has_model(args.command, arguments)
        if args.command == "record_video" and not {"-h", "--help"} & set(arguments):
            check_draws_pictures(arguments)
        folder = unpacked(arguments) if args.command == "enjoy" else nullcontext(arguments)
        around = nullcontext() if trust else reading_safely()
    if args.command == "train":
        from sb3_shm.zoo.manager import safe_saving  # imports rl-zoo3

        around = safe_saving()
    # rl-zoo3's benchmark and record_training spell the programs that they start: nothing else can tell these our algorithms
    call = subprocess.call
    ours = exchanged(
        (subprocess, "call", lambda command, *rest, **kwargs: call(_with_our_commands(command, trust), *rest, **kwargs))
    )
    masks: AbstractContextManager[None] = nullcontext()
    choosing: AbstractContextManager[None] = nullcontext()
    try:
        if args.command in ("benchmark", "record_video", "record_training"):
            import rl_zoo3.utils

            choosing = exchanged((rl_zoo3.utils, "get_latest_run_id", _latest_run_with_model))
        if args.command in ("train", "enjoy", "record_video"):
            from sb3_shm.zoo.masks import passing_masks  # imports rl-zoo3, and all that its enjoy needs

            masks = passing_masks()
        with ours, around, masks, choosing, folder as arguments:
            sys.argv = [f"sb3-shm {args.command}", *arguments]
            if args.command in _FUNCTIONS:
                getattr(importlib.import_module(COMMANDS[args.command]), args.command)()
            else:
                runpy.run_module(COMMANDS[args.command], run_name="__main__")
    except ValueError as error:
        if args.command != "train" or "not found in gym registry" not in str(error):
            raise
        parser.error(str(error))  # by rl-zoo3, with what was probably meant
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _MODULES_OF_EXTRA:
            raise
        parser.error(f'{args.command} needs {module}: pip install "sb3-shm[zoo]"')


if __name__ == "__main__":
    main()
