"""
Share trained models on the Hugging Face Hub::

    sb3-shm hub push user/name --algo shm_ppo --env CartPoleNoVel-v0 -f logs
    sb3-shm hub load user/name -f logs

A model there is a folder (:func:`~sb3_shm.sharing.folder.save_model_folder`): what :mod:`sb3_shm.sharing.safe_format` writes
and reads without unpickling anything, and the same as Stable-Baselines3 saves it, in ``model.zip`` and ``vec_normalize.pkl``,
for other tools and for ``trust=True``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env import VecEnv

import sb3_shm
from sb3_shm.sharing.card import CURVE, VIDEO
from sb3_shm.sharing.folder import (
    CONFIG,
    PICKLE,
    RESULTS,
    ZIP,
    check_repo_id,
    load_model_folder,
    save_model_folder,
)
from sb3_shm.sharing.manifest import MANIFEST, STATISTICS, WEIGHTS, Model


def check_can_push(repo_id: str, token: str | None = None) -> None:
    """
    :param repo_id: "user/name"
    :param token: the Hub's access token, None for the one that is kept
    :raises ValueError: no such name, or you are not logged in
    :raises ImportError: huggingface_hub is not installed
    """
    hub = import_hub()
    check_repo_id(repo_id)
    if token is None and hub.get_token() is None:
        raise ValueError("You are not logged in to the Hub: run `hf auth login`, set HF_TOKEN or pass token=")


def import_hub() -> Any:
    """
    :return: huggingface_hub
    :raises ImportError: it is not installed; says how to
    """
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
    check_can_push(repo_id, token)
    hub = import_hub()
    with TemporaryDirectory() as folder:
        save_model_folder(model, folder, repo_id, env_id, eval_env, **kwargs)
        api = hub.HfApi(token=token, library_name="sb3-shm", library_version=sb3_shm.__version__)
        # What an earlier model had and this one lacks
        old = [CURVE, VIDEO, PICKLE, STATISTICS]
        with _talking_to_the_hub():
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=old)
    return str(url)


def download(repo_id: str, trust: bool, revision: str | None, token: str | None) -> Path:
    hub = import_hub()
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
    return load_model_folder(download(repo_id, trust, revision, token), trust, env, device, classes)
