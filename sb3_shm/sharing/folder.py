"""A model as the folder that is shared: the model, how it was trained, what it reaches, and the page that says so."""

import inspect
import json
import re
import reprlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

import sb3_shm
from sb3_shm.envs.single import make_single
from sb3_shm.files import folder_atomically, write_atomically
from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing import card as model_card
from sb3_shm.sharing.manifest import ALGORITHMS, Model, algorithm_name, read_manifest, reading
from sb3_shm.sharing.safe_format import load_folder, save_folder
from sb3_shm.sharing.statistics import load_vec_normalize

try:
    import yaml
except ImportError as error:
    raise ImportError("Sharing models needs further packages: pip install 'sb3-shm[hub]'") from error

ZIP, PICKLE, CONFIG, RESULTS = "model.zip", "vec_normalize.pkl", "config.yml", "results.json"


def check_repo_id(repo_id: str) -> None:
    if not isinstance(repo_id, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f'repo_id must be "user/name" or "organisation/name", got {repo_id!r}')


def check_env_id(env_id: Any) -> None:
    """The id becomes the name of files and folders, and ``module:Id`` would make Gymnasium import a module."""
    is_short = isinstance(env_id, str) and len(env_id.encode(errors="replace")) <= 200  # as a file's name must be
    parts = env_id.split("/") if is_short else []
    if not 1 <= len(parts) <= 2 or any(not re.fullmatch(r"[\w.-]+", part) or part in (".", "..") for part in parts):
        raise ValueError(
            f'env_id must be an id of letters, digits, "_", "-" and "." such as "CartPoleNoVel-v0", of up to 200 bytes; '
            f"got {reprlib.repr(env_id)}"
        )


def check_registered(env_id: str, otherwise: str = "import that first, or give push_to_hub an eval_env") -> None:
    if env_id not in gym.registry:
        near = ", ".join(get_close_matches(env_id, gym.registry, n=3)) or "none"
        raise ValueError(f"Unknown environment {env_id!r}, the nearest ids are {near}; one of another package: {otherwise}")


def own_arguments(env_id: str) -> set[str]:
    """
    :param env_id: a registered environment
    :return: names of the arguments that its own signature takes; not those behind ``**kwargs``, except of base classes
    """
    spec = gym.spec(env_id)
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    taken = set()
    if creator is make_single:  # which hands its arguments on to the task that the registration names
        creator = load_env_creator(spec.kwargs["task"])
        taken = {"n_envs"}
    names = {"render_mode"}  # of gym.make, for all
    for called in creator.__mro__ if isinstance(creator, type) else [creator]:
        parameters = inspect.signature(called).parameters.values()
        names |= {part.name for part in parameters if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)}
        if not any(part.kind is part.VAR_KEYWORD for part in parameters):
            break
    return names - taken


def check_env_kwargs(env_id: str, env_kwargs: Any, where: str) -> None:
    """
    Of a stranger's file: an argument may make the environment import what the stranger names.

    :param env_id: the environment
    :param env_kwargs: arguments for ``gym.make``
    :param where: the file that they are from
    :raises ValueError: other than plain values for arguments that the environment's own signature takes
    """
    hint = "if you trust whoever made the file, say so (trust=True, --trust)"
    if not isinstance(env_kwargs, dict):
        raise ValueError(f"The environment's arguments in {where} must be a mapping, got {reprlib.repr(env_kwargs)}")
    if not env_kwargs:
        return
    check_registered(env_id)
    if unknown := env_kwargs.keys() - own_arguments(env_id):
        raise ValueError(f"{env_id} has no argument of its own {reprlib.repr(sorted(map(str, unknown)))} ({where}): {hint}")
    values = list(env_kwargs.items())
    while values:
        name, value = values.pop()
        if isinstance(value, list):
            values += [(name, item) for item in value]
        elif isinstance(value, dict):
            values += [(name, item) for pair in value.items() for item in pair]
        elif not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"{name} of {env_id} in {where} must be a plain value, got {reprlib.repr(value)}: {hint}")
        elif isinstance(value, str) and re.match(r"[\w.]+:[\w.]", value):
            raise ValueError(f"{name} of {env_id} in {where} looks like something to import, {reprlib.repr(value)}: {hint}")


class ConfigLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that executes nothing, and knows the two Python types that rl-zoo3 writes."""


MAX_CONFIG = 1 << 16
"""Bytes of a stranger's YAML, which takes 8 seconds a MB to read."""
_TAG = "tag:yaml.org,2002:python/"
ConfigLoader.add_constructor(
    f"{_TAG}object/apply:collections.OrderedDict",
    lambda loader, node: dict(loader.construct_sequence(node, deep=True)[0]),
)
ConfigLoader.add_constructor(f"{_TAG}tuple", lambda loader, node: list(loader.construct_sequence(node, deep=True)))


def read_config(path: Path) -> dict[str, Any]:
    """
    :param path: YAML file with hyperparameters or arguments, of rl-zoo3 or of the Hub
    :return: its content, plain values only
    :raises ValueError: the file is damaged or large, holds Python objects, or is no mapping
    """
    if not path.is_file():  # a link to a device has no end, a pipe no beginning
        raise ValueError(f"There is no file {path.name}")
    if (size := path.stat().st_size) > MAX_CONFIG:
        raise ValueError(f"{path.name} must have no more than {MAX_CONFIG} bytes, got {size}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)  # a SafeLoader
    except Exception as error:  # whatever a stranger makes YAML say
        raise ValueError(f"{path.name} must be YAML of plain values, without Python objects: {error!r}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} must be a mapping, got {type(config).__name__}")
    return config


def write_config(path: Path, config: dict[str, Any]) -> None:
    """
    :param path: YAML file to write
    :param config: plain values
    """
    write_atomically(path, yaml.safe_dump(config))


def _as_vec_env(env: gym.Env[Any, Any] | VecEnv | str) -> VecEnv:
    if isinstance(env, str):
        check_registered(env)
        return make_vec_env(env)
    return env if isinstance(env, VecEnv) else DummyVecEnv([lambda: Monitor(env)])


@contextmanager
def _frozen(vec_normalize: VecNormalize | None) -> Iterator[None]:
    """While this lasts the statistics stay as they are and rewards as the environment gives them."""
    if vec_normalize is None:
        yield
        return
    before = vec_normalize.training, vec_normalize.norm_reward
    vec_normalize.training = vec_normalize.norm_reward = False
    try:
        yield
    finally:
        vec_normalize.training, vec_normalize.norm_reward = before


def save_model_folder(
    model: Model,
    folder: str | Path,
    repo_id: str | None,
    env_id: str,
    eval_env: gym.Env[Any, Any] | VecEnv | None = None,
    n_eval_episodes: int = 20,
    env_kwargs: dict[str, Any] | None = None,
    logs: str | Path | None = None,
    config: dict[str, Any] | None = None,
    video_length: int = 0,
) -> None:
    """
    Write all that is shared: the model, config.yml, results.json of an evaluation, README.md (the model card) and, if asked
    for, learning curve and video. No replay buffer, no path of this computer.

    :param model: a trained SHMPPO or SHMSAC
    :param folder: folder to write into, made if necessary; what is there stays until all is complete
    :param repo_id: "user/name" that the model will have on the Hub; None for a folder that stays one, with nothing in it that
        would have to be unpickled
    :param env_id: id of the environment, as in ``gym.make(env_id)``
    :param eval_env: environment(s) to evaluate in; None to make one. Without a VecNormalize of its own it gets the model's.
    :param n_eval_episodes: episodes of the evaluation, at least 1
    :param env_kwargs: arguments of the environment, as in ``gym.make(env_id, **env_kwargs)``
    :param logs: folder with ``evaluations.npz`` or ``*.monitor.csv`` for a learning curve; None for no curve
    :param config: rl-zoo3's hyperparameters; None for the model's arguments
    :param video_length: steps to film, 0 for no video
    :raises ValueError: an unknown environment, one that does not fit the model, or another argument out of range
    """
    algorithm_name(model)
    if repo_id is not None:
        check_repo_id(repo_id)
    check_env_id(env_id)
    check_in_range("n_eval_episodes", n_eval_episodes, low=1, integer=True)
    check_in_range("video_length", video_length, low=0, integer=True)
    env_kwargs = env_kwargs or {}
    if eval_env is None:
        check_registered(env_id)
        render = {"render_mode": "rgb_array"} if video_length else {}
        eval_env = make_vec_env(env_id, env_kwargs={**env_kwargs, **render})
    env = _as_vec_env(eval_env)
    vec_normalize = unwrap_vec_normalize(env) or model.get_vec_normalize_env()

    with folder_atomically(folder) as part:
        save_folder(model, part, dict(id=env_id, kwargs=env_kwargs), vec_normalize)
        manifest = read_manifest(part)
        if repo_id is not None:
            model.save(part / ZIP, exclude=["tensorboard_log"])
        if vec_normalize is not None:
            if repo_id is not None:
                vec_normalize.save(str(part / PICKLE))
            if unwrap_vec_normalize(env) is None:
                env = load_vec_normalize(part, env) or env
        if config is None:
            plain = {name: value for name, value in manifest["arguments"].items() if not isinstance(value, list | dict)}
            config = {
                "policy": manifest["policy"],
                "n_envs": manifest["n_envs"],
                **plain,
                "normalize": vec_normalize is not None,
            }
        write_config(part / CONFIG, config)

        env = model._wrap_env(env, verbose=0)
        check_for_correct_spaces(env, model.observation_space, model.action_space)
        with _frozen(unwrap_vec_normalize(env)):
            results = model_card.evaluate(model, env, n_eval_episodes)
            if video_length:
                model_card.record_video(model, env, video_length, part / model_card.VIDEO)
        results = {"env_id": env_id, "algorithm": manifest["algorithm"], **results}
        (part / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
        if logs is not None:
            model_card.plot_learning_curve(Path(logs), part / model_card.CURVE)
        model_card.write_card(part, repo_id, manifest, results, type(model).__name__)


def load_model_folder(
    folder: str | Path,
    trust: bool = False,
    env: gym.Env[Any, Any] | VecEnv | str | None = None,
    device: th.device | str = "auto",
    classes: Sequence[type] = (),
) -> Model:
    """
    Load a folder that :func:`save_model_folder` wrote; arguments as of :func:`~sb3_shm.sharing.hub.load_from_hub`.

    :param folder: the folder
    :param trust: unpickle ``model.zip``, so that the state of the optimizers is there, too
    :param env: environment(s) for the model, or the id of one
    :param device: "auto", "cpu", "cuda", ...
    :param classes: classes of your own that the model names
    :return: the model
    :raises ValueError: see :func:`~sb3_shm.sharing.hub.load_from_hub`
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    theirs, ours = (re.match(r"\d+\.\d+", str(version)) for version in (manifest.get("version"), sb3_shm.__version__))
    if theirs is None or ours is None or theirs[0] != ours[0]:
        warnings.warn(
            f"sb3-shm {manifest.get('version')} made this model, this is {sb3_shm.__version__}: it may act differently",
            stacklevel=2,
        )
    vec_env = None if env is None else _as_vec_env(env)
    if vec_env is not None and unwrap_vec_normalize(vec_env) is None:
        vec_env = load_vec_normalize(folder, vec_env) or vec_env
    elif vec_env is None and manifest.get("vec_normalize") is not None:
        warnings.warn("The model wants normalised observations: pass env= and act in model.get_env()", stacklevel=2)
    if not trust:
        return load_folder(folder, vec_env, device, classes)

    def load() -> Model:
        with zipfile.ZipFile(folder / ZIP) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{broken} in it is damaged")
            if missing := {"data", "policy.pth"} - set(archive.namelist()):
                raise ValueError(f"no model of Stable-Baselines3, it has no {', '.join(sorted(missing))}")
        return ALGORITHMS[manifest["algorithm"]].load(folder / ZIP, env=vec_env, device=device)  # type: ignore[no-any-return]

    return reading(ZIP, load)  # type: ignore[no-any-return]
