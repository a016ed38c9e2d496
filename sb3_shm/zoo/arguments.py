"""From our arguments of ``train`` to rl-zoo3's."""

import argparse
import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch as th
import yaml

from sb3_shm.memory import MEMORIES, make_memory
from sb3_shm.memory.checks import check_in_range
from sb3_shm.zoo.blocks import check_block, check_key, check_value, read_blocks
from sb3_shm.zoo.registration import ALGORITHMS, hyperparams_file

_EVALUATED = ("np", "th", "nn")
"""Modules by the names under which rl-zoo3 knows them where it evaluates values."""


def train_arguments(arguments: list[str]) -> list[str]:
    """
    Translate the arguments of ``train``: fill in the file of hyperparameters, resolve ``--release`` and
    ``--memory``.

    :param arguments: the user's, rl-zoo3's and our own
    :return: rl-zoo3's
    :raises SystemExit: an illegal argument; says why on stderr
    """
    # The same abbreviations are legal here and in rl-zoo3's own parser, which comes next and checks everything else
    parser = argparse.ArgumentParser(prog="sb3-shm train", add_help=False)
    parser.add_argument("--algo", default="shm_ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[])
    parser.add_argument("--release", action="store_true")
    parser.add_argument("--memory", nargs="+", metavar=("NAME", "ARGUMENT:VALUE"))
    args, rest = parser.parse_known_args(arguments)
    keys = [pair.partition(":")[0] for pair in args.hyperparams]
    of_new = [f"--hyperparams {key}" for key in ("policy", "policy_kwargs") if key in keys]
    try:
        has_length = _check_others(rest, of_new + ["--memory"] * (args.memory is not None))
    except ValueError as error:
        parser.error(str(error))
    if args.release:
        if args.conf_file is not None or args.algo not in ALGORITHMS:
            parser.error(f"--release needs --algo {' or '.join(ALGORITHMS)} and excludes --conf-file")
        args.conf_file = str(hyperparams_file(args.algo, release=True))
        if args.env not in (blocks := read_blocks(args.conf_file)):
            parser.error(f"the release has settings of {args.algo} for {', '.join(blocks)}; got {args.env}")
    elif args.conf_file is not None and not Path(args.conf_file).exists():
        spec = importlib.util.find_spec("rl_zoo3")
        of_rl_zoo3 = Path(str(spec and spec.origin)).parent / "hyperparams" / args.conf_file
        args.conf_file = str(of_rl_zoo3) if of_rl_zoo3.is_file() else args.conf_file
    elif args.conf_file is None and args.algo in ALGORITHMS:
        args.conf_file = str(hyperparams_file(args.algo))
        _hint_at_version(args.env, args.conf_file)
    if args.conf_file is not None and not args.conf_file.endswith((".yml", ".yaml", ".py")):
        is_module = "/" not in args.conf_file and importlib.util.find_spec(args.conf_file.partition(".")[0]) is not None
        if Path(args.conf_file).is_file() or not is_module:
            parser.error(f"--conf-file must be a .yml or .py file of hyperparameters, or a module, got {args.conf_file}")
    if args.algo in ALGORITHMS:
        try:
            args.hyperparams = [_quoted(pair) for pair in args.hyperparams]
            given = dict(pair.partition(":")[::2] for pair in args.hyperparams)
            if str(args.conf_file).endswith((".yml", ".yaml")):
                check_block(args.conf_file, args.env, args.algo, {*given, *["n_timesteps"] * has_length})
            for key, value in given.items():
                check_key(key, args.algo, "--hyperparams")
                try:
                    value = ast.literal_eval(value)
                except (SyntaxError, ValueError):
                    continue  # an expression, which rl-zoo3 evaluates
                check_value(key, value, "--hyperparams")
        except ValueError as error:
            parser.error(str(error))
    if args.memory is not None:
        args.hyperparams.append(f"policy_kwargs:{_policy_kwargs(parser, args)!r}")
    result = ["--algo", args.algo, "--env", args.env, *rest]
    if args.conf_file is not None:
        result += ["--conf-file", args.conf_file]
    if args.hyperparams:
        result += ["--hyperparams", *args.hyperparams]
    return result


def _check_others(arguments: list[str], of_new_agent: list[str]) -> bool:
    """
    What rl-zoo3 would ignore, or end over with a traceback.

    :param arguments: rl-zoo3's
    :param of_new_agent: the arguments among the others that only a new agent can have
    :return: whether they say how long to train
    :raises ValueError: says what to write instead
    """
    parser = argparse.ArgumentParser(prog="sb3-shm train", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("-n", "--n-timesteps", type=int, default=-1)
    parser.add_argument("--n-trials", type=int, default=1)
    parser.add_argument("--trial-id", type=int)
    parser.add_argument("--storage")
    parser.add_argument("--study-name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("--log-interval", type=int, default=-1)
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--n-eval-envs", type=int, default=1)
    parser.add_argument("-f", "--log-folder", default="logs")
    parser.add_argument("--track", action="store_true")
    args, _ = parser.parse_known_args(arguments)
    if Path(args.log_folder).exists() and not Path(args.log_folder).is_dir():
        raise ValueError(f"--log-folder must be a folder, such as logs, got the file {args.log_folder}")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise ValueError("--track needs wandb: pip install wandb")
    for name in ("eval_episodes", "n_eval_envs", *["log_interval"] * (args.log_interval != -1)):
        check_in_range(f"--{name.replace('_', '-')}", getattr(args, name), low=1, integer=True)
    if args.trained_agent and not (args.trained_agent.endswith(".zip") and Path(args.trained_agent).is_file()):
        raise ValueError(f"--trained-agent must be the .zip of a model to go on with, there is no {args.trained_agent}")
    if args.trained_agent and of_new_agent:
        raise ValueError(f"--trained-agent has a policy and memory already: leave out {', '.join(of_new_agent)}")
    if args.n_timesteps != -1:
        check_in_range("--n-timesteps", args.n_timesteps, low=1, integer=True)
    check_in_range("--n-trials", args.n_trials, low=1, integer=True)
    if args.trial_id is not None:
        check_in_range("--trial-id", args.trial_id, low=0, integer=True)
        if not (args.storage and args.study_name):
            raise ValueError("--trial-id is of a study: give its --storage and --study-name, too")
    try:
        th.device("cpu" if args.device == "auto" else args.device)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:0, ..., got {args.device!r}") from error
    for package in args.gym_packages:
        try:
            is_there = importlib.util.find_spec(package) is not None
        except (ImportError, ValueError):
            is_there = False
        if not is_there:
            raise ValueError(f"--gym-packages: there is no package {package!r}: install it, or name its folder in PYTHONPATH")
    return bool(args.n_timesteps != -1)


def quote_env_kwargs(command: str, arguments: list[str]) -> list[str]:
    """
    :param command: of rl-zoo3
    :param arguments: its
    :return: the same, plain texts among the environment's arguments in quotes
    :raises SystemExit: what is no ``KEY:VALUE``; says so on stderr
    """
    parser = argparse.ArgumentParser(prog=f"sb3-shm {command}", add_help=False, usage=argparse.SUPPRESS, allow_abbrev=False)
    for option in (options := ("--env-kwargs", "--eval-env-kwargs")):
        parser.add_argument(option, nargs="+")
    args, rest = parser.parse_known_args(arguments)
    for option, pairs in zip(options, (args.env_kwargs, args.eval_env_kwargs), strict=True):
        for pair in pairs or []:
            if not all(pair.partition(":")):
                parser.error(f"{option} takes KEY:VALUE, such as size:4, got {pair!r}")
        rest += [] if pairs is None else [option, *(_text_quoted(pair) for pair in pairs)]
    return rest


def _text_quoted(pair: str) -> str:
    """:return: ``key:value``, a value in quotes that is neither a literal nor looks like something to evaluate"""
    key, _, value = pair.partition(":")
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        is_expression = "(" in value or value.partition(".")[0] in _EVALUATED
        return pair if is_expression else f"{key}:{value!r}"
    return pair


def _quoted(pair: str) -> str:
    """
    :param pair: ``key:value`` of ``--hyperparams``, whose value rl-zoo3 evaluates
    :return: the same, a plain text such as lin_0.001, MlpSHMPolicy or module.Class in quotes
    :raises ValueError: no colon, or a value that is not even a word
    """
    key, colon, value = pair.partition(":")
    if not colon or not value:
        raise ValueError(f"--hyperparams takes KEY:VALUE, such as learning_rate:0.001, got {pair!r}")
    try:
        ast.parse(value, mode="eval")
        # lin_3e-4 would be a difference
        is_dotted = all(part.isidentifier() for part in value.split(".")) and value.partition(".")[0] not in _EVALUATED
        is_name = (is_dotted and value not in ("True", "False", "None")) or value.startswith("lin_")
    except SyntaxError as error:
        if not value.replace("_", "").replace(".", "").replace("-", "").isalnum():
            raise ValueError(f"--hyperparams {pair}: the value is neither Python nor a word ({error.msg})") from error
        is_name = True
    return f"{key}:{value!r}" if is_name else pair


def _hint_at_version(env_id: str, conf_file: str) -> None:
    """rl-zoo3 registers e.g. CartPoleNoVel-v1, which is not our CartPoleNoVel-v0."""
    blocks = read_blocks(conf_file)
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
        blocks = read_blocks(args.conf_file)
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
    names = {policy_kwargs.get("memory", "shm"), name}
    if len(names) == 1 or names == {"shm", "shm_paper"}:
        new_kwargs = {**old_kwargs, **new_kwargs}
    try:
        make_memory(name, 1, new_kwargs)
    except (TypeError, ValueError) as error:
        parser.error(f"--memory {' '.join(args.memory)}: {error}")
    return {**policy_kwargs, "memory": name, "memory_kwargs": new_kwargs}
