"""
Share trained models on the Hugging Face Hub::

    python -m sb3_shm.sharing.hub push user/name --algo shm_ppo --env CartPoleNoVel-v0 -f logs
    python -m sb3_shm.sharing.hub load user/name -f logs

A model there is a folder (:func:`~sb3_shm.sharing.folder.save_model_folder`): what :mod:`sb3_shm.sharing.safe_format` writes and reads
without unpickling anything, and the same as Stable-Baselines3 saves it, in ``model.zip`` and ``vec_normalize.pkl``, for other
tools and for ``trust=True``.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_shm
from sb3_shm.files import folder_atomically
from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing.card import CURVE, VIDEO
from sb3_shm.sharing.folder import (
    CONFIG,
    PICKLE,
    RESULTS,
    ZIP,
    check_env_id,
    check_registered,
    check_repo_id,
    load_model_folder,
    read_config,
    save_model_folder,
    write_config,
)
from sb3_shm.sharing.safe_format import ALGORITHMS, MANIFEST, STATISTICS, WEIGHTS, Model, load_vec_normalize, read_manifest


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("The Hub needs further packages: pip install 'sb3-shm[hub]'") from error
    return huggingface_hub


@contextmanager
def _talking_to_the_hub() -> Iterator[None]:
    """The client lets errors of its HTTP library through, which differs between its versions: they become OSErrors."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"The connection to the Hub failed: {error.__cause__ or error}") from error


def push_to_hub(
    model: Model,
    repo_id: str,
    env_id: str,
    eval_env: gym.Env[Any, Any] | VecEnv | None = None,
    *,
    private: bool | None = None,
    commit_message: str = "Share a model of sb3-shm",
    token: str | None = None,
    **kwargs: Any,
) -> str:
    """
    Evaluate a model and share it.

    :param model: a trained SHMPPO or SHMSAC
    :param repo_id: "user/name", made if there is no such model yet
    :param env_id: id of the environment
    :param eval_env: environment(s) to evaluate in; None to make one
    :param private: whether only you can see a new model; None for what your account does by default
    :param commit_message: message in the model's history
    :param token: the Hub's access token; None for that of ``hf auth login`` or HF_TOKEN. It is given to the Hub only.
    :param kwargs: further arguments of :func:`~sb3_shm.sharing.folder.save_model_folder`
    :return: address of the model's page
    :raises ValueError: you are not logged in; and see :func:`~sb3_shm.sharing.folder.save_model_folder`
    :raises OSError: the Hub cannot be reached, or refuses
    """
    hub = _import_hub()
    check_repo_id(repo_id)
    if token is None and hub.get_token() is None:
        raise ValueError("You are not logged in to the Hub: run `hf auth login`, set HF_TOKEN or pass token=")
    with TemporaryDirectory() as folder:
        save_model_folder(model, folder, repo_id, env_id, eval_env, **kwargs)
        api = hub.HfApi(token=token, library_name="sb3-shm", library_version=sb3_shm.__version__)
        # What an earlier model had and this one lacks
        old = [CURVE, VIDEO, PICKLE, STATISTICS]
        with _talking_to_the_hub():
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=old)
    return str(url)


def _download(repo_id: str, trust: bool, revision: str | None, token: str | None) -> Path:
    hub = _import_hub()
    check_repo_id(repo_id)
    # Nothing that could be unpickled unless it is to be
    files = [MANIFEST, WEIGHTS, STATISTICS, CONFIG, RESULTS] + [ZIP] * trust
    try:
        with _talking_to_the_hub():
            path = hub.snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=files,
                library_name="sb3-shm",
                library_version=sb3_shm.__version__,
            )
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        of = f" with the revision {revision!r}" if revision else ""
        raise ValueError(
            f"The Hub has no model {repo_id!r}{of}, or it is private and you are not logged in (`hf auth login`)"
        ) from error
    return Path(path)


