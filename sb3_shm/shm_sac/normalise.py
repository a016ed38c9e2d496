"""VecNormalize's arithmetic for tensors."""

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize


def statistics(env: VecNormalize | None) -> dict[str, np.ndarray]:
    """
    :param env: what normalises, if anything
    :return: mean and standard deviation of each part of the observations, "mean" and "std" before its name, which is "" if
        there is one only
    """
    if env is None or not env.norm_obs:
        return {}
    parts = {key: env.obs_rms[key] for key in env.norm_obs_keys or []} if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    means = {f"mean{name}": part.mean for name, part in parts.items()}
    return {**means, **{f"std{name}": np.sqrt(part.var + env.epsilon) for name, part in parts.items()}}


def normalise(
    obs: dict[str, th.Tensor], rewards: th.Tensor, env: VecNormalize | None, of_obs: dict[str, th.Tensor]
) -> tuple[dict[str, th.Tensor], th.Tensor]:
    """
    As ``env.normalize_obs`` and ``env.normalize_reward``, to the last bit.

    :param obs: parts of the observations
    :param rewards: rewards
    :param env: what normalises, if anything
    :param of_obs: its :func:`statistics`, on the device of the others
    :return: normalised observations and rewards
    """
    if env is None:
        return obs, rewards
    obs = {
        name: ((x - of_obs[f"mean{name}"]) / of_obs[f"std{name}"]).clamp(-env.clip_obs, env.clip_obs).float()
        if f"mean{name}" in of_obs
        else x
        for name, x in obs.items()
    }
    if env.norm_reward:
        scale = float(np.sqrt(env.ret_rms.var + env.epsilon))
        rewards = (rewards.double() / scale).clamp(-env.clip_reward, env.clip_reward).float()
    return obs, rewards
