"""The command line: rl-zoo3's own commands, to which our algorithms, environments and hyperparameters are known."""

import argparse
import ast
import importlib
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sb3_shm.memory import MEMORIES
from sb3_shm.zoo.registration import ALGORITHMS, hyperparams_file, register

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
# What rl-zoo3 imports without depending on it
_MODULES_OF_EXTRA = ("pandas", "requests", "scipy", "seaborn")

_DESCRIPTION = f"""\
rl-zoo3's commands with the algorithms of sb3-shm ({", ".join(ALGORITHMS)}), its environments and its hyperparameters.
All arguments after the command are rl-zoo3's own: see `sb3-shm train --help`. What differs:

  --algo         shm_ppo if left out
  --conf-file    of train: the hyperparameters that sb3-shm has for the algorithm if left out
  --memory NAME [ARGUMENT:VALUE ...]
                 of train: another memory ({", ".join(MEMORIES)}), everything else as in the environment's hyperparameters,
                 e.g. --memory gru hidden_size:128 or --memory shm theta:neural
"""


def train_arguments(arguments: list[str]) -> list[str]:
    """
    Translate the arguments of ``train``: fill in the file of hyperparameters, resolve ``--memory``.

    :param arguments: the user's, rl-zoo3's and our own
    :return: rl-zoo3's
    :raises SystemExit: an illegal ``--memory``; says why on stderr
    """
    # The same abbreviations are legal here and in rl-zoo3's own parser, which comes next and checks everything else
    parser = argparse.ArgumentParser(prog="sb3-shm train", add_help=False)
    parser.add_argument("--algo", default="shm_ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[])
    parser.add_argument("--memory", nargs="+", metavar=("NAME", "ARGUMENT:VALUE"))
    args, rest = parser.parse_known_args(arguments)
    if args.conf_file is None and args.algo in ALGORITHMS:
        args.conf_file = str(hyperparams_file(args.algo))
        _hint_at_version(args.env, args.conf_file)
    if args.memory is not None:
        args.hyperparams.append(f"policy_kwargs:{_policy_kwargs(parser, args)!r}")
    result = ["--algo", args.algo, "--env", args.env, *rest]
    if args.conf_file is not None:
        result += ["--conf-file", args.conf_file]
    if args.hyperparams:
        result += ["--hyperparams", *args.hyperparams]
    return result


def _hint_at_version(env_id: str, conf_file: str) -> None:
    """rl-zoo3 registers e.g. CartPoleNoVel-v1, which is not our CartPoleNoVel-v0."""
    blocks = yaml.safe_load(Path(conf_file).read_text(encoding="utf-8"))
    name = env_id.rpartition("-v")[0]
    others = [block for block in blocks if block.rpartition("-v")[0] == name]
    if others and env_id not in blocks:
        print(f"Note: sb3-shm's environment is {others[0]}; {env_id} is another one and gets the default", file=sys.stderr)


def _policy_kwargs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param parser: for errors
    :param args: with ``memory``, ``algo``, ``env``, ``conf_file`` and ``hyperparams``
    :return: the block's ``policy_kwargs`` with another memory
    """
    name, *pairs = args.memory
    if args.algo not in ALGORITHMS:
        parser.error(f"--memory needs --algo {' or '.join(ALGORITHMS)}, got {args.algo}")
    if name not in MEMORIES:
        parser.error(f"--memory must be one of {', '.join(MEMORIES)}, got {name!r}")
    if any(pair.startswith("policy_kwargs:") for pair in args.hyperparams):
        parser.error("--memory and --hyperparams policy_kwargs:... exclude each other: name the memory in the latter")
    try:
        blocks = yaml.safe_load(Path(args.conf_file).read_text(encoding="utf-8"))
        block = blocks.get(args.env, blocks.get("default", {}))
        policy_kwargs = block.get("policy_kwargs") or {}
        old_kwargs = policy_kwargs.get("memory_kwargs") or {}
    except (AttributeError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"--memory needs a YAML file with policy_kwargs as a mapping, {args.conf_file} is none: {error}")
    new_kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon:
            parser.error(f"--memory's arguments are ARGUMENT:VALUE, got {pair!r}")
        try:
            new_kwargs[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            new_kwargs[key] = value  # a text without quotes
    if policy_kwargs.get("memory", "shm") == name:
        new_kwargs = {**old_kwargs, **new_kwargs}
    return {**policy_kwargs, "memory": name, "memory_kwargs": new_kwargs}


def _with_our_commands(command: Sequence[str]) -> list[str]:
    """
    :param command: what rl-zoo3 starts as a process of its own
    :return: the same for our algorithms, wherever it is started
    """
    ours = [sys.executable, "-m", "sb3_shm.zoo"]
    if list(command[:2]) == ["python", "enjoy.py"]:
        return [*ours, "enjoy", *command[2:]]
    if list(command[:3]) == ["python", "-m", "rl_zoo3.record_video"]:
        return [*ours, "record_video", *command[3:]]
    return list(command)


def main() -> None:
    """
    Run one of rl-zoo3's commands, with the arguments in ``sys.argv``.

    :raises SystemExit: no such command, or something is not installed; says so on stderr
    """
    parser = argparse.ArgumentParser("sb3-shm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="rl-zoo3's")
    args = parser.parse_args()
    try:
        register()
    except ImportError as error:
        parser.error(str(error))
    arguments = args.arguments
    if args.command == "train":
        arguments = train_arguments(arguments)
    elif args.command in _WITH_ALGO:
        arguments = ["--algo", "shm_ppo", *arguments]  # a later --algo wins
    sys.argv = [f"sb3-shm {args.command}", *arguments]
    call = subprocess.call
    subprocess.call = lambda command, *rest, **kwargs: call(_with_our_commands(command), *rest, **kwargs)
    try:
        if args.command in _FUNCTIONS:
            getattr(importlib.import_module(COMMANDS[args.command]), args.command)()
        else:
            runpy.run_module(COMMANDS[args.command], run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name not in _MODULES_OF_EXTRA:
            raise
        parser.error(f'{args.command} needs {error.name}: pip install "sb3-shm[zoo]"')
    finally:
        subprocess.call = call


if __name__ == "__main__":
    main()
