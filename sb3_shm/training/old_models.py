"""
Models of earlier versions load as what they were: ``memory="shm"`` was the published form in version 0.1, and some arguments
are gone that changed no weight.
"""

import json
import zipfile
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import load_from_zip_file, open_path

from sb3_shm.memory import SHM
from sb3_shm.memory.old_shm import OldSHM

MEMORY_FORMAT = 2
"""What a saved model's ``memory_format`` says; models of version 0.1 have none."""

GONE = ("head_dtype", "buffer_device")
"""Arguments that are dropped: they said how fast a model learns, not what its weights are."""


def drop_gone(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param arguments: those of a saved model or of its policy
    :return: the same without what no longer exists
    """
    return {name: value for name, value in arguments.items() if name not in GONE}


def convert_policy_kwargs(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param policy_kwargs: those of a model that version 0.1 saved
    :return: those with which this version builds the same networks
    """
    converted = dict(policy_kwargs)
    base = converted.get("memory", "shm")
    for prefix in ("", "actor_", "critic_"):
        name = converted.get(f"{prefix}memory") or base
        kwargs = converted.get(f"{prefix}memory_kwargs")
        if name not in ("shm", SHM) or (prefix and converted.get(f"{prefix}memory") is None and kwargs is None):
            continue
        if kwargs is not None:  # what only set initial values
            kwargs = {key: value for key, value in kwargs.items() if key not in ("value_scale", "calibration_scale")}
            converted[f"{prefix}memory_kwargs"] = kwargs
        is_biased = kwargs is not None and not kwargs.keys().isdisjoint(("time_scales", "key_bias"))
        converted[f"{prefix}memory"] = OldSHM if is_biased else "shm_paper"
    return converted


def saved_data(path: str | Path | BufferedIOBase) -> dict[str, Any]:
    """
    :param path: a saved model, as :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load` takes it
    :return: its JSON; empty if it is no model, which whoever loads it says
    """
    try:
        file = open_path(path, "r", verbose=0, suffix="zip")
        try:
            with zipfile.ZipFile(file) as archive:
                saved = json.loads(archive.read("data"))
        finally:
            if file is not path:
                file.close()
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return {}
    return saved if isinstance(saved, dict) else {}


def convert_zip(
    path: str | Path | BufferedIOBase, custom_objects: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, bool]:
    """
    :param path: a saved model, as :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load` takes it
    :param custom_objects: what it is to be loaded with
    :return: ``custom_objects`` with what must be said otherwise today, and whether the model is of version 0.1
    """
    saved = saved_data(path)
    is_old = "memory_format" not in saved
    policy_kwargs = saved.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict) or not (is_old or any(name in policy_kwargs for name in GONE)):
        return custom_objects, False
    data: Any = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)[0]
    policy_kwargs = drop_gone(data["policy_kwargs"])
    converted = {"policy_kwargs": convert_policy_kwargs(policy_kwargs) if is_old else policy_kwargs}
    if is_old and "n_steps" in data and data["seq_len"] is None:  # SHMPPO's sequences were never shorter by default
        converted["seq_len"] = data["n_steps"]
    return {**(custom_objects or {}), **converted}, is_old
