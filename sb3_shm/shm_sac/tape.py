"""The replay buffer of recurrent SAC: a tape of observations."""

import sys
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm.memory.checks import check_in_range
from sb3_shm.shm_sac.sampling import (
    Episodes,
    count_windows,
    draw_episodes,
    draw_windows,
    find_episodes,
    flat,
    oldest_rows,
)
from sb3_shm.training.transfer import to_device


class MemoryReplayBufferSamples(NamedTuple):
    """
    N pieces of tape with T + 1 rows each. Row t + 1 holds the next observation of row t wherever ``mask`` is true at t, and
    the memory of that next observation is the memory after reading it: at the end of an episode, too.
    """

    observations: th.Tensor | TensorDict  # (N, T + 1, ...)
    steps: th.Tensor  # (N, T + 1) int64, step within the episode
    episode_starts: th.Tensor  # (N, T + 1) bool
    context: th.Tensor | None  # (N, T + 1, context_size) uint8
    actions: th.Tensor  # (N, T, action_dim)
    rewards: th.Tensor  # (N, T)
    terminals: th.Tensor  # (N, T), 1 where the episode ended at this step for another reason than time
    mask: th.Tensor  # (N, T) bool, true for the transitions that count in the losses
    action_masks: th.Tensor | None = None  # (N, T + 1, n) bool, true for the actions that were legal


