"""rl-zoo3 reads its folders with YAML's unsafe loader, evaluates texts in them and imports what they name. Not here."""

import argparse
import ast
import importlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import yaml

from sb3_shm.sharing.__main__ import unpack_into_logs
from sb3_shm.sharing.folder import ConfigLoader, check_env_kwargs
from sb3_shm.sharing.manifest import MANIFEST
from sb3_shm.zoo.exchange import exchanged

# Modules whose wrappers a folder may name: they do nothing but wrap
_WRAPPERS = ("rl_zoo3.wrappers", "sb3_shm.envs.wrappers")


def _refuse(what: str, error: Exception) -> SystemExit:
    return SystemExit(
        f"{what} would let rl-zoo3 run what a stranger wrote: {error}\n"
        "If you trust whoever made the folder, for example yourself, add --trust. What it means: docs/zoo.md."
    )


def check_hyperparameters(config: dict[str, Any]) -> None:
    """
    :param config: what a config.yml holds
    :raises ValueError: rl-zoo3 would evaluate its ``normalize``, or import a wrapper from elsewhere than the known modules
    """
    normalize = config.get("normalize")
    if isinstance(normalize, str):  # which rl-zoo3 evaluates
        try:
            normalize = ast.literal_eval(normalize)
        except Exception as error:
            raise ValueError(f"normalize must be true, false or a mapping, got {normalize[:200]!r}") from error
    if not (normalize is None or isinstance(normalize, bool | dict)):
        raise ValueError(f"normalize must be true, false or a mapping, got a {type(normalize).__name__}")
    for key in ("env_wrapper", "vec_env_wrapper"):
        wrappers = config.get(key) or []
        for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
            names = list(wrapper) if isinstance(wrapper, dict) else [wrapper]
            for name in names:
                module, _, attribute = str(name).rpartition(".")
                found: Any = getattr(importlib.import_module(module), attribute, None) if module in _WRAPPERS else None
                if not (
                    isinstance(found, type)
                    and issubclass(found, gym.Wrapper)
                    and f"{found.__module__}.".startswith(f"{module}.")
                ):
                    raise ValueError(f"{key} must be of {' or '.join(_WRAPPERS)}, got {str(name)[:200]!r}")


class _FolderLoader(ConfigLoader):
    """In the place of YAML's unsafe loader."""

    def __init__(self, stream: Any) -> None:
        try:
            super().__init__(stream)
        except Exception as error:  # a character that YAML does not know
            raise _refuse(str(stream.name), error) from error

    def get_single_data(self) -> Any:
        try:
            data = super().get_single_data()
            if not isinstance(data, dict):
                raise ValueError(f"it must be a mapping, got a {type(data).__name__}")
            check_hyperparameters(data)
            return data
        except yaml.error.MarkedYAMLError as error:
            if isinstance(error, yaml.constructor.ConstructorError):  # of Python's objects
                raise _refuse(str(self.name), error) from error
            raise SystemExit(f"{self.name} is damaged: {' '.join(str(error).split())}") from error
        except Exception as error:
            raise _refuse(str(self.name), error) from error


@contextmanager
def reading_safely() -> Iterator[None]:
    """
    While this lasts, rl-zoo3 reads ``config.yml`` and ``args.yml`` of plain values only and makes environments with plain
    values for their own arguments only; anything else ends the program and says so. It still unpickles models (``.zip``) and
    ``vecnormalize.pkl``.

    Names are exchanged because rl-zoo3's commands read and evaluate their folders within one long function each, which takes
    no loader and calls no hook in between.
    """
    import rl_zoo3.enjoy
    import rl_zoo3.utils

    create: Callable[..., Any] = rl_zoo3.utils.create_test_env

    def create_test_env(env_id: str, *args: Any, env_kwargs: Any = None, **kwargs: Any) -> Any:
        try:
            check_env_kwargs(env_id, env_kwargs or {}, "config.yml, args.yml or --env-kwargs")
        except ValueError as error:
            raise _refuse("The folder, or your --env-kwargs,", error) from error
        try:
            return create(env_id, *args, env_kwargs=env_kwargs, **kwargs)
        except (EOFError, UnpicklingError) as error:
            raise SystemExit(f"vecnormalize.pkl in {kwargs.get('stats_path')} is damaged: {error}") from error

    modules: Any = (rl_zoo3, rl_zoo3.utils, rl_zoo3.enjoy)
    ours = [(module, "create_test_env", create_test_env) for module in modules]
    with exchanged((yaml, "UnsafeLoader", _FolderLoader), *ours):
        yield


