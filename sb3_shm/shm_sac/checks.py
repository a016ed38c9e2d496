"""Checks of what SHMSAC alone takes."""

import math
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from sb3_shm.memory.checks import check_in_range
from sb3_shm.training.pictures_first import ChannelsFirst
from sb3_shm.training.spaces import check_action_space

DISCRETE_ENTROPY = 0.3
"""``target_entropy="auto"`` is this part of the greatest entropy, log(n), of n Discrete actions."""
BATCH_SIZE, SEQ_LEN = 16, 128
"""``batch_size="auto"`` windows of ``seq_len="auto"`` transitions each."""
BATCH_SIZE_OF_PICTURES, SEQ_LEN_OF_PICTURES = 4, 64
"""The same where pictures are observed, each of which costs as much as a hundred other observations. Few long windows rather
than many short ones: a memory learns to hold what it holds in training."""
_MANY = 2**14
"""Transitions in an update, eight times the default's, above which a batch_size is probably meant to count them."""


def check_sac_action_space(space: spaces.Space[Any]) -> None:
    """
    :param space: action space
    :raises ValueError: neither Discrete nor a bounded Box of a width above 0
    """
    check_action_space(space)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(f"SHMSAC acts in Box and Discrete action spaces, got {space}: SHMPPO acts in this one too")
    if isinstance(space, spaces.Box):
        with np.errstate(over="ignore"):
            width = space.high.astype(np.float32) - space.low.astype(np.float32)
        if not ((width > 0) & np.isfinite(width)).all():
            raise ValueError(
                f"SHMSAC needs finite bounds of the action space, low below high, got {space}: write the bounds that are "
                "meant into it, for example Box(-1, 1, shape)"
            )


def parse_ent_coef(ent_coef: str | float) -> tuple[float, bool]:
    """
    :param ent_coef: a number, "auto", or "auto_x" with a number x
    :return: the coefficient at first, and whether it is learned
    :raises ValueError: none of these, or a number out of range
    """
    text = "" if isinstance(ent_coef, bool) else str(ent_coef)
    learned = text == "auto" or text.startswith("auto_")
    try:
        number = 1.0 if text == "auto" else float(text.removeprefix("auto_"))
    except ValueError:
        number = math.nan
    limits = np.finfo(np.float32)
    if not (limits.smallest_subnormal <= number <= limits.max or (number == 0 and not learned)):
        raise ValueError(f'ent_coef must be a number from 0 on, "auto", or "auto_x" with x above 0, got {ent_coef!r}')
    return number, learned


