"""The statistics of a VecNormalize in a shared folder."""

import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing.encoding import decode_space
from sb3_shm.sharing.manifest import MANIFEST, STATISTICS, OnlySpaces, import_safetensors, read_manifest, reading
from sb3_shm.sharing.weights import read_shapes

NORMALIZE_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def without_infinity(setting: Any) -> Any:
    """
    :param setting: of VecNormalize
    :return: the same as JSON can hold it, which has no infinity: "inf" where nothing is clipped
    """
    return "inf" if isinstance(setting, float) and setting == np.inf else setting


def all_statistics(vec_normalize: VecNormalize) -> dict[str, Any]:
    obs = vec_normalize.obs_rms if vec_normalize.norm_obs else {}
    return {"returns": vec_normalize.ret_rms} | (
        {f"obs.{key}": of_key for key, of_key in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    )


def load_vec_normalize(folder: Path, venv: VecEnv | None = None) -> VecNormalize | None:
    """
    :param folder: a model's folder
    :param venv: environments to normalise; None for some that cannot be stepped
    :return: the environments with the statistics of the model's VecNormalize, which stay as they are (``training=False``) and
        leave rewards alone; None if the model has none
    :raises ValueError: a damaged file
    """
    settings = read_manifest(folder).get("vec_normalize")
    if settings is None:
        return None

    def build() -> VecNormalize:
        if not isinstance(settings, dict):
            raise ValueError(f"it must be a mapping, got {reprlib.repr(settings)}")
        own_spaces = [decode_space(settings[name]) for name in ("observation_space", "action_space")]
        for name in ("norm_obs", "norm_reward"):
            if not isinstance(settings[name], bool):
                raise ValueError(f"{name} must be true or false, got {reprlib.repr(settings[name])}")
        clips = {name: np.inf if settings[name] == "inf" else settings[name] for name in ("clip_obs", "clip_reward")}
        for name, value in (*clips.items(), ("epsilon", settings["epsilon"])):
            if not (name in clips and value == np.inf):
                check_in_range(name, value, above=0)
        check_in_range("gamma", settings["gamma"], low=0, high=1)
        inner = DummyVecEnv([lambda: OnlySpaces(*own_spaces)]) if venv is None else venv
        if venv is not None:
            check_for_correct_spaces(venv, *own_spaces)
        arguments = {name: settings[name] for name in NORMALIZE_SETTINGS} | clips | {"norm_reward": False}
        return VecNormalize(inner, training=False, **arguments)

    def load_statistics() -> None:
        shapes = read_shapes(folder / STATISTICS, "numpy")
        expected = {
            f"{name}.{part}": np.shape(getattr(statistics, part))
            for name, statistics in all_statistics(vec_normalize).items()
            for part in ("mean", "var", "count")
        }
        if shapes != expected:
            raise ValueError(f"it must hold {reprlib.repr(expected)}, got {reprlib.repr(shapes)}")
        arrays = import_safetensors().numpy.load_file(str(folder / STATISTICS))
        for name, array in arrays.items():
            low = -np.inf if name.endswith("mean") else 0
            if array.dtype != np.float64 or not np.isfinite(array).all() or not (array >= low).all():
                raise ValueError(f"{name} must hold finite numbers of 64 bits{', 0 or more' * (low == 0)}")
        for name, statistics in all_statistics(vec_normalize).items():
            statistics.mean, statistics.var = arrays[f"{name}.mean"], arrays[f"{name}.var"]
            statistics.count = float(arrays[f"{name}.count"])

    vec_normalize: VecNormalize = reading(f"vec_normalize in {MANIFEST}", build)
    reading(STATISTICS, load_statistics)
    return vec_normalize