def experiments(folder: str | Path, algo: str, env_id: str, exp_id: int = 0) -> list[Path]:
    """
    :param folder: rl-zoo3's folder of logs, or one of packed agents
    :param algo: rl-zoo3's name of the algorithm
    :param env_id: id of the environment
    :param exp_id: number of the experiment, 0 for all
    :return: folders of experiments, the latest last
    """
    found = Path(folder, algo).glob(f"{env_id.replace('/', '-')}_{exp_id or '*'}")
    numbered = [path for path in found if path.name.rpartition("_")[2].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("_")[2]))


def holds_model(path: Path) -> bool:
    """
    :param path: folder of an experiment
    :return: whether there is a model in it, as a training that failed leaves none
    """
    return (path / MANIFEST).is_file() or any(path.glob("*.zip"))


def wanted_model(path: Path, args: argparse.Namespace) -> Path:
    """
    :param path: folder of an experiment
    :param args: ``env``, ``load_best``, ``load_checkpoint`` and ``load_last_checkpoint`` of the command line
    :return: file of the model that these mean, whether it is there or not
    """
    if args.load_best:
        return path / "best_model.zip"
    if args.load_checkpoint is not None:
        return path / f"rl_model_{args.load_checkpoint}_steps.zip"
    if args.load_last_checkpoint:
        return path / f"rl_model_{max(_checkpoints(path), default='...')}_steps.zip"
    return path / f"{args.env.replace('/', '-')}.zip"


def _checkpoints(path: Path) -> list[int]:
    steps = [file.name.split("_")[-2] for file in path.glob("rl_model_*_steps.zip")]
    return sorted(int(number) for number in steps if number.isdecimal())


def lacks_model(path: Path, args: argparse.Namespace) -> str:
    """
    :param path: folder of an experiment, without the wanted model
    :param args: see :func:`wanted_model`
    :return: which models it has, and by which arguments they are meant
    """
    last, steps = f"{args.env.replace('/', '-')}.zip", _checkpoints(path)
    there = [f"{last} (without an argument --load-...)"] * (path / last).is_file()
    there += ["best_model.zip (--load-best)"] * (path / "best_model.zip").is_file()
    if steps:
        few = steps if len(steps) < 6 else [*steps[:2], "...", *steps[-2:]]
        there.append(f"checkpoints (--load-last-checkpoint, or --load-checkpoint {', '.join(map(str, few))})")
    return f"{path} holds no {wanted_model(path, args).name}, but {', '.join(there) or 'no model at all'}"


