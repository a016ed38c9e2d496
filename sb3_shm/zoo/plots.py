"""What rl-zoo3 would draw nothing of."""

import argparse
from contextlib import suppress
from pathlib import Path

import gymnasium as gym

_INPUTS = {"plot_from_file": ("-i", "--input"), "benchmark": ("--log-dir",)}
"""Of commands that read a file or folder, the argument that names it."""


def check_has_runs(command: str, arguments: list[str]) -> None:
    """
    :param command: plot_train or all_plots, which would draw nothing, or zeros
    :param arguments: its
    :raises SystemExit: there is no run to draw; says why on stderr
    """
    parser = argparse.ArgumentParser(prog=f"sb3-shm {command}", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("-a", "--algo", "--algos", nargs="+", default=[])
    parser.add_argument("-e", "--env", nargs="+", default=[])
    parser.add_argument("-f", "--exp-folder", "--exp-folders", nargs="+", default=[])
    args, _ = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(arguments):
        return
    for folder in args.exp_folder:
        if not Path(folder).is_dir():
            parser.error(f"there is no folder {folder}")
        for env in args.env:
            if not any(path for algo in args.algo for path in Path(folder, algo.lower()).glob(f"*{env.replace('/', '-')}*")):
                there = sorted({path.name.rpartition("_")[0] for path in Path(folder).glob("*/*_*")})
                parser.error(
                    f"{folder} has no run of {' or '.join(args.algo)} in {env}, but of {', '.join(there) or 'nothing'}"
                )


def check_has_input(command: str, arguments: list[str]) -> None:
    """
    :param command: of rl-zoo3
    :param arguments: its
    :raises SystemExit: the file or folder that it reads is not there; says so on stderr
    """
    if command not in _INPUTS:
        return
    parser = argparse.ArgumentParser(prog=f"sb3-shm {command}", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument(*_INPUTS[command], dest="input")
    parser.add_argument("-iqm", action="store_true")  # of plot_from_file, or else it is read as -i qm
    path = parser.parse_known_args(arguments)[0].input
    if path is not None and not Path(path).exists():
        parser.error(f"there is no {path}, which {_INPUTS[command][-1]} names")


def check_draws_pictures(arguments: list[str]) -> None:
    """
    :param arguments: of record_video
    :raises SystemExit: the environment draws no pictures; says on stderr what shows its agent
    """
    parser = argparse.ArgumentParser(prog="sb3-shm record_video", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("--env", default="")
    args, _ = parser.parse_known_args(arguments)
    with suppress(Exception):  # one that needs arguments, which rl-zoo3 knows, or that is not there, of which it says more
        env = gym.make(args.env)
        env.close()
        if "rgb_array" not in env.metadata.get("render_modes", ()):
            parser.error(
                f"{args.env} draws no pictures: `sb3-shm watch --env {args.env}` shows its agent's memory step by step"
            )
