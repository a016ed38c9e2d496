"""
Search spaces of the two algorithms for rl-zoo3's ``train --optimize-hyperparameters``, such that every trial is legal.

A sampler returns arguments of the algorithm; a converter makes the same arguments of ``trial.params`` alone, when rl-zoo3
trains with a study's result (``--trial-id``).

rl-zoo3 puts what a sampler returns in the place of what the YAML block says, ``policy_kwargs`` as a whole. So that a block's
encoder, heads and kind of memory outlast it, the samplers build on the block's ``policy_kwargs``, which rl-zoo3 keeps as text
with the study, and record them in the trial as a parameter with a single choice, where the converters find them.
"""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

from sb3_shm.memory import MEMORIES
from sb3_shm.memory.shm import THETAS

# Where the policies' arguments name a memory; the last two belong to SHMSAC alone
_PLACES = ("memory", "actor_memory", "critic_memory")
# What is sampled of any memory that has such an argument: once, for all places
_MEMORY_CHOICES: dict[str, list[Any]] = {
    "memory_size": [16, 24, 32, 48, 64, 96, 128],
    "hidden_size": [32, 64, 128, 256],
    "theta": list(THETAS),
}


def _block_policy_kwargs(trial: optuna.Trial) -> dict[str, Any]:
    """The block's ``policy_kwargs``, recorded in the trial's parameters."""
    text = trial.study.user_attrs.get("policy_kwargs", "{}")
    return _read_policy_kwargs(trial.suggest_categorical("policy_kwargs", [text]))


def _read_policy_kwargs(text: str) -> dict[str, Any]:
    try:
        policy_kwargs = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        policy_kwargs = None
    if not isinstance(policy_kwargs, dict):
        raise ValueError(
            f"To sample hyperparameters policy_kwargs must be a dict of numbers, texts, lists and dicts, got {text}"
        )
    return policy_kwargs


def _sampled_arguments(policy_kwargs: dict[str, Any]) -> dict[str, list[str]]:
    """Place of a memory -> which of its arguments are sampled."""
    kinds = {"memory": "shm", **{place: policy_kwargs[place] for place in _PLACES if policy_kwargs.get(place) is not None}}
    return {
        place: [name for name in _MEMORY_CHOICES if name in inspect.signature(MEMORIES[kind]).parameters]
        for place, kind in kinds.items()
        if kind in MEMORIES  # else the policy will say what is wrong
    }


def _suggest_memory(trial: optuna.Trial, policy_kwargs: dict[str, Any]) -> None:
    names = {name for arguments in _sampled_arguments(policy_kwargs).values() for name in arguments}
    for name in sorted(names):
        trial.suggest_categorical(name, _MEMORY_CHOICES[name])


def _convert_memory(params: dict[str, Any]) -> dict[str, Any]:
    """Take the memories' parameters out of ``params`` and return ``policy_kwargs``."""
    policy_kwargs = _read_policy_kwargs(params.pop("policy_kwargs"))
    sampled = {name: params.pop(name) for name in _MEMORY_CHOICES if name in params}
    result = dict(policy_kwargs)
    for place, names in _sampled_arguments(policy_kwargs).items():
        own = policy_kwargs.get(f"{place}_kwargs") or {}
        result[f"{place}_kwargs"] = {**own, **{name: sampled[name] for name in names}}
    return result


def _convert_powers(params: dict[str, Any], *names: str) -> dict[str, int]:
    """Take ``<name>_pow`` out of ``params`` and return ``<name>``."""
    return {name: 2 ** params.pop(f"{name}_pow") for name in names if f"{name}_pow" in params}


def sample_shm_ppo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    A rollout has ``n_envs`` to four times as many sequences, and a minibatch at most ``n_envs``, so it always fits.

    :param trial: a trial of Optuna
    :param n_actions: not used
    :param n_envs: number of environments
    :param additional_args: not used
    :return: arguments of SHMPPO
    :raises ValueError: the block's ``policy_kwargs`` are no plain values
    """
    policy_kwargs = _block_policy_kwargs(trial)
    trial.suggest_int("seq_len_pow", 4, 7)
    trial.suggest_int("sequences_per_rollout_pow", 0, 2)  # of each environment
    most = n_envs.bit_length() - 1
    trial.suggest_int("sequences_per_batch_pow", max(most - 4, 0), most)
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.5, log=True)
    trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)
    trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4])
    trial.suggest_categorical("n_epochs", [1, 5, 10, 20])
    trial.suggest_float("max_grad_norm", 0.3, 2)
    _suggest_memory(trial, policy_kwargs)
    hyperparams = convert_shm_ppo_params(trial.params)
    for name in ("seq_len", "n_steps", "batch_size", "gamma", "gae_lambda"):  # the values behind the powers, to read
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_shm_ppo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: a trial's ``params``
    :return: arguments of SHMPPO
    """
    params = dict(sampled_params)
    policy_kwargs = _convert_memory(params)
    powers = _convert_powers(params, "seq_len", "sequences_per_rollout", "sequences_per_batch")
    seq_len = powers["seq_len"]
    return dict(
        params,
        gamma=1 - params.pop("one_minus_gamma"),
        gae_lambda=1 - params.pop("one_minus_gae_lambda"),
        seq_len=seq_len,
        n_steps=seq_len * powers["sequences_per_rollout"],
        batch_size=seq_len * powers["sequences_per_batch"],
        policy_kwargs=policy_kwargs,
    )


def sample_shm_sac_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Whole episodes stay whole episodes if the block trains on them (``seq_len: null``); else windows are sampled, which fit
    into any tape of more than 128 steps of each environment.

    :param trial: a trial of Optuna
    :param n_actions: not used
    :param n_envs: not used
    :param additional_args: not used
    :return: arguments of SHMSAC
    :raises ValueError: the block's ``policy_kwargs`` are no plain values
    """
    policy_kwargs = _block_policy_kwargs(trial)
    if trial.study.user_attrs.get("seq_len") != "None":
        trial.suggest_int("seq_len_pow", 4, 7)
        trial.suggest_categorical("burn_in_part", [0.0, 0.25, 0.5])
    trial.suggest_int("batch_size_pow", 3, 7)  # sequences
    trial.suggest_float("one_minus_gamma", 0.0001, 0.1, log=True)
    trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    trial.suggest_float("tau", 0.001, 0.08, log=True)
    _suggest_memory(trial, policy_kwargs)
    hyperparams = convert_shm_sac_params(trial.params)
    for name in ("batch_size", "gamma"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_shm_sac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: a trial's ``params``
    :return: arguments of SHMSAC
    """
    params = dict(sampled_params)
    policy_kwargs = _convert_memory(params)
    params.update(_convert_powers(params, "seq_len", "batch_size"))
    if "burn_in_part" in params:
        params["burn_in"] = int(params.pop("burn_in_part") * params["seq_len"])
    return dict(params, gamma=1 - params.pop("one_minus_gamma"), policy_kwargs=policy_kwargs)
