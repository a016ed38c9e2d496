"""Checks of what users and environments hand over."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from sb3_shm.envs import suggested_id
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.training.pictures_first import ChannelsFirst

LARGEST_OBSERVATION, LARGEST_REWARD = 1e18, 1e15
"""Beyond these the networks' sums of squares, and the squared errors of values, leave the range of float32."""
DISCRETE_ENTROPY = 0.3
"""``target_entropy="auto"`` is this part of the greatest entropy, log(n), of n Discrete actions."""

_NO_SDE = "gSDE is not available with a memory, set use_sde=False"
_ONE_TAPE = "MemoryReplayBuffer is the only replay buffer, so hindsight experience replay (HER) is not available"
# What Stable-Baselines3's and sb3-contrib's algorithms take beyond ours: the value that switches it off, and what to write
NOT_AVAILABLE: dict[str, tuple[Any, str]] = {
    "sde_sample_freq": (-1, _NO_SDE),
    "use_sde_at_warmup": (False, _NO_SDE),
    "rollout_buffer_class": (None, "MemoryRolloutBuffer is the only rollout buffer"),
    "rollout_buffer_kwargs": (None, "set n_steps and seq_len instead"),
    "replay_buffer_class": (None, _ONE_TAPE),
    "replay_buffer_kwargs": (None, "set seq_len, burn_in and buffer_device instead"),
    "optimize_memory_usage": (False, "the tape never stores an observation twice anyway"),
    "n_steps": (1, "n-step returns are not available"),
}
_LSTM_HINT = "write memory='lstm', memory_kwargs=dict(hidden_size=...)"
_POLICY_HINTS = {
    "lstm_hidden_size": _LSTM_HINT,
    "n_lstm_layers": "write memory='lstm', memory_kwargs=dict(num_layers=...)",
    "lstm_kwargs": "write memory='lstm', memory_kwargs=dict(...)",
    "shared_lstm": "write share_memory=True",
    "enable_critic_lstm": "write share_memory=False for a memory each",
    "log_std_init": "the network gives the standard deviation",
    "full_std": _NO_SDE,
    "use_expln": _NO_SDE,
    "clip_mean": _NO_SDE,
    "squash_output": _NO_SDE,
}
_LEAST_PICTURE = 36  # what NatureCNN's three layers, of kernels 8, 4, 3 and strides 4, 2, 1, can read


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


def check_running(arguments: Mapping[str, Any]) -> None:
    """
    Check what all algorithms have alike: how and where they run.

    :param arguments: arguments by name
    :raises ValueError: one of them is illegal
    """
    check_each(arguments, "stats_window_size", low=1, integer=True)
    check_each(arguments, "verbose", low=0, integer=True)
    check_each(arguments, "seed", optional=True, low=0, high=2**32 - 1, integer=True)
    check_flag("use_sde", arguments["use_sde"])
    if arguments["use_sde"]:
        raise ValueError("gSDE (use_sde=True) is not available with a memory, set use_sde=False")
    if not isinstance(arguments["policy_kwargs"], dict | None):
        raise ValueError(f"policy_kwargs must be a dict, got {arguments['policy_kwargs']!r}")
    try:
        get_device(arguments["device"])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f'device must be "auto" or one that torch knows, such as "cpu", got {arguments["device"]!r}'
        ) from error


def check_net_arch(net_arch: Any, heads: tuple[str, ...], all_heads: bool) -> None:
    """
    :param net_arch: what a user gave: sizes of hidden layers for all heads, or by head
    :param heads: names of the heads
    :param all_heads: whether each must be named
    :raises ValueError: anything else
    """
    parts = net_arch if isinstance(net_arch, dict) else dict.fromkeys(heads, net_arch)
    if not set(parts) <= set(heads) or (all_heads and len(parts) < len(heads)):
        raise ValueError(
            f"net_arch must be a list of layer sizes or a dict of such for {' and '.join(heads)}, got {net_arch!r}"
        )
    for sizes in parts.values():
        if not isinstance(sizes, list | tuple):
            raise ValueError(f"net_arch must be a list of layer sizes, it may be empty, got {net_arch!r}")
        for size in sizes:
            check_in_range("each size of net_arch", size, low=1, integer=True)


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
        common = math.gcd(batch_size, n_steps)
        lower = f": or lower seq_len, for example to {common}" if batch_size <= n_steps * n_envs else ""
        raise ValueError(
            f"batch_size must be a multiple of seq_len = {seq_len} up to n_steps * n_envs = {n_steps * n_envs}, "
            f"so {seq_len} times 1 to {n_sequences}; got {batch_size}{lower}"
        )
    if normalize_advantage and batch_size == 1:
        raise ValueError("batch_size must be above 1 to normalise advantages (normalize_advantage=True)")
    return seq_len, batch_size