def parse_batch(
    batch_size: int | str, seq_len: int | str | None, rows: int, observation_space: spaces.Space[Any], n_steps: int
) -> tuple[int, int | None]:
    """
    :param batch_size: windows or episodes in a batch, or "auto"
    :param seq_len: transitions in a window, None for whole episodes, or "auto", which alone gives way to a short tape
    :param rows: rows of the tape of one environment
    :param observation_space: "auto" is less with pictures, Box of three dimensions, also in a Dict
    :param n_steps: rewards that are summed up before a target is bootstrapped
    :return: windows or episodes in a batch, and transitions in a window, None for whole episodes
    :raises ValueError: none of these, or more rewards than a window has; a batch that must be a mistake is a warning
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    has_pictures = any(isinstance(part, spaces.Box) and len(part.shape) == 3 for part in parts)
    if isinstance(batch_size, str) and batch_size == "auto":
        batch_size = BATCH_SIZE_OF_PICTURES if has_pictures else BATCH_SIZE
    check_in_range('batch_size (or "auto")', batch_size, low=1, integer=True)
    if isinstance(seq_len, str) and seq_len == "auto":
        seq_len = max(min(SEQ_LEN_OF_PICTURES if has_pictures else SEQ_LEN, rows - 1), 1)
    if seq_len is not None:
        check_in_range('seq_len (None for whole episodes, or "auto")', seq_len, low=1, integer=True)
        seq_len = int(seq_len)
        if n_steps > seq_len:
            raise ValueError(
                f"n_steps must be at most seq_len = {seq_len}, as rewards are summed up within a window, got {n_steps} (it is "
                "not the rollout's length, as in PPO, which train_freq is here)"
            )
        if (n := int(batch_size) * seq_len) > _MANY:
            warnings.warn(
                f"batch_size = {batch_size} windows of seq_len = {seq_len} are {n:,} transitions an update: it does "
                f"not count transitions, as SAC's does, of which 256 are {-(-256 // seq_len)} windows",
                stacklevel=5,
            )
    return int(batch_size), seq_len


def parse_target_entropy(target_entropy: str | float, action_space: spaces.Space[Any]) -> float:
    """
    :param target_entropy: nats, or "auto" for minus the number of action dimensions or, with n Discrete actions, a part
        ``DISCRETE_ENTROPY`` of log(n)
    :param action_space: Box or Discrete
    :return: nats
    :raises ValueError: not a number, nor "auto"
    """
    if str(target_entropy) != "auto":
        check_in_range('target_entropy (or "auto")', target_entropy)
        return float(target_entropy)
    if isinstance(action_space, spaces.Discrete):
        return DISCRETE_ENTROPY * math.log(action_space.n)
    assert isinstance(action_space, spaces.Box)
    return -float(math.prod(action_space.shape))


def check_normalize_is_outermost(env: VecEnv | None) -> None:
    """
    A replay buffer stores what VecNormalize saw before it normalised, so nothing outside of it may change observations.

    :param env: training environments
    :raises ValueError: a wrapper other than VecMonitor, VecCheckNan or VecVideoRecorder is outside of a VecNormalize
    """
    outside: list[str] = []
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecNormalize):
        if not isinstance(env, VecMonitor | VecCheckNan | VecVideoRecorder | ChannelsFirst):
            outside.append(type(env).__name__)
        env = env.venv
    if isinstance(env, VecNormalize) and outside:
        raise ValueError(
            f"VecNormalize must be outermost, or the replay buffer misses what is outside of it: {', '.join(outside)}"
        )


def parse_train_freq(train_freq: Any, n_envs: int) -> TrainFreq:
    """
    :param train_freq: a number of steps, or a pair of a number and "step" or "episode"
    :param n_envs: number of environments
    :return: Stable-Baselines3's form of it
    :raises ValueError: none of these, or episodes of several environments
    """
    is_pair = isinstance(train_freq, tuple | list) and len(train_freq) == 2
    frequency, unit = train_freq if is_pair else (train_freq, "step")
    if not isinstance(unit, TrainFrequencyUnit) and unit not in ("step", "episode"):
        raise ValueError(f"The unit of train_freq must be either 'step' or 'episode', got {train_freq!r}")
    check_in_range("train_freq", frequency, low=1, integer=True)
    unit = TrainFrequencyUnit(unit)
    if unit is TrainFrequencyUnit.EPISODE and n_envs > 1:
        raise ValueError(f'train_freq must be in "step" with several environments ({n_envs}), got "episode"')
    return TrainFreq(int(frequency), unit)


def check_action_noise(noise: Any, action_space: spaces.Space[Any]) -> None:
    """
    :param noise: what a user gave as ``action_noise``
    :param action_space: of the environment
    :raises ValueError: no noise, noise for other than Box actions, or one of another shape
    """
    if noise is None:
        return
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"action_noise is for Box actions, leave it None with {action_space}")
    if not isinstance(noise, ActionNoise):
        raise ValueError(f"action_noise must be an ActionNoise of SB3, for example NormalActionNoise, got {noise!r}")
    shape = np.shape(noise._mu) if isinstance(noise, NormalActionNoise | OrnsteinUhlenbeckActionNoise) else ()
    if shape not in ((), (1,), action_space.shape):
        raise ValueError(f"action_noise must have the shape of the actions, {action_space.shape}, got {shape}: {noise}")
