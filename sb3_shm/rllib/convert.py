"""From RLlib to SHMPPO and back: what a cluster trained is shared, exported and played as any other model of this package."""

import pickle
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from sb3_shm.rllib.module import SHMRLModule, module_spec
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_ppo.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy


def to_shm_ppo(module: SHMRLModule, normalize_actions: bool = True) -> SHMPPO:
    """
    :param module: RLlib's module, e.g. ``algo.get_module()``
    :param normalize_actions: of the algorithm's configuration (RLlib's default is True): its policy acts in [-1, 1], and Box
        actions are scaled on their way to the environment. SHMPPO's acts in the environment's units
    :return: a model without an environment and with SHMPPO's default settings that acts and values as the module does
    """
    model = SHMPPO(
        type(module.policy),
        None,  # type: ignore[arg-type]  # as SB3's load() makes them
        n_steps=128,
        policy_kwargs=module.model_config["policy_kwargs"],
        _init_setup_model=False,
    )
    model.observation_space, model.action_space = module.policy.observation_space, module.policy.action_space
    model.n_envs = 1
    model._setup_model()
    weights = {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}
    if normalize_actions:
        _scale_actions(weights, module.action_space)
    model.policy.load_state_dict(weights)
    return model


def from_shm_ppo(model: SHMPPO, max_seq_len: int = 128, normalize_actions: bool = True) -> tuple[RLModuleSpec, dict[str, Any]]:
    """
    Go on in RLlib with a model of SHMPPO::

        spec, state = from_shm_ppo(SHMPPO.load("model.zip"))
        algo = PPOConfig().environment(...).rl_module(rl_module_spec=spec).build_algo()
        algo.set_state(state)

    :param model: the model
    :param max_seq_len: see :func:`~sb3_shm.rllib.module_spec`
    :param normalize_actions: of the algorithm's configuration, see :func:`to_shm_ppo`
    :return: what RLlib is to build, and its weights as a state of the algorithm
    :raises ValueError: a policy class of one's own, which RLlib's module does not build, or gSDE, which RLlib does not have
    """
    legal = (MlpSHMPolicy, CnnSHMPolicy, MultiInputSHMPolicy)
    if type(model.policy) not in legal:
        names = ", ".join(cls.__name__ for cls in legal)
        raise ValueError(f"The policy must be one of {names}, got {type(model.policy).__name__}")
    if model.use_sde:
        raise ValueError("RLlib has no gSDE: train the model with use_sde=False")
    arguments = {name: value for name, value in model.policy_kwargs.items() if not name.startswith("optimizer_")}
    arguments["features_extractor_class"] = model.policy.features_extractor_class
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.policy.state_dict().items()}
    if normalize_actions:
        _scale_actions(weights, model.action_space, inverse=True)
    of_module = {DEFAULT_MODULE_ID: {f"policy.{name}": tensor.numpy() for name, tensor in weights.items()}}
    state = {COMPONENT_LEARNER_GROUP: {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: of_module}}}
    return module_spec(max_seq_len, **arguments), state


def load_shm_ppo(checkpoint: str | Path) -> SHMPPO:
    """
    :param checkpoint: folder of an RLlib algorithm's checkpoint, as ``algo.save_to_path()`` and Ray Tune write them. It is
        read with pickle, which runs what a stranger put into it: read your own only
    :return: see :func:`to_shm_ppo`
    :raises ValueError: the folder holds no algorithm's checkpoint, or its module is not of this package
    """
    folder = Path(checkpoint)
    path = folder / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE / DEFAULT_MODULE_ID
    try:
        with (folder / "class_and_ctor_args.pkl").open("rb") as file:
            config = pickle.load(file)["ctor_args_and_kwargs"][0][0]
        module = RLModule.from_checkpoint(path.absolute())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no checkpoint of an RLlib algorithm with the module {DEFAULT_MODULE_ID!r}") from error
    if not isinstance(module, SHMRLModule):
        raise ValueError(f"The checkpoint must hold a SHMRLModule, got {type(module).__name__}")
    return to_shm_ppo(module, config["normalize_actions"])


def _scale_actions(weights: dict[str, Any], action_space: spaces.Space[Any], inverse: bool = False) -> None:
    """
    Change the last layer of a policy from RLlib's units to the environment's.

    :param weights: of the policy, changed in place
    :param action_space: action space; what is not a Box, or is unbounded, RLlib does not scale
    :param inverse: from the environment's units to RLlib's
    """
    if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
        return
    low, high = th.as_tensor(action_space.low).double(), th.as_tensor(action_space.high).double()
    scale, shift = (high - low) / 2, (high + low) / 2
    if inverse:
        scale, shift = 1 / scale, -shift / scale
    weight, bias, log_std = (weights[name].double() for name in ("action_net.weight", "action_net.bias", "log_std"))
    weights["action_net.weight"] = (weight * scale.unsqueeze(1)).float()
    weights["action_net.bias"] = (bias * scale + shift).float()
    weights["log_std"] = (log_std + scale.log()).float()