_LEGAL = (
    "Box with at least one dimension and none of length 0, or Discrete, MultiDiscrete (one dimension) or MultiBinary from 0"
)


def _is_legal(space: spaces.Space[Any]) -> bool:
    """Whether Stable-Baselines3 reads values of this space as they are."""
    match space:
        case spaces.Box():
            return len(space.shape) > 0 and 0 not in space.shape
        case spaces.Discrete():
            return bool(space.start == 0)
        case spaces.MultiDiscrete():
            return len(space.shape) == 1 and not np.any(space.start)
        case spaces.MultiBinary():
            return True
    return False


def check_action_space(space: spaces.Space[Any]) -> None:
    """
    :param space: action space
    :raises ValueError: a space whose actions the policy cannot draw
    """
    if not _is_legal(space) or (isinstance(space, spaces.Box) and space.dtype not in (np.float32, np.float64)):
        raise ValueError(f"The action space must be {_LEGAL}; a Box of float32 or float64; got {space}")
    if isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:
        raise ValueError(
            f"The action space must be MultiBinary of one dimension, got {space}: "
            f"write MultiBinary({math.prod(space.shape)}), and reshape the actions in the environment"
        )
    if isinstance(space, spaces.Box) and not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"The action space needs finite bounds of every action, got {space}: try RescaleAction, or write the bounds that "
            "are meant, for example Box(-1, 1, shape)"
        )


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
    :raises ValueError: another algorithm's policy, one that cannot read the observations, or arguments that it does not have
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, base)):
        raise ValueError(f"The policy must be a {base.__name__}, got {getattr(policy_class, '__name__', policy_class)}")
    legal_names: list[str] = []
    for part in policy_class.__mro__:
        if "__init__" in vars(part):
            parameters = inspect.signature(vars(part)["__init__"]).parameters.values()
            legal_names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    for name in ("optimizer_kwargs", "features_extractor_kwargs"):
        if not isinstance(policy_kwargs.get(name), dict | None):
            raise ValueError(f"{name} must be a dict, got {policy_kwargs[name]!r}")
    given_by_us = {"self", "observation_space", "action_space", "lr_schedule"}
    for name in policy_kwargs:
        if name in given_by_us or name not in legal_names:
            hint = f": {_POLICY_HINTS[name]}" if name in _POLICY_HINTS else ""
            raise ValueError(
                f"{policy_class.__name__} has no argument {name!r}{hint}; the arguments in policy_kwargs are "
                f"{', '.join(other for other in dict.fromkeys(legal_names) if other not in given_by_us)}"
            )
    is_dict = isinstance(observation_space, spaces.Dict)
    if "features_extractor_class" not in policy_kwargs and is_dict != issubclass(policy_class, for_dict):
        needed = "a Dict observation space" if is_dict else f"the observation space {observation_space}"
        legal = "MultiInputSHMPolicy" if is_dict else "MlpSHMPolicy or CnnSHMPolicy"
        raise ValueError(f"{needed} needs {legal}, or a features_extractor_class; got {policy_class.__name__}")


def find_policy(name: str, aliases: Mapping[str, type[Any]], base: type[Any]) -> type[Any]:
    """
    :param name: what a user wrote
    :param aliases: policies by the names that may be written
    :param base: what a policy class must be
    :return: the policy
    :raises ValueError: an unknown name
    """
    if name not in aliases:
        legal = ", ".join(map(repr, aliases))
        raise ValueError(f"Unknown policy {name!r}, choose one of {legal} or a subclass of {base.__name__}")
    return aliases[name]


def refuse_unavailable(algorithm: str, given: Mapping[str, Any]) -> None:
    """
    :param algorithm: its name
    :param given: arguments that it does not have
    :raises ValueError: a feature of another algorithm that is switched on
    :raises TypeError: an argument of no algorithm
    """
    for name, value in given.items():
        if name not in NOT_AVAILABLE:
            raise TypeError(f"{algorithm} has no argument {name!r}")
        off, hint = NOT_AVAILABLE[name]
        if value != off:
            raise ValueError(f"{algorithm} has no {name}, leave it out: {hint}; got {value!r}")