class MemoryReplayBuffer(ReplayBuffer):
    """
    A tape per environment with one row for each observation: what was seen, done and earned. When an episode ends, one more
    row holds its last observation, so the row after a transition's row is always its next observation. Nothing is stored
    twice, nothing is padded, and what the memory sees at a time-out is the episode's true last observation.

    The tape is a ring: new rows overwrite the oldest. It is allocated at the first ``add`` and then holds
    ``buffer_size // n_envs * n_envs * (obs + action + context + 10)`` bytes, where obs, action and context are the sizes of
    one of each in bytes, on the CPU; and with action masks a byte for each action in each row, from the first mask on.

    :param buffer_size: rows in all environments together
    :param observation_space: Box (vectors, images), Discrete, MultiDiscrete, MultiBinary or Dict
    :param action_space: Box or Discrete
    :param device: device of the samples
    :param n_envs: number of environments, each has its own part of the tape and its own place to write
    :param optimize_memory_usage: must be False: the tape never stores an observation twice anyway
    :param seq_len: T, transitions in a window; None for whole episodes
    :param burn_in: the first rows of a window that count in no loss, because what the memory knew before the window is
        missing there. If an episode starts in the window, its rows count: their memory is complete.
    :param verbose: 1 to print how many bytes the tape takes
    :raises ValueError: a window that the tape can never hold, or an illegal argument
    """

    action_masks: np.ndarray | None = None
    """Legal actions in each row, (n_envs, rows, n) bool; None as long as all were legal, as on tapes of earlier versions."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        seq_len: int | None = None,
        burn_in: int = 0,
        verbose: int = 0,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage must be False: the tape never stores an observation twice")
        check_in_range("buffer_size", buffer_size, low=2 * n_envs, integer=True)
        BaseBuffer.__init__(self, buffer_size // n_envs, observation_space, action_space, get_device(device), n_envs=n_envs)
        self.set_windows(seq_len, burn_in)
        self.verbose = verbose
        self.context_size = 0
        self.reset()

    def set_windows(self, seq_len: int | None, burn_in: int) -> None:
        """
        Say what a sample is; the tape is the same for all.

        :param seq_len: transitions in a window; None for whole episodes
        :param burn_in: first rows of a window that count in no loss
        :raises ValueError: a window that the tape can never hold, or an illegal argument
        """
        check_in_range("burn_in", burn_in, low=0, integer=True)
        if seq_len is None:
            if burn_in:
                raise ValueError(f"burn_in must be 0 with whole episodes (seq_len=None), got {burn_in}")
        else:
            check_in_range("seq_len (None for whole episodes)", seq_len, low=1, integer=True)
            if burn_in >= seq_len:
                raise ValueError(f"burn_in must be below seq_len = {seq_len}, got {burn_in}")
            if seq_len + 1 > self.buffer_size:
                raise ValueError(
                    f"A window of seq_len + 1 = {seq_len + 1} rows never fits into the {self.buffer_size} rows of one "
                    f"environment: lower seq_len, or raise buffer_size to {(seq_len + 1) * self.n_envs} at least"
                )
        self.seq_len = seq_len
        self.burn_in = burn_in

    def reset(self) -> None:
        """Forget everything."""
        self.written = np.zeros(self.n_envs, dtype=np.int64)  # rows written by each environment, overwritten ones included
        self.is_open = np.zeros(self.n_envs, dtype=bool)  # whether the newest row waits for its action
        self.steps_taken = np.zeros(self.n_envs, dtype=np.int64)  # in the running episodes
        self.action_masks = None
        self._allocated = False

    def _allocate(self) -> None:
        def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.zeros((self.n_envs, self.buffer_size, *shape), dtype)

        space = self.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        is_box = isinstance(self.action_space, spaces.Box)  # the policy's numbers, whatever the environment's precision
        self.tape = {name: zeros(get_obs_shape(part), part.dtype) for name, part in parts.items()}  # type: ignore[arg-type]
        self.actions = zeros((get_action_dim(self.action_space),), np.float32 if is_box else np.int64)
        self.rewards = zeros((), np.float32)
        self.terminals = zeros((), bool)
        self.is_transition = ~zeros((), bool)  # what is not yet written looks like no episode's end
        self.steps = zeros((), np.int32)
        self.contexts = zeros((self.context_size,), np.uint8)
        self._allocated = True
        if self.verbose >= 1:
            print(f"The replay buffer takes {self.nbytes / 1e9:.3g} GB when full")

    @property
    def nbytes(self) -> int:
        """Bytes of the tape, 0 before the first ``add``."""
        if not self._allocated:
            return 0
        arrays = [self.actions, self.rewards, self.terminals, self.is_transition, self.steps, self.contexts]
        arrays += [*self.tape.values(), *([] if self.action_masks is None else [self.action_masks])]
        return sum(array.nbytes for array in arrays)

    def size(self) -> int:
        """
        :return: rows in the buffer, of all environments
        """
        return int(np.minimum(self.written, self.buffer_size).sum())

    def end_episodes(self, ended: np.ndarray | bool = True) -> None:
        """
        Say that the running episodes do not go on (the environments were reset from outside): the newest observation stays as
        an episode's last one, and the next one added is the first of another.

        :param ended: (n_envs,) bool, or one for all
        """
        self.is_open &= ~np.asarray(ended, dtype=bool)
        self.steps_taken[~self.is_open] = 0

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        episode_start: np.ndarray | None = None,
        context: np.ndarray | None = None,
        action_masks: np.ndarray | None = None,
        next_action_masks: np.ndarray | None = None,
    ) -> None:
        """
        :param obs: observations, (n_envs, ...) or a dict of them
        :param next_obs: what came next; where the episode ended, its last observation
        :param action: (n_envs, ...)
        :param reward: (n_envs,)
        :param done: (n_envs,)
        :param infos: one per environment, ``TimeLimit.truncated`` in it tells a time-out from a real end
        :param episode_start: (n_envs,) bool, true where ``obs`` is the first of an episode; None to go by ``done`` alone
        :param context: what the memory drew when it read ``obs``, (n_envs, 1, context_size) uint8; None to keep nothing
        :param action_masks: which actions were legal with ``obs``, (n_envs, n) bool; None for all
        :param next_action_masks: the same of ``next_obs``
        :raises ValueError: with whole episodes, an episode that the tape cannot hold
        """
        if action_masks is not None and self.action_masks is None:
            self.action_masks = np.ones((self.n_envs, self.buffer_size, action_masks.shape[-1]), bool)
        if not self._allocated:
            self.context_size = 0 if context is None else context.shape[-1]
            self._allocate()
        self.end_episodes(False if episode_start is None else episode_start)
        done = np.asarray(done, dtype=bool)
        if self.seq_len is None and (too_long := self.steps_taken + 2 > self.buffer_size).any():
            raise ValueError(
                f"The episode of environment {too_long.argmax()} is longer than the buffer, which holds "
                f"buffer_size // n_envs = {self.buffer_size} rows of each: raise buffer_size, or train on windows (seq_len)"
            )
        timeout = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        envs = np.arange(self.n_envs) * self.buffer_size
        # An open row holds this very observation already
        row = envs + (self.written - self.is_open) % self.buffer_size
        following = envs + (self.written - self.is_open + 1) % self.buffer_size
        flat(self.steps)[row] = self.steps_taken
        flat(self.steps)[following] = self.steps_taken + 1
        flat(self.is_transition)[row] = True
        flat(self.is_transition)[following] = False
        flat(self.actions)[row] = np.asarray(action).reshape(self.n_envs, -1)
        flat(self.rewards)[row] = reward
        flat(self.terminals)[row] = done & ~timeout
        for where, observed, legal in ((row, obs, action_masks), (following, next_obs, next_action_masks)):
            for name, array in self.tape.items():
                part = observed[name] if isinstance(observed, dict) else observed
                flat(array)[where] = np.asarray(part).reshape(self.n_envs, *array.shape[2:])
            if context is not None:  # nothing was drawn for an episode's last observation: any will do
                flat(self.contexts)[where] = context[:, 0]
            if self.action_masks is not None:
                flat(self.action_masks)[where] = True if legal is None else legal
        self.written += np.where(self.is_open, 1, 2)
        self.is_open[:] = ~done
        self.steps_taken = np.where(done, 0, self.steps_taken + 1)

    def _windows(self) -> np.ndarray:
        """Number of windows that each environment's tape holds, (n_envs,)."""
        return count_windows(self.written, self.buffer_size, self.seq_len or 0)

    def _episodes(self) -> Episodes:
        """The episodes that are whole on the tape."""
        return find_episodes(self.is_transition, self.steps, self.written, self.is_open)

    def can_sample(self) -> bool:
        """
        :return: whether the tape holds at least one window, or one whole episode
        """
        if not self._allocated:
            return False
        return len(self._episodes().env) > 0 if self.seq_len is None else bool(self._windows().any())

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> MemoryReplayBufferSamples:  # type: ignore[override]
        """
        Draw pieces of tape, uniformly and with replacement.

        :param batch_size: number of windows, or of episodes; several short episodes may share a row of the batch
        :param env: normalises observations and rewards
        :return: the batch
        :raises ValueError: the tape does not hold one window or one whole episode yet
        """
        check_in_range("batch_size", batch_size, low=1, integer=True)
        # Found once for the check and the draw: finding whole episodes reads a flag of every row
        episodes = self._episodes() if self._allocated and self.seq_len is None else None
        if not (len(episodes.env) if episodes is not None else self.can_sample()):
            wanted = "a whole episode" if self.seq_len is None else f"a window of {self.seq_len + 1} rows of one environment"
            raise ValueError(f"The buffer does not hold {wanted} yet, only {self.size()} rows: add more before sampling")
        if episodes is not None:
            envs, ages, held = draw_episodes(episodes, batch_size)
        else:
            envs, ages, held = draw_windows(self._windows(), self.seq_len or 0, batch_size)
        # One number per row of the whole tape
        rows = envs * self.buffer_size + (oldest_rows(self.written, self.buffer_size)[envs] + ages) % self.buffer_size

        steps = flat(self.steps).take(rows).astype(np.int64)
        starts = (steps == 0) & held
        mask = flat(self.is_transition).take(rows)[:, :-1] & held[:, :-1]
        if self.burn_in:
            complete = starts[:, :-1].cumsum(axis=1) > 0
            mask &= complete | (np.arange(mask.shape[1]) >= self.burn_in)

        def take(array: np.ndarray, rows: np.ndarray = rows[:, :-1]) -> np.ndarray:
            return flat(array).take(rows, axis=0)

        seen = {name: take(array, rows) for name, array in self.tape.items()}
        samples = MemoryReplayBufferSamples(
            *to_device(
                self.device,
                self._normalize_obs(seen if isinstance(self.observation_space, spaces.Dict) else seen[""], env),
                steps,
                starts,
                take(self.contexts, rows),
                take(self.actions),
                self._normalize_reward(take(self.rewards), env).astype(np.float32),
                take(self.terminals).astype(np.float32),
                mask,
                *([] if self.action_masks is None else [take(self.action_masks, rows)]),
            )
        )
        return samples if self.context_size else samples._replace(context=None)


# Where it was up to version 0.1: saved models and tapes name it
sys.modules["sb3_shm.common.replay"] = sys.modules[__name__]
