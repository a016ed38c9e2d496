"""A wrapper of vector environments that can be pickled and copied, which Stable-Baselines3's cannot."""

import inspect
from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper


class PicklableVecEnvWrapper(VecEnvWrapper):
    """A VecEnvWrapper without a table of its class's attributes in its pickle, which can be neither pickled nor copied."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.class_attributes = dict(inspect.getmembers(self.__class__))
