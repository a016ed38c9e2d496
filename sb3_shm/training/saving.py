"""How both algorithms are saved and loaded."""

import inspect
import pathlib
from collections.abc import Iterable
from io import BufferedIOBase
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_shm.files import open_for_sb3
from sb3_shm.memory.checks import check_in_range
from sb3_shm.training.old_models import GONE, convert_zip, saved_data

SelfSavedWhole = TypeVar("SelfSavedWhole", bound="SavedWhole")


def _model_file(path: str | pathlib.Path | BufferedIOBase) -> str | pathlib.Path | BufferedIOBase:
    """
    :param path: what a user gave to ``load``
    :return: the file itself: ``save("trained")`` writes trained.zip though there is a folder of the name, too
    :raises FileNotFoundError: there is none
    :raises IsADirectoryError: a folder; says what lies in it
    """
    if not isinstance(path, str | pathlib.Path):
        return path
    folder = pathlib.Path(path)
    if not folder.is_dir():
        if not folder.exists() and not (zipped := pathlib.Path(f"{path}.zip")).is_file():
            raise FileNotFoundError(f"There is no model {path if folder.suffix == '.zip' else zipped}")
        return path
    if (zipped := folder.with_name(f"{folder.name}.zip")).is_file():
        return zipped
    if (folder / "sb3_shm.json").is_file():
        hint = "with a packed agent: write load_model_folder(path), of sb3_shm.sharing.folder"
    else:
        models = ", ".join(sorted(file.name for file in folder.glob("*.zip"))) or "none"
        hint = f"name the file; .zip files in it: {models}"
    raise IsADirectoryError(f"{path} is a folder, {hint}")


def _check_is_of(algorithm: str, marks: Iterable[str], path: str | pathlib.Path | BufferedIOBase) -> dict[str, Any]:
    """
    :param algorithm: that is to load the model
    :param marks: what only its models hold
    :param path: the model
    :return: its JSON
    :raises ValueError: another algorithm's, or no model, or one that is cut off
    """
    saved = saved_data(path)
    if not saved:
        raise ValueError(f"{path} is no .zip file of a model, or cut off")
    if not set(marks) <= saved.keys():
        policy = saved.get("policy_class")
        of = f" (its policy is of {policy['__module__']})" if isinstance(policy, dict) and "__module__" in policy else ""
        raise ValueError(f"{path} is no model of {algorithm}{of}: load it by the algorithm that saved it")
    return saved


class SavedWhole(BaseAlgorithm):
    """An algorithm whose files are there as a whole or not at all, and that loads models of version 0.1 as what they were."""

    old_arguments: ClassVar[dict[str, Any]] = {}
    """What models of version 0.1 did without being told."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Attributes by which a saved model is known as this algorithm's."""

    def save(
        self,
        path: str | pathlib.Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.save`. An older file stays until the new one is complete.

        :raises OSError: the file cannot be written, e.g. the disk is full
        """
        with open_for_sb3(path, "zip") as file:
            super().save(file, exclude, include)

    @classmethod
    def load(
        cls: type[SelfSavedWhole],
        path: str | pathlib.Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSavedWhole:
        """
        See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`. Models of version 0.1 load as what they were.

        :param kwargs: arguments of the algorithm to change, or other attributes of a model
        :raises ValueError: another algorithm's model, no model, or an illegal value of an argument
        :raises TypeError: neither an argument of the algorithm nor an attribute of its models
        :raises FileNotFoundError: there is no such file
        :raises IsADirectoryError: a folder, without a .zip of its name beside it
        """
        path = _model_file(path)
        saved = _check_is_of(cls.__name__, cls.marks, path)
        # Stable-Baselines3 sets attributes by these names: arguments, which the constructor checks, or what a model has
        names = inspect.signature(cls).parameters
        arguments = {name: value for name, value in kwargs.items() if name in names or name not in saved}
        if arguments:
            algorithm: Any = cls
            policy = next(iter(cls.policy_aliases.values()))
            algorithm(policy=policy, env=None, device=device, _init_setup_model=False, **{**arguments, "verbose": 0})
            check_in_range("verbose", kwargs.get("verbose", 0), low=0, integer=True)
        custom_objects, is_old = convert_zip(path, custom_objects)
        if is_old:
            kwargs = {**cls.old_arguments, **kwargs}
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        for name in GONE:
            vars(model).pop(name, None)
        return model

    def _excluded_save_params(self) -> list[str]:
        # A loaded model starts with fresh episodes, and so with an empty memory
        of_run = [
            "_last_state",
            "_last_context",
            "_last_masks",
            "_has_missed_masks",
            "_reset_watch",
            "_use_masking",
            "_has_looked_for_masks",
            "_dropped",
        ]
        return [*super()._excluded_save_params(), *of_run]