def _which_agent(command: str, arguments: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """
    :param command: of rl-zoo3
    :param arguments: its
    :return: a parser to say errors with, and the arguments by which the command finds an agent
    """
    parser = argparse.ArgumentParser(prog=f"sb3-shm {command}", add_help=False, usage=f"sb3-shm {command} --env ID -f FOLDER")
    parser.add_argument("--algo", default="shm_ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-f", "--folder", default="logs")
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint")
    parser.add_argument("--load-last-checkpoint", action="store_true")
    return parser, parser.parse_known_args(arguments)[0]


def run_arguments(folder: Path, env_id: str, algorithms: Container[str]) -> str | None:
    """
    :param folder: perhaps that of one run
    :param env_id: the environment that is asked for
    :param algorithms: names of those that are known
    :return: the arguments that name the run in the folder of all, None if it is none
    """
    run = folder.resolve()
    env, _, number = run.name.rpartition("_")
    if not (run.parent.name in algorithms and number.isdecimal() and run.is_dir() and holds_model(run)):
        return None
    env = env_id if env_id.replace("/", "-") == env else env
    return f"--algo {run.parent.name} --env {env} -f {run.parent.parent} --exp-id {number}"


def check_one_model(args: argparse.Namespace) -> None:
    """
    :param args: of a command that reads a packed agent
    :raises ValueError: they ask for another of its models than the one that it has
    """
    if args.load_best or args.load_checkpoint is not None or args.load_last_checkpoint:
        raise ValueError("a packed agent holds one model: leave out --load-best, --load-checkpoint and --load-last-checkpoint")


def check_has_model(command: str, arguments: list[str]) -> None:
    """
    :param command: of rl-zoo3
    :param arguments: its
    :raises SystemExit: the folder has nothing of this algorithm in this environment; says on stderr what it has
    """
    parser, args = _which_agent(command, arguments)
    from rl_zoo3.utils import ALGOS

    if args.algo not in ALGOS:  # which rl-zoo3 says
        return
    # --exp-id -1 looks for no numbered folder, and rl-zoo3 downloads its own agents
    if args.exp_id < 0 or {"-h", "--help"} & set(arguments) or "rl-trained-agents" in args.folder:
        return
    folder = Path(args.folder)
    if command == "enjoy" and (folder / MANIFEST).is_file():  # an agent's own folder
        return
    if folder.exists() and not folder.is_dir():
        parser.error(f"--folder must be a folder, such as logs, got the file {folder}")
    of_run = run_arguments(folder, args.env, ALGOS)
    if of_run and not experiments(folder, args.algo, args.env):
        parser.error(f"{folder} is the folder of one run: write {of_run}")
    with_model = [path for path in experiments(args.folder, args.algo, args.env, args.exp_id) if holds_model(path)]
    if with_model:
        latest = with_model[-1]
        if (latest / MANIFEST).is_file():
            if command == "enjoy":
                return
            parser.error(f"{latest} is a packed agent, which {command} cannot read: `sb3-shm enjoy` and `watch` can")
        if not wanted_model(latest, args).is_file():
            parser.error(lacks_model(latest, args))
        of_training = latest / args.env.replace("/", "-")
        if (of_training / "vecnormalize.pkl").is_file() and not (of_training / "config.yml").is_file():
            parser.error(f"{of_training} has no config.yml, without which {command} would not normalise what the agent sees")
        return
    if Path(args.folder, args.algo, f"{args.env.replace('/', '-')}.zip").is_file():  # a model without a folder of its own
        return
    numbered = (path for path in Path(args.folder).glob("*/*_*") if path.name.rpartition("_")[2].isdecimal())
    there = sorted(filter(holds_model, numbered))
    agents = dict.fromkeys(f"--algo {path.parent.name} --env {path.name.rpartition('_')[0]}" for path in there)
    listed = "".join(f"\n  -f {args.folder} {agent}" for agent in agents) or " no agent"
    ids = [path.name.rpartition("_")[2] for path in experiments(args.folder, args.algo, args.env) if holds_model(path)]
    number = f" with --exp-id {args.exp_id} ({', '.join(ids) or 'none'})" if args.exp_id else ""
    # As make train and the examples leave them
    own = sorted(Path(args.folder).glob("model.zip")) or sorted(Path(args.folder).glob("*/model.zip"))
    hint = f"\n{own[-1]} is from an example: python examples/act_with_memory.py --model {own[-1]}" if own else ""
    parser.error(f"no agent of --algo {args.algo} --env {args.env}{number} in {args.folder}, which has{listed}{hint}")


@contextmanager
def unpacked(arguments: list[str]) -> Iterator[list[str]]:
    """
    rl-zoo3's ``enjoy`` reads its own folders only. If the arguments name one that ``sb3-shm hub pack`` made, or an agent's
    own, it is read safely and becomes one of rl-zoo3's while this lasts. Without ``--exp-id`` the latest folder is meant that
    holds a model, as a training that failed leaves one without.

    :param arguments: of ``enjoy``
    :return: the same, with another ``--folder`` and ``--exp-id`` if need be
    :raises SystemExit: such a folder is damaged; says so on stderr
    """
    parser, args = _which_agent("enjoy", arguments)
    numbered = experiments(args.folder, args.algo, args.env, args.exp_id)
    with_model = [path for path in numbered if holds_model(path)]
    if Path(args.folder, MANIFEST).is_file():
        with_model = [Path(args.folder)]
    latest = with_model[-1] if with_model else None
    if latest is None or not (latest / MANIFEST).is_file():
        if latest is not None and latest is not numbered[-1]:
            print(f"{numbered[-1]} holds no model, so {latest} is played")
            arguments = [*arguments, "--exp-id", latest.name.rpartition("_")[2]]
        yield arguments
        return
    with TemporaryDirectory() as logs:
        try:
            check_one_model(args)
            agent = unpack_into_logs(latest, logs)
        except ValueError as error:
            parser.error(f"{latest}: {error}")
        if agent != Path(logs, args.algo, f"{args.env.replace('/', '-')}_1"):
            parser.error(f"{latest} holds an agent of --algo {agent.parent.name} --env {agent.name.rpartition('_')[0]}")
        yield [*arguments, "--folder", logs, "--exp-id", "0"]