def check_pictures(
    space: spaces.Space[Any], extractor: type[Any], extractor_kwargs: Mapping[str, Any] | None, normalize_images: bool
) -> None:
    """
    :param space: observation space
    :param extractor: what reads it; of other classes than NatureCNN and CombinedExtractor nothing is known
    :param extractor_kwargs: its arguments
    :param normalize_images: whether the policy divides by 255
    :raises ValueError: NatureCNN would meet what is no picture, or one that is too small
    """
    if extractor not in (NatureCNN, CombinedExtractor):
        return
    is_float = (extractor_kwargs or {}).get("normalized_image", extractor is NatureCNN and not normalize_images)
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        is_picture = is_image_space(part, normalized_image=is_float)
        if extractor is NatureCNN and not is_picture:
            raise ValueError(
                f"NatureCNN, the features extractor of CnnSHMPolicy, reads pictures (Box of uint8 from 0 to 255 with three "
                f"dimensions; of any numbers with normalize_images=False), got {part}: write 'MlpSHMPolicy'"
            )
        if is_picture and min(part.shape[1:]) < _LEAST_PICTURE:  # type: ignore[index]
            raise ValueError(
                f"NatureCNN, which reads the pictures, needs {_LEAST_PICTURE} x {_LEAST_PICTURE} pixels at least, got {part}: "
                "make them larger, write 'MlpSHMPolicy' (which flattens them) if there is nothing else to read, or give "
                "policy_kwargs=dict(features_extractor_class=...) a BaseFeaturesExtractor with layers of your own"
            )


def check_env(env: Any, check_actions: Callable[[spaces.Space[Any]], None]) -> None:
    """
    Check an environment before anything is made of it: SB3 would stop at many spaces without a word on what they should be.

    :param env: what a user gave as environment
    :param check_actions: check of the action space
    :raises ValueError: it is none that can be stepped, or one of its spaces cannot work
    """
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(
            f"{type(env).__name__} is a vector environment of gymnasium, another kind than Stable-Baselines3's VecEnv: give "
            "the single environment or its id, or stable_baselines3.common.env_util.make_vec_env(id, n_envs)"
        )
    if isinstance(env, type) or not all(hasattr(env, name) for name in ("reset", "step", "observation_space", "action_space")):
        raise ValueError(f"env must be a gymnasium environment, the id of one or a VecEnv of Stable-Baselines3, got {env!r}")
    if isinstance(env, gym.Env | VecEnv):  # OpenAI Gym's spaces are others; SB3 converts them, and they are checked after that
        check_observation_space(env.observation_space, env)
        check_actions(env.action_space)


def check_observation_space(space: spaces.Space[Any], env: VecEnv | gym.Env[Any, Any] | None = None) -> None:
    """
    :param space: observation space
    :param env: the environment it belongs to, for the message
    :raises ValueError: a space that Stable-Baselines3 cannot read
    """
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    if parts and all(_is_legal(part) for part in parts):
        return
    is_flat = space.is_np_flattenable and spaces.flatdim(space) > 0
    spec = env.get_attr("spec")[0] if isinstance(env, VecEnv) else getattr(env, "spec", None)
    better_id = suggested_id(spec.id) if spec is not None else None
    other = "; wrap it with FlattenObservation" if is_flat else "; let the environment give arrays of one shape, none empty"
    hint = f": use the id {better_id!r}, the same task with a flat Box" if better_id else other
    raise ValueError(
        f"The observation space must be {_LEGAL}, or a Dict of these, "
        f"got {space} of {spec.id if spec is not None else 'the environment'}{hint}"
    )


def check_finite(
    what: str,
    data: np.ndarray | dict[str, np.ndarray] | tuple[Any, ...],
    step: int | None = None,
    environments: Sequence[int] | None = None,
    has_rows: bool = True,
    largest: float = LARGEST_OBSERVATION,
) -> None:
    """
    :param what: what the data is, for the message
    :param data: one row per environment, or a dict of such
    :param step: number of the environments' step, for the message, if they are counted
    :param environments: the environments' indices, if the rows are not all of them
    :param has_rows: False if the data is of one environment and without a dimension for environments
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
            if not has_rows:
                raise ValueError(f"The {what} is not finite, or greater than {largest:g}: {array}")
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


@contextmanager
def naming_dead_workers(env: VecEnv | None) -> Iterator[None]:
    """
    Within it, a broken pipe to a process of a SubprocVecEnv becomes an error that says whose, and how it ended.

    :param env: training environments
    :raises RuntimeError: instead of EOFError and ConnectionError, if an environment's process has ended
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        if not isinstance(env, SubprocVecEnv):
            raise
        # A pipe breaks shortly before its process has ended
        ended = connection.wait([process.sentinel for process in env.processes], timeout=5)
        for process in env.processes:
            if process.sentinel in ended:
                process.join(timeout=5)
        codes = {i: process.exitcode for i, process in enumerate(env.processes) if process.exitcode is not None}
        if not codes:
            raise
        i, code = next(iter(codes.items()))
        why = "it raised an exception, whose traceback it printed above" if code == 1 else "it left by itself"
        if code < 0:
            why = f"signal {-code} ended it" + (", as the system does when memory runs out" if code == -9 else "")
        others = f" (so did those of {', '.join(map(str, list(codes)[1:]))})" if len(codes) > 1 else ""
        raise RuntimeError(f"The process of environment {i} ended with exit code {code}: {why}{others}") from error
