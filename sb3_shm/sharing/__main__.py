"""The command line: between rl-zoo3's logs and the Hub."""

import argparse
import importlib
import reprlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm.files import folder_atomically
from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing.folder import (
    CONFIG,
    check_env_id,
    check_env_kwargs,
    check_registered,
    load_model_folder,
    read_config,
    save_model_folder,
    write_config,
)
from sb3_shm.sharing.hub import check_can_push, download, import_hub, push_to_hub
from sb3_shm.sharing.manifest import ALGORITHMS, MANIFEST, read_manifest
from sb3_shm.sharing.statistics import load_vec_normalize


def load_into_logs(
    repo_id: str,
    folder: str | Path = "logs",
    trust: bool = False,
    *,
    exp_id: int = 0,
    classes: Sequence[type] = (),
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """
    Put a shared model where rl-zoo3's ``enjoy`` finds it. rl-zoo3 unpickles, evaluates and imports what is in its folders, so
    every file there is written anew from what was read safely, and none is copied.

    :param repo_id: "user/name" of the model
    :param folder: rl-zoo3's folder of logs
    :param trust: unpickle ``model.zip``, and keep wrappers that the configuration names and all arguments of the environment
    :param exp_id: number of the experiment, which must not exist; 0 for the next
    :param classes: see :func:`load_from_hub`
    :param revision: see :func:`load_from_hub`
    :param token: see :func:`load_from_hub`
    :return: folder of the experiment
    :raises ValueError: the experiment exists; no ``trust``, and wrappers in the configuration, or other than plain values for
        arguments of the environment's own; and see :func:`load_from_hub`
    """
    check_in_range("exp_id", exp_id, low=0, integer=True)
    return unpack_into_logs(download(repo_id, trust, revision, token), folder, trust, exp_id=exp_id, classes=classes)


def unpack_into_logs(
    source: Path, folder: str | Path, trust: bool = False, *, exp_id: int = 0, classes: Sequence[type] = ()
) -> Path:
    """
    The same for a folder that is here already.

    :param source: folder of :func:`~sb3_shm.sharing.folder.save_model_folder`
    :param folder: see :func:`load_into_logs`, as the other arguments
    :return: folder of the experiment
    :raises ValueError: see :func:`load_into_logs`
    """
    manifest = read_manifest(source)
    environment = manifest.get("environment")
    env_id, env_kwargs = (environment.get(key) if isinstance(environment, dict) else None for key in ("id", "kwargs"))
    check_env_id(env_id)
    if not trust:
        check_env_kwargs(str(env_id), {} if env_kwargs is None else env_kwargs, MANIFEST)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model wants normalised")  # which enjoy does
        model = load_model_folder(source, trust, device="cpu", classes=classes)
    vec_normalize = load_vec_normalize(source)
    config = read_config(source / CONFIG)
    wrappers = {key: config[key] for key in ("env_wrapper", "vec_env_wrapper", "callback") if config.get(key)}
    if not trust:
        if wrappers:
            raise ValueError(
                f"{CONFIG} makes rl-zoo3 import {reprlib.repr(wrappers)}: if you trust who shared it, pass trust=True"
            )
        # Strings are what rl-zoo3 evaluates
        config = {key: value for key, value in config.items() if value is None or isinstance(value, bool | int | float)}
    config["normalize"] = False
    if vec_normalize is not None:
        config["normalize"] = {"norm_obs": vec_normalize.norm_obs, "norm_reward": False}

    name = str(env_id).replace("/", "-")
    algo_folder = Path(folder) / str(manifest["algorithm"])
    path: Path = algo_folder / f"{name}_{exp_id or _latest_experiment(algo_folder, name) + 1}"
    if path.exists():
        raise ValueError(f"{path} exists: choose another exp_id, or 0 for the next")
    with folder_atomically(path) as part:
        (part / name).mkdir()
        model.save(part / f"{name}.zip")
        if vec_normalize is not None:
            vec_normalize.save(str(part / name / "vecnormalize.pkl"))
        write_config(part / name / "config.yml", config)
        write_config(part / name / "args.yml", {"env_kwargs": env_kwargs or {}})
    return path


def _latest_experiment(algo_folder: Path, name: str) -> int:
    numbers = [path.name[len(name) + 1 :] for path in algo_folder.glob(f"{name}_*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _read_logs(args: argparse.Namespace) -> dict[str, Any]:
    """:return: what rl-zoo3's ``train`` left, as arguments of :func:`~sb3_shm.sharing.folder.save_model_folder`"""
    check_env_id(args.env)
    for package in args.gym_packages:
        importlib.import_module(package)
    check_registered(args.env, "--gym-packages PACKAGE")
    check_in_range("exp_id", args.exp_id, low=0, integer=True)
    name = args.env.replace("/", "-")
    algo_folder = Path(args.folder) / args.algo
    file = "best_model.zip" if args.load_best else f"{name}.zip"
    # The latest that has a model: a training that failed has none
    latest = _latest_experiment(algo_folder, name)
    with_model = (n for n in range(latest, 0, -1) if any((algo_folder / f"{name}_{n}").glob("*.zip")))
    path: Path = algo_folder / f"{name}_{args.exp_id or next(with_model, latest)}"
    archive = path / file
    if not archive.is_file():
        what = f"model {archive}" if algo_folder.is_dir() else f"folder {algo_folder}"
        raise ValueError(f"There is no {what}: train one, or give --folder, --exp-id or --load-best")
    config = read_config(path / name / "config.yml")
    for key in ("env_wrapper", "vec_env_wrapper", "frame_stack"):
        if config.get(key):
            raise ValueError(f"The configuration has a {key}: push the model from Python, with push_to_hub(..., eval_env=...)")
    arguments = path / name / "args.yml"
    env_kwargs = {
        **(config.get("env_kwargs") or {}),
        **((arguments.is_file() and read_config(arguments).get("env_kwargs")) or {}),
    }
    if not args.trust:
        check_env_kwargs(args.env, env_kwargs, "config.yml and args.yml")
    render = {"render_mode": "rgb_array"} if args.video_length else {}
    env = make_vec_env(args.env, env_kwargs={**env_kwargs, **render})
    statistics = path / name / "vecnormalize.pkl"
    if statistics.is_file():
        env = VecNormalize.load(str(statistics), env)
    print(f"Evaluating {archive} in {args.n_eval_episodes} episodes", file=sys.stderr)  # stdout has the result alone
    has_curve = (path / "evaluations.npz").is_file() or any(path.glob("*monitor.csv"))
    return dict(
        model=ALGORITHMS[args.algo].load(archive, device="cpu"),
        env_id=args.env,
        eval_env=env,
        n_eval_episodes=args.n_eval_episodes,
        env_kwargs=env_kwargs,
        config=config,
        logs=path if has_curve else None,
        video_length=args.video_length,
    )


def _pack(args: argparse.Namespace) -> Path:
    """A folder of what is read without unpickling, where :func:`~sb3_shm.zoo.folders.unpacked` finds it."""
    what = _read_logs(args)
    algo_folder = Path(args.output) / args.algo
    name = args.env.replace("/", "-")
    path: Path = algo_folder / f"{name}_{_latest_experiment(algo_folder, name) + 1}"
    save_model_folder(folder=path, repo_id=None, **what)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line, None for those of this process
    :return: exit status: 0, or 1 after a message that says what is wrong
    """
    parser = argparse.ArgumentParser(prog="sb3-shm hub", description="Share models on the Hugging Face Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="evaluate a model of rl-zoo3's logs and share it")
    push.add_argument("repo_id", help="user/name that it gets on the Hub")
    push.add_argument("--private", action="store_true", help="only you see it")
    pack = commands.add_parser("pack", help="the same into a folder here, which anybody can read without unpickling")
    pack.add_argument("-o", "--output", default="trained", help="folder of packed models, one of which this becomes")
    for command in (push, pack):
        command.add_argument("--algo", default="shm_ppo", choices=list(ALGORITHMS), help="shm_ppo if left out")
        command.add_argument("--env", required=True, help="id of the environment")
        command.add_argument("-f", "--folder", default="logs", help="rl-zoo3's folder of logs")
        command.add_argument("--exp-id", type=int, default=0, help="number of the experiment, 0 for the latest")
        command.add_argument("--load-best", action="store_true", help="best_model.zip instead of the last model")
        command.add_argument("--n-eval-episodes", type=int, default=20)
        command.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
        command.add_argument("--video-length", type=int, default=0, help="steps to film, 0 for no video")
        command.add_argument("--trust", action="store_true", help="the environment's arguments in the logs may be anything")
    load = commands.add_parser("load", help="put a shared model into rl-zoo3's logs")
    load.add_argument("repo_id", help="user/name on the Hub")
    load.add_argument("-f", "--folder", default="logs", help="rl-zoo3's folder of logs")
    load.add_argument("--exp-id", type=int, default=0, help="number of the experiment, 0 for the next")
    load.add_argument("--trust", action="store_true", help="unpickle the model of whoever shared it")
    load.add_argument("--revision", help="branch, tag or commit")
    args = parser.parse_args(arguments)
    try:
        if args.command == "push":
            check_can_push(args.repo_id)  # before it evaluates for minutes
            print(push_to_hub(repo_id=args.repo_id, private=args.private or None, **_read_logs(args)))
        elif args.command == "pack":
            import_hub()  # writes the card
            print(_pack(args))
        else:
            print(load_into_logs(args.repo_id, args.folder, args.trust, exp_id=args.exp_id, revision=args.revision))
    except (ImportError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
