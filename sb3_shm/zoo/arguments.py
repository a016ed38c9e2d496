"""From our arguments of ``train`` to rl-zoo3's."""

import argparse
import ast
import sys
from typing import Any

import yaml

from sb3_shm.memory import MEMORIES, make_memory
from sb3_shm.zoo.blocks import check_block, check_key, read_blocks
from sb3_shm.zoo.registration import ALGORITHMS, hyperparams_file


def train_arguments(arguments: list[str]) -> list[str]:
    """
    Translate the arguments of ``train``: fill in the file of hyperparameters, resolve ``--release`` and
    ``--memory``.

    :param arguments: the user's, rl-zoo3's and our own
    :return: rl-zoo3's
    :raises SystemExit: an illegal ``--memory`` or ``--release``; says why on stderr
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
    if args.release:
        if args.conf_file is not None or args.algo not in ALGORITHMS:
            parser.error(f"--release needs --algo {' or '.join(ALGORITHMS)} and excludes --conf-file")
        args.conf_file = str(hyperparams_file(args.algo, release=True))
        if args.env not in (blocks := read_blocks(args.conf_file)):
            parser.error(f"the release has settings of {args.algo} for {', '.join(blocks)}; got {args.env}")
    elif args.conf_file is None and args.algo in ALGORITHMS:
        args.conf_file = str(hyperparams_file(args.algo))
        _hint_at_version(args.env, args.conf_file)
    if args.algo in ALGORITHMS:
        try:
            if str(args.conf_file).endswith((".yml", ".yaml")):
                check_block(args.conf_file, args.env, args.algo)
            args.hyperparams = [_quoted(pair) for pair in args.hyperparams]
            for pair in args.hyperparams:
                check_key(pair.partition(":")[0], args.algo, "--hyperparams")
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


def _quoted(pair: str) -> str:
    """
    :param pair: ``key:value`` of ``--hyperparams``, whose value rl-zoo3 evaluates
    :return: the same, a plain text such as lin_0.001 or MlpSHMPolicy in quotes
    :raises ValueError: no colon, or a value that is not even a word
    """
    key, colon, value = pair.partition(":")
    if not colon or not value:
        raise ValueError(f"--hyperparams takes KEY:VALUE, such as learning_rate:0.001, got {pair!r}")
    try:
        ast.parse(value, mode="eval")
        is_name = value.isidentifier() and value not in ("True", "False", "None")
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
