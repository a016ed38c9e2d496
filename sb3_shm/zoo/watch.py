"""``sb3-shm watch``: a trained agent's memory while it plays, on a page of this computer."""

import argparse
import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

import sb3_shm
from sb3_shm.envs import BATCHED_TASKS
from sb3_shm.envs.single import make_single
from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing.folder import (
    CONFIG,
    check_env_id,
    check_env_kwargs,
    check_registered,
    load_model_folder,
    read_config,
)
from sb3_shm.sharing.manifest import MANIFEST, Model, read_manifest, reading
from sb3_shm.sharing.statistics import load_vec_normalize
from sb3_shm.watch.page import check_port, import_gradio, launch, make_page
from sb3_shm.watch.recording import record
from sb3_shm.zoo.folders import (
    check_hyperparameters,
    check_one_model,
    experiments,
    holds_model,
    lacks_model,
    run_arguments,
    wanted_model,
)
from sb3_shm.zoo.registration import ALGORITHMS

_TRAIN = "sb3-shm train --env {env} -f logs"


def watch(arguments: Sequence[str]) -> None:
    """
    Play one episode, then show it on a page until the user ends it.

    :param arguments: of the command line
    :raises SystemExit: something is wrong; says in one line what to write instead
    """
    args = _parser().parse_args(arguments)
    try:
        check_in_range("--steps", args.steps, low=1, high=2000, integer=True)
        check_in_range("--seed", args.seed, low=0, high=2**32 - 1, integer=True)
        check_in_range("--exp-id", args.exp_id, low=0, integer=True)
        check_port(args.port)
        import_gradio()
        for package in args.gym_packages:
            importlib.import_module(package)
        path = find_agent(args)
        model, env, env_id = load_agent(path, args)
        env.seed(args.seed)  # the model, when it was set up, has seeded it with its own
        print(f"Recording an episode of {path} in {env_id}, of {args.steps} steps at most", flush=True)
        recording = record(model, env, args.steps)
        env.close()
        page = make_page(recording, env_id)
        launch(page, args.port, not args.no_browser)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"sb3-shm watch: {' '.join(str(error).split())}") from error
    print(f"The memory is on {page.local_url} (this computer only); Ctrl+C ends it", flush=True)
    page.block_thread()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3-shm watch", description="See an agent's memory while it plays, step by step.")
    parser.add_argument("--env", help="environment, RepeatPreviousEasy-v0 if left out")
    parser.add_argument("--algo", default="shm_ppo", choices=list(ALGORITHMS))
    parser.add_argument(
        "-f", "--folder", help="folder of logs or of packed agents, or a packed agent's own; default: trained/"
    )
    parser.add_argument("--exp-id", type=int, default=0, help="number of the experiment, 0 for the latest")
    parser.add_argument("--load-best", action="store_true", help="the best model of rl-zoo3's logs instead of the last")
    parser.add_argument("--load-checkpoint", type=int, metavar="STEPS", help="the model of rl-zoo3's logs after these steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last of these")
    parser.add_argument("--env-kwargs", nargs="+", default=[], metavar="NAME:VALUE", help="arguments of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
    parser.add_argument("--seed", type=int, default=0, help="of the episode")
    parser.add_argument("--steps", type=int, default=200, help="stop recording then, 2000 at most")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--no-browser", action="store_true", help="open no browser, print the address only")
    parser.add_argument("--trust", action="store_true", help="you trust whoever made the folder: unpickle its model")
    return parser


def find_agent(args: argparse.Namespace) -> Path:
    """
    :param args: ``folder``, ``env``, ``algo`` and ``exp_id``; ``folder`` None for the agents of a checkout, ``env`` None for
        RepeatPreviousEasy-v0
    :return: the folder of one agent
    :raises ValueError: there is none
    """
    env_id = args.env or "RepeatPreviousEasy-v0"
    train = _TRAIN.format(env=env_id)
    if args.folder is None:
        folder = Path(sb3_shm.__file__).resolve().parent.parent / "trained"
        if not folder.is_dir():
            raise ValueError(
                "the installed package has no agents: give -f trained of a clone of its repository, or train one by "
                f"`{train}` and give --env {env_id} -f logs --trust"
            )
    else:
        folder = Path(args.folder)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: give -f a folder of agents, or train one by `{train}`")
        if (folder / MANIFEST).is_file():
            return folder
        if of_run := run_arguments(folder, env_id, ALGORITHMS):
            raise ValueError(f"{folder} is the folder of one run: write {of_run}")
    check_env_id(env_id)
    found = [path for path in experiments(folder, args.algo, env_id, args.exp_id) if holds_model(path)]
    if not found:
        agents = sorted(path for path in folder.glob("*/*_*") if path.parent.name in ALGORITHMS and holds_model(path))
        of_agent = "--algo {0} --env {1} --exp-id {2}" if args.exp_id else "--algo {0} --env {1}"
        known = sorted({of_agent.format(path.parent.name, *path.name.rsplit("_", 1)) for path in agents})
        number = f" --exp-id {args.exp_id}" if args.exp_id else ""
        raise ValueError(
            f"{folder} holds no agent of {args.algo} for {env_id}{number}: "
            + (f"it has {'; '.join(known)}" if known else f"train one by `{train}` and give -f logs")
        )
    return found[-1]


def load_agent(path: Path, args: argparse.Namespace) -> tuple[Model, VecEnv, str]:
    """
    A packed agent is read without unpickling anything; any other one only if the user trusts its folder.

    :param path: folder of one agent
    :param args: the command's arguments
    :return: the model, one environment as it was trained in, and the environment's id
    :raises ValueError: the folder is damaged, or holds what only ``--trust`` allows
    """
    if (path / MANIFEST).is_file():
        check_one_model(args)
        environment = read_manifest(path).get("environment")
        if not isinstance(environment, dict):
            raise ValueError(f"{path / MANIFEST} names no environment")
        env_id, kwargs = environment.get("id"), environment.get("kwargs") or {}
        check_env_id(env_id)
        if args.env not in (None, env_id):
            raise ValueError(f"{path} holds an agent for {env_id}: give --env {env_id}")
        if not args.trust:
            check_env_kwargs(str(env_id), kwargs, MANIFEST)
        env = _make_env(str(env_id), kwargs, read_config(path / CONFIG) if (path / CONFIG).is_file() else {}, path, args)
        return load_model_folder(path, env=env, device="cpu"), env, str(env_id)

    env_id = args.env or "RepeatPreviousEasy-v0"
    if not args.trust:
        raise ValueError(
            f"{path} holds a pickled model, which can run anything when it is read: add --trust if you made it, or pack it by "
            f"`sb3-shm hub pack --algo {args.algo} --env {env_id} -f {args.folder}`"
        )
    name = env_id.replace("/", "-")
    wanted = argparse.Namespace(**{**vars(args), "env": env_id})
    archive = wanted_model(path, wanted)
    if not archive.is_file():
        raise ValueError(lacks_model(path, wanted))
    config = read_config(path / name / "config.yml")
    own = path / name / "args.yml"
    kwargs = {
        **(config.get("env_kwargs") or {}),
        **((own.is_file() and read_config(own).get("env_kwargs")) or {}),
    }
    env = _make_env(env_id, kwargs, config, path / name, args)
    model = reading(str(archive), lambda: ALGORITHMS[args.algo].load(archive, env=env, device="cpu"))
    return model, env, env_id


def _make_env(env_id: str, kwargs: dict[str, Any], config: dict[str, Any], folder: Path, args: argparse.Namespace) -> VecEnv:
    """:return: one environment that draws itself if it can, with its wrappers, statistics and stacked frames"""
    check_registered(env_id, "--gym-packages PACKAGE")
    for pair in args.env_kwargs:
        key, _, value = pair.partition(":")
        try:
            kwargs = {**kwargs, key: ast.literal_eval(value)}
        except (SyntaxError, ValueError) as error:
            raise ValueError(
                f"--env-kwargs takes NAME:VALUE with a plain value such as 3 or \"'text'\", got {pair!r}"
            ) from error
    if not args.trust:
        check_hyperparameters(config)

    def make() -> gym.Env[Any, Any]:
        if env_id in BATCHED_TASKS and not kwargs:
            # All of these can draw themselves, also those whose single environment is another's
            task, own = BATCHED_TASKS[env_id]
            return make_single(task, render_mode="rgb_array", **own)
        env = gym.make(env_id, **kwargs)
        if "render_mode" in kwargs or "rgb_array" not in env.metadata.get("render_modes", ()):
            return env
        env.close()
        return gym.make(env_id, **kwargs, render_mode="rgb_array")

    wrapper = None
    if config.get("env_wrapper"):
        from rl_zoo3.utils import get_wrapper_class

        wrapper = get_wrapper_class({"env_wrapper": config["env_wrapper"]})
    if config.get("vec_env_wrapper"):
        raise ValueError(
            f"the agent was trained with the vec_env_wrapper {config['vec_env_wrapper']}, which watch does not know"
        )
    env: VecEnv = reading(f"the environment {env_id}", lambda: make_vec_env(make, n_envs=1, wrapper_class=wrapper))
    if (folder / MANIFEST).is_file():
        env = load_vec_normalize(folder, env) or env
    elif (pickled := folder / "vecnormalize.pkl").is_file():
        statistics = reading(str(pickled), lambda: VecNormalize.load(str(pickled), env))
        statistics.training = statistics.norm_reward = False
        env = statistics
    n_frames = config.get("frame_stack")
    if n_frames:
        check_in_range("frame_stack in config.yml", n_frames, low=2, high=1024, integer=True)
        env = VecFrameStack(env, n_frames)
    return env
