"""A tape of observations from a file."""

import pathlib
from io import BufferedIOBase
from pickle import UnpicklingError
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_pkl

from sb3_shm.shm_sac.tape import MemoryReplayBuffer


def load_tape(
    path: str | pathlib.Path | BufferedIOBase,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    n_envs: int,
    context_size: int,
    verbose: int = 0,
) -> MemoryReplayBuffer:
    """
    :param path: file that ``save_replay_buffer`` wrote
    :param observation_space: of the model
    :param action_space: of the model
    :param n_envs: number of environments of the model
    :param context_size: bytes per row that the model's memory replays
    :param verbose: 0 for silence
    :return: the tape
    :raises ValueError: not a tape, or one of another model
    """
    try:
        loaded = load_from_pkl(path, verbose)
    # All that unpickling may raise, by pickle's documentation
    except (UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"{path} holds no replay buffer, or a part of one: {error or 'it is empty'}") from error
    if not isinstance(loaded, MemoryReplayBuffer):
        raise ValueError(f"The file must hold a MemoryReplayBuffer, it holds a {type(loaded).__name__}")
    for name, theirs, ours in (
        ("observation space", loaded.observation_space, observation_space),
        ("action space", loaded.action_space, action_space),
        ("number of environments", loaded.n_envs, n_envs),
        ("number of bytes to replay (replay_context)", loaded.context_size, context_size if loaded.nbytes else 0),
    ):
        if theirs != ours:
            raise ValueError(f"The {name} of the loaded buffer is {theirs}, that of the model is {ours}")
    return loaded
