"""
A model as a folder that a stranger may have made: JSON and safetensors, nothing that is unpickled.

``sb3_shm.json`` names the algorithm, its arguments and its spaces, ``model.safetensors`` holds the weights, and
``vec_normalize.safetensors`` the statistics of a VecNormalize. Classes are looked up in a table and never imported by name.
"""

import json
import platform
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_shm
from sb3_shm.memory.checks import check_in_range
from sb3_shm.sharing.encoding import (
    NOT_ARGUMENTS,
    decode,
    decode_argument,
    decode_space,
    encode,
    encode_argument,
    encode_space,
)
from sb3_shm.sharing.manifest import (
    ALGORITHMS,
    FORMAT,
    MANIFEST,
    MAX_ENVS,
    STATISTICS,
    WEIGHTS,
    Model,
    algorithm_name,
    import_safetensors,
    read_manifest,
    reading,
)
from sb3_shm.sharing.statistics import NORMALIZE_SETTINGS, all_statistics, without_infinity
from sb3_shm.sharing.weights import check_room, check_weights, compare_shapes, read_shapes, sketch_policy
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.training.old_models import convert_policy_kwargs, drop_gone


def save_folder(model: Model, folder: Path, environment: dict[str, Any], vec_normalize: VecNormalize | None) -> None:
    """
    Write ``sb3_shm.json``, ``model.safetensors`` and, if any, ``vec_normalize.safetensors``.

    :param model: an SHMPPO or SHMSAC
    :param folder: existing folder
    :param environment: id and further arguments of the environment, ``dict(id=..., kwargs=...)``
    :param vec_normalize: the environments' VecNormalize
    :raises ValueError: another model, or an argument of the policy that JSON cannot hold
    """
    safetensors = import_safetensors()
    algorithm = algorithm_name(model)
    aliases = {policy: alias for alias, policy in reversed(model.policy_aliases.items())}
    names = [name for name in signature(type(model)).parameters if name not in NOT_ARGUMENTS]
    variables = {name: getattr(model, name) for name in model._get_torch_save_params()[1]}
    manifest = {
        "format": FORMAT,
        "library": "sb3-shm",
        "version": sb3_shm.__version__,
        "versions": {
            "python": platform.python_version(),
            "torch": th.__version__,
            "stable_baselines3": sb3.__version__,
            "gymnasium": gym.__version__,
            "numpy": np.__version__,
        },
        "environment": encode(environment, "environment"),
        "algorithm": algorithm,
        "policy": aliases.get(model.policy_class) or encode(model.policy_class, "policy"),
        "arguments": {name: encode_argument(model, name) for name in names},
        "policy_kwargs": encode(model.policy_kwargs, "policy_kwargs"),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "n_envs": model.n_envs,
        "num_timesteps": int(model.num_timesteps),
        "torch_variables": {name: variable.tolist() for name, variable in variables.items() if variable is not None},
        "vec_normalize": None,
    }
    # Under the names that they have in a policy that is not compiled (torch.compile)
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.policy.state_dict().items()}
    safetensors.torch.save_model(SimpleNamespace(state_dict=lambda: state), str(folder / WEIGHTS))
    if vec_normalize is not None:
        manifest["vec_normalize"] = {
            **{name: encode(without_infinity(getattr(vec_normalize, name)), name) for name in NORMALIZE_SETTINGS},
            "observation_space": encode_space(vec_normalize.venv.observation_space),
            "action_space": encode_space(vec_normalize.action_space),
        }
        arrays = {
            f"{name}.{part}": np.asarray(getattr(statistics, part), dtype=np.float64)
            for name, statistics in all_statistics(vec_normalize).items()
            for part in ("mean", "var", "count")
        }
        safetensors.numpy.save_file(arrays, str(folder / STATISTICS))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    for file in folder.glob("*.safetensors"):  # which safetensors lets nobody read but their owner
        file.chmod((folder / MANIFEST).stat().st_mode & 0o777)


