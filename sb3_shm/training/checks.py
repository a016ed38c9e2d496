"""Checks of what users and environments hand over."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, VecVideoRecorder

from sb3_shm.envs import suggested_id
from sb3_shm.memory.checks import check_in_range

LARGEST_OBSERVATION, LARGEST_REWARD = 1e18, 1e15
"""Beyond these the networks' sums of squares, and the squared errors of values, leave the range of float32."""
DISCRETE_ENTROPY = 0.3
"""``target_entropy="auto"`` is this part of the greatest entropy, log(n), of n Discrete actions."""


def check_each(
    arguments: Mapping[str, Any], *names: str, optional: bool = False, schedule: bool = False, **bounds: Any
) -> None:
    """
    :param arguments: arguments by name
    :param names: the ones to check
    :param optional: None is legal, too
    :param schedule: a function of the remaining progress is legal, too
    :param bounds: see :func:`~sb3_shm.memory.checks.check_in_range`
    :raises ValueError: one of them is out of range
    """
    for name in names:
        value = arguments[name]
        if not (optional and value is None) and not (schedule and callable(value)):
            check_in_range(name, value, **bounds)


def check_lengths(
    n_steps: int, n_envs: int, seq_len: int | None, batch_size: int | None, normalize_advantage: bool
) -> tuple[int, int]:
    """
    :param n_steps: steps per environment and rollout
    :param n_envs: number of environments
    :param seq_len: steps of a training sequence; None for ``n_steps``, cut in up to four equal parts with less than four
        environments, so that there are minibatches to make
    :param batch_size: steps of a minibatch, None for an equal part of the rollout, a quarter if possible
    :param normalize_advantage: whether advantages are divided by their standard deviation in the minibatch
    :return: ``seq_len`` and ``batch_size``, their defaults resolved
    :raises ValueError: whole sequences cannot make this rollout or these minibatches
    """
    if seq_len is None:
        seq_len = n_steps // max(parts for parts in range(1, -(-4 // n_envs) + 1) if n_steps % parts == 0)
    if seq_len < 1 or n_steps % seq_len:
        divisors = [length for length in range(1, n_steps + 1) if n_steps % length == 0]
        raise ValueError(f"seq_len must divide n_steps = {n_steps}: one of {divisors}; got {seq_len}")
    n_sequences = n_envs * n_steps // seq_len
    if batch_size is None:  # the most minibatches, up to four, that are equal and hold more than one step
        parts = max(n for n in (1, 2, 3, 4) if n == 1 or (n_sequences % n == 0 and n_sequences // n * seq_len > 1))
        batch_size = n_sequences // parts * seq_len
    if batch_size < seq_len or batch_size % seq_len or batch_size > n_sequences * seq_len:
        raise ValueError(
            f"batch_size must be a multiple of seq_len = {seq_len} up to n_steps * n_envs = {n_steps * n_envs}, "
            f"so {seq_len} times 1 to {n_sequences}; got {batch_size}"
        )
    if normalize_advantage and batch_size == 1:
        raise ValueError("batch_size must be above 1 to normalise advantages (normalize_advantage=True)")
    return seq_len, batch_size


_LEGAL = "Box with at least one dimension, or Discrete, MultiDiscrete (one dimension) or MultiBinary (one dimension) from 0"


def _is_legal(space: spaces.Space[Any]) -> bool:
    """Whether Stable-Baselines3 reads and writes values of this space as they are."""
    match space:
        case spaces.Box():
            return len(space.shape) > 0
        case spaces.Discrete():
            return bool(space.start == 0)
        case spaces.MultiDiscrete():
            return len(space.shape) == 1 and not np.any(space.start)
        case spaces.MultiBinary():
            return len(space.shape) == 1
    return False


def check_action_space(space: spaces.Space[Any]) -> None:
    """
    :param space: action space
    :raises ValueError: a space whose actions the policy cannot draw
    """
    if not _is_legal(space) or (isinstance(space, spaces.Box) and space.dtype not in (np.float32, np.float64)):
        raise ValueError(f"The action space must be {_LEGAL}; a Box of float32 or float64; got {space}")


def check_sac_action_space(space: spaces.Space[Any]) -> None:
    """
    :param space: action space
    :raises ValueError: neither Discrete nor a bounded Box of a width above 0
    """
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and _is_legal(space):
        raise ValueError(f"SHMSAC acts in Box and Discrete action spaces, got {space}: SHMPPO acts in this one too")
    check_action_space(space)
    if isinstance(space, spaces.Box):
        with np.errstate(over="ignore"):
            width = space.high.astype(np.float32) - space.low.astype(np.float32)
        if width.size == 0 or not ((width > 0) & np.isfinite(width)).all():
            raise ValueError(f"SHMSAC needs finite bounds of the action space, low below high, got {space}: try RescaleAction")


def check_policy_class(
    policy_class: type[Any],
    observation_space: spaces.Space[Any],
    policy_kwargs: dict[str, Any],
    base: type[Any],
    for_dict: type[Any],
) -> None:
    """
    :param policy_class: the policy that a user chose
    :param observation_space: the space it must read
    :param policy_kwargs: its arguments
    :param base: what it must be
    :param for_dict: what reads Dict observations
    :raises ValueError: another algorithm's policy, or one that cannot read the observations
    """
    if not issubclass(policy_class, base):
        raise ValueError(f"The policy must be a {base.__name__}, got {policy_class.__name__}")
    is_dict = isinstance(observation_space, spaces.Dict)
    if "features_extractor_class" not in policy_kwargs and is_dict != issubclass(policy_class, for_dict):
        needed = "a Dict observation space" if is_dict else f"the observation space {observation_space}"
        legal = "MultiInputSHMPolicy" if is_dict else "MlpSHMPolicy or CnnSHMPolicy"
        raise ValueError(f"{needed} needs {legal}, or a features_extractor_class; got {policy_class.__name__}")


def check_observation_space(space: spaces.Space[Any], env: VecEnv | None = None) -> None:
    """
    :param space: observation space
    :param env: the environment it belongs to, for the message
    :raises ValueError: a space that Stable-Baselines3 cannot read
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if all(_is_legal(part) for part in parts):
        return
    spec = env.get_attr("spec")[0] if env is not None else None
    better_id = suggested_id(spec.id) if spec is not None else None
    hint = f": use the id {better_id!r}, the same task with a flat Box" if better_id else "; wrap it with FlattenObservation"
    raise ValueError(
        f"The observation space must be {_LEGAL}, or a Dict of these, "
        f"got {space} of {spec.id if spec is not None else 'the environment'}{hint}"
    )


def check_finite(
    what: str,
    data: np.ndarray | dict[str, np.ndarray] | tuple[Any, ...],
    step: int | None = None,
    environments: Sequence[int] | None = None,
    largest: float = LARGEST_OBSERVATION,
) -> None:
    """
    :param what: what the data is, for the message
    :param data: one row per environment, or a dict of such
    :param step: number of the environments' step, for the message, if they are counted
    :param environments: the environments' indices, if the rows are not all of them
    :param largest: greatest absolute value with which the networks can compute
    :raises ValueError: a value is NaN, infinite or too large; names environment and step
    """
    for part in data.values() if isinstance(data, dict) else [data]:
        array = np.asarray(part)
        if array.dtype.kind != "f" or array.size == 0:
            continue
        # A sum of squares is small only if all its terms are, or else it is worth the closer look
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.dot(flat, flat) <= largest:
                continue
        is_bad = ~(np.abs(array) <= largest)
        if is_bad.any():
            row = int(np.argwhere(is_bad)[0][0])
            index = row if environments is None else environments[row]
            when = "" if step is None else f" at its step {step}"
            if not np.isfinite(array[is_bad]).all():
                raise ValueError(f"The {what} of environment {index} is not finite{when}: {array[row]}")
            raise ValueError(
                f"The {what} of environment {index} is too large{when}, float32 overflows beyond {largest:g}: {array[row]}. "
                f"Scale or clip it in the environment, and VecNormalize does the rest"
            )


def check_step(obs: Any, rewards: np.ndarray, step: int, vec_normalize: VecNormalize | None = None) -> None:
    """
    :param obs: observations after a step
    :param rewards: (n_envs,)
    :param step: number of the environments' step
    :param vec_normalize: what normalised them, if anything
    :raises ValueError: one of them is not finite, or too large
    """
    if vec_normalize is not None:  # whose statistics spread what is not finite to all environments
        check_finite("observation", vec_normalize.old_obs, step)
        check_finite("reward", vec_normalize.old_reward, step, largest=float(np.finfo(np.float32).max))
    check_finite("observation", obs, step)
    check_finite("reward", rewards, step, largest=LARGEST_REWARD)


def check_terminal_observations(
    infos: list[dict[str, Any]], ended: list[int], observation_space: spaces.Space[Any], step: int
) -> Any:
    """
    :param infos: one per environment
    :param ended: environments whose info holds a ``terminal_observation``, at least one
    :param observation_space: their space
    :param step: number of the environments' step
    :return: the last observations of their episodes, (len(ended), ...) or a dict of them
    :raises ValueError: one of them is not finite
    """
    last = [infos[i]["terminal_observation"] for i in ended]
    if isinstance(observation_space, spaces.Dict):
        stacked: Any = {key: np.stack([obs[key] for obs in last]) for key in observation_space.spaces}
    else:
        stacked = np.stack(last)
    check_finite("terminal observation", stacked, step, environments=ended)
    return stacked


def check_losses(what: str, losses: np.ndarray, gradient_norms: np.ndarray, step: int) -> None:
    """
    :param what: what they are, for the message
    :param losses: of successive minibatches, (n,), which :class:`~sb3_shm.training.transfer.Guard` watched over
    :param gradient_norms: the norms of their gradients, (n,)
    :param step: number of environment steps before them
    :raises ValueError: one of them is not finite
    """
    bad = np.flatnonzero(~np.isfinite(losses + gradient_norms))
    if not len(bad):
        return
    i = bad[0]
    if not np.isfinite(losses[i]):
        what, value = f"The {what}", losses[i]
        advice = (
            "lower learning_rate, set or lower max_grad_norm, make rewards and observations smaller (VecNormalize), or bound "
            "the memory (memory_kwargs=dict(clip=...))"
        )
    else:  # what an input adds to a memory grows with each step after it
        what, value = f"The {what} is finite, but its gradient's norm", gradient_norms[i]
        advice = (
            "make observations and rewards smaller (VecNormalize), train on shorter sequences (seq_len), lower learning_rate, "
            'or, with a Hadamard memory, take theta="random" or a lower clip (memory_kwargs)'
        )
    raise ValueError(
        f"{what} is {value} in minibatch {i} of the update after {step} steps. Neither this gradient was applied nor any "
        f"later one: {advice}"
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
        if not isinstance(env, VecMonitor | VecCheckNan | VecVideoRecorder):
            outside.append(type(env).__name__)
        env = env.venv
    if isinstance(env, VecNormalize) and outside:
        raise ValueError(
            f"VecNormalize must be outermost, or the replay buffer misses what is outside of it: {', '.join(outside)}"
        )