def load_from_hub(
    repo_id: str,
    trust: bool = False,
    env: gym.Env[Any, Any] | VecEnv | None = None,
    *,
    device: th.device | str = "auto",
    classes: Sequence[type] = (),
    revision: str | None = None,
    token: str | None = None,
) -> Model:
    """
    Load a shared model. By default no file is unpickled, which could execute anything: weights are read from safetensors, the
    rest from JSON. The model acts as it did, but its optimizers are new.

    If the model was trained with a VecNormalize, ``env`` gets it, with the shared statistics: act in ``model.get_env()``. To
    train on, set its ``training`` and ``norm_reward``, which are off.

    :param repo_id: "user/name" of the model
    :param trust: unpickle ``model.zip`` of whoever shared it, so that the state of the optimizers is there, too
    :param env: environment(s) for the model, None for none
    :param device: "auto", "cpu", "cuda", ...
    :param classes: memories, features extractors or policies of your own that the model names; with ``trust=True`` they are
        imported
    :param revision: branch, tag or commit of the model; None for the newest
    :param token: the Hub's access token, for private models; None for that of ``hf auth login`` or HF_TOKEN
    :return: the model, an SHMPPO or SHMSAC
    :raises ValueError: no such model, not one of this package, of a newer one, damaged, with classes that are not known, or
        an ``env`` that does not fit
    :raises OSError: the Hub cannot be reached, or refuses
    """
    return load_model_folder(_download(repo_id, trust, revision, token), trust, env, device, classes)


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
    :param trust: unpickle ``model.zip``, and keep wrappers that the configuration names
    :param exp_id: number of the experiment, which must not exist; 0 for the next
    :param classes: see :func:`load_from_hub`
    :param revision: see :func:`load_from_hub`
    :param token: see :func:`load_from_hub`
    :return: folder of the experiment
    :raises ValueError: the experiment exists; wrappers in the configuration and no ``trust``; and see :func:`load_from_hub`
    """
    check_in_range("exp_id", exp_id, low=0, integer=True)
    source = _download(repo_id, trust, revision, token)
    manifest = read_manifest(source)
    environment = manifest.get("environment")
    env_id, env_kwargs = (environment.get(key) if isinstance(environment, dict) else None for key in ("id", "kwargs"))
    check_env_id(env_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model wants normalised")  # which enjoy does
        model = load_model_folder(source, trust, device="cpu", classes=classes)
    vec_normalize = load_vec_normalize(source)
    config = read_config(source / CONFIG)
    wrappers = {key: config[key] for key in ("env_wrapper", "vec_env_wrapper", "callback") if config.get(key)}
    if not trust:
        if wrappers:
            raise ValueError(f"{CONFIG} makes rl-zoo3 import {wrappers}: if you trust who shared it, pass trust=True")
        # Strings are what rl-zoo3 evaluates
        config = {key: value for key, value in config.items() if value is None or isinstance(value, bool | int | float)}
    config["normalize"] = False
    if vec_normalize is not None:
        config["normalize"] = {"norm_obs": vec_normalize.norm_obs, "norm_reward": False}

    name = str(env_id).replace("/", "-")
    algo_folder = Path(folder) / str(manifest["algorithm"])
    path = algo_folder / f"{name}_{exp_id or _latest_experiment(algo_folder, name) + 1}"
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


def _push_from_logs(args: argparse.Namespace) -> str:
    """Push what rl-zoo3's ``train`` left."""
    check_env_id(args.env)
    check_registered(args.env)
    check_in_range("exp_id", args.exp_id, low=0, integer=True)
    name = args.env.replace("/", "-")
    algo_folder = Path(args.folder) / args.algo
    path = algo_folder / f"{name}_{args.exp_id or _latest_experiment(algo_folder, name)}"
    archive = path / ("best_model.zip" if args.load_best else f"{name}.zip")
    if not archive.is_file():
        raise ValueError(f"There is no model {archive}: train one, or give --folder, --exp-id or --load-best")
    config = read_config(path / name / "config.yml")
    for key in ("env_wrapper", "vec_env_wrapper", "frame_stack"):
        if config.get(key):
            raise ValueError(f"The configuration has a {key}: push the model from Python, with push_to_hub(..., eval_env=...)")
    arguments = path / name / "args.yml"
    env_kwargs = {
        **(config.get("env_kwargs") or {}),
        **((arguments.is_file() and read_config(arguments).get("env_kwargs")) or {}),
    }
    render = {"render_mode": "rgb_array"} if args.video_length else {}
    env = make_vec_env(args.env, env_kwargs={**env_kwargs, **render})
    statistics = path / name / "vecnormalize.pkl"
    if statistics.is_file():
        env = VecNormalize.load(str(statistics), env)
    has_curve = (path / "evaluations.npz").is_file() or any(path.glob("*monitor.csv"))
    return push_to_hub(
        ALGORITHMS[args.algo].load(archive, device="cpu"),
        args.repo_id,
        args.env,
        env,
        private=args.private or None,
        n_eval_episodes=args.n_eval_episodes,
        env_kwargs=env_kwargs,
        config=config,
        logs=path if has_curve else None,
        video_length=args.video_length,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line, None for those of this process
    :return: exit status: 0, or 1 after a message that says what is wrong
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_shm.sharing.hub", description="Share models on the Hugging Face Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="evaluate a model of rl-zoo3's logs and share it")
    push.add_argument("repo_id", help="user/name that it gets on the Hub")
    push.add_argument("--algo", required=True, choices=list(ALGORITHMS))
    push.add_argument("--env", required=True, help="id of the environment")
    push.add_argument("-f", "--folder", default="logs", help="rl-zoo3's folder of logs")
    push.add_argument("--exp-id", type=int, default=0, help="number of the experiment, 0 for the latest")
    push.add_argument("--load-best", action="store_true", help="best_model.zip instead of the last model")
    push.add_argument("--n-eval-episodes", type=int, default=20)
    push.add_argument("--video-length", type=int, default=0, help="steps to film, 0 for no video")
    push.add_argument("--private", action="store_true", help="only you see it")
    load = commands.add_parser("load", help="put a shared model into rl-zoo3's logs")
    load.add_argument("repo_id", help="user/name on the Hub")
    load.add_argument("-f", "--folder", default="logs", help="rl-zoo3's folder of logs")
    load.add_argument("--exp-id", type=int, default=0, help="number of the experiment, 0 for the next")
    load.add_argument("--trust", action="store_true", help="unpickle the model of whoever shared it")
    load.add_argument("--revision", help="branch, tag or commit")
    args = parser.parse_args(arguments)
    try:
        if args.command == "push":
            print(_push_from_logs(args))
        else:
            print(load_into_logs(args.repo_id, args.folder, args.trust, exp_id=args.exp_id, revision=args.revision))
    except (ImportError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