def load_folder(
    folder: Path, env: VecEnv | None = None, device: th.device | str = "auto", classes: Sequence[type] = ()
) -> Model:
    """
    Build the model that :func:`save_folder` wrote. The optimizers start afresh.

    :param folder: a model's folder
    :param env: environments for the model, already normalised if it wants that
    :param device: "auto", "cpu", "cuda", ...
    :param classes: classes of your own that the model names
    :return: the model
    :raises ValueError: a damaged file, an unknown class, an argument that does not exist, or an environment that does not fit
    """
    safetensors = import_safetensors()
    manifest = read_manifest(folder)
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    # Outside of what follows, for its error says what to do
    policy, policy_kwargs = (decode(manifest[name], known) for name in ("policy", "policy_kwargs"))
    policy_kwargs = drop_gone(policy_kwargs)
    is_old = manifest["format"] == 1

    def make() -> Model:
        algorithm = ALGORITHMS[manifest["algorithm"]]
        parameters = signature(algorithm).parameters
        given = drop_gone(manifest["arguments"])
        if wrong := [name for name in given if name in NOT_ARGUMENTS or name not in parameters]:
            raise ValueError(f"no arguments of a shared model: {', '.join(sorted(wrong))[:200]}")
        arguments = {name: decode_argument(name, value, parameters[name].default) for name, value in given.items()}
        if is_old and manifest["algorithm"] == "shm_ppo":
            arguments["normalize_values"] = False
            arguments["seq_len"] = arguments["seq_len"] or arguments["n_steps"]
        model: Model = algorithm(
            policy,
            None,
            policy_kwargs=convert_policy_kwargs(policy_kwargs) if is_old else policy_kwargs,
            device=device,
            _init_setup_model=False,
            **arguments,
        )
        if isinstance(model, SHMPPO):
            check_in_range("n_steps", model.n_steps, low=1, integer=True)  # None is for a new model
        return model

    def set_variables() -> None:
        for name in model._get_torch_save_params()[1]:
            variable = getattr(model, name)
            value = th.tensor(manifest["torch_variables"][name], dtype=variable.dtype)
            if value.shape != variable.shape or not value.isfinite().all():
                raise ValueError(f"{name} must be finite, of the shape {tuple(variable.shape)}")
            variable.data.copy_(value)

    def load_weights() -> None:
        safetensors.torch.load_model(model.policy, str(folder / WEIGHTS))
        check_weights(model.policy)

    model: Model = reading(f"arguments in {MANIFEST}", make)
    for name in ("observation_space", "action_space"):
        setattr(model, name, reading(f"{name} in {MANIFEST}", partial(decode_space, manifest[name])))
    check_in_range(f"n_envs in {MANIFEST}", manifest["n_envs"], low=1, high=MAX_ENVS, integer=True)
    check_in_range(f"num_timesteps in {MANIFEST}", manifest["num_timesteps"], low=0, integer=True)
    model.n_envs, model.num_timesteps = manifest["n_envs"], manifest["num_timesteps"]
    shapes: dict[str, tuple[int, ...]] = reading(WEIGHTS, lambda: read_shapes(folder / WEIGHTS, "pt"))
    sketch = reading(MANIFEST, lambda: sketch_policy(model, len(shapes), bool(classes)))
    if sketch is not None:
        reading(WEIGHTS, lambda: compare_shapes(sketch, shapes))
        reading(MANIFEST, lambda: check_room(model, sketch))
    if env is not None:
        model.n_envs = env.num_envs
        try:
            model.set_env(env)
        except Exception as error:  # whatever a stranger's spaces make of it
            raise ValueError(f"The environment does not fit the model in {folder}: {error}") from error
    reading(MANIFEST, model._setup_model)
    reading(f"torch_variables in {MANIFEST}", set_variables)
    reading(WEIGHTS, load_weights)
    return model
