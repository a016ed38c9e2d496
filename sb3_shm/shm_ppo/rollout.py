"""The rollout buffer of recurrent PPO."""

import math
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict

from sb3_shm.memory.base import State, map_state, state_tensors

SHORTEST = 8
"""Steps of a sequence below which a memory learns next to nothing: nobody gets less without asking for it."""


class MemoryRolloutBufferSamples(NamedTuple):
    """A minibatch of N whole sequences of T steps; every tensor but the state's begins with (N, T)."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    episode_starts: th.Tensor
    state: State  # before the first step of each sequence, (N, ...)
    context: th.Tensor | None
    action_masks: th.Tensor | None  # (N, T, options) bool


class MemoryRolloutBuffer(RolloutBuffer):
    """
    SB3's RolloutBuffer, which also keeps the context of each step (the rows of θ that were drawn) and the state of the memory
    where a training sequence starts: every ``seq_len`` steps, never at each step.

    Minibatches are whole sequences of ``seq_len`` steps. As in SB3 the arrays have the shape (n_steps, n_envs, ...), but the
    steps of one environment are neighbours in memory, so a sequence is a slice and nothing is copied to form it. Action masks
    have an array as soon as some are added.

    What the policy computes stays on its device while the rollout goes on. It is in the arrays ``values``, ``log_probs`` and
    ``contexts`` from :meth:`compute_returns_and_advantage` on; :meth:`get` then brings all arrays to the device, once.
    One class for Box, Discrete, MultiDiscrete, MultiBinary and Dict observations.

    Size in bytes (:attr:`nbytes`), with obs, action and mask the bytes of one of each, context 0 to 2, and state those of the
    memory of one environment (for SHM 4 H² + 8)::

        n_steps * n_envs * (obs + action + mask + context + 24) + n_steps / seq_len * n_envs * state

    :param buffer_size: n_steps, steps per environment
    :param observation_space: observation space
    :param action_space: action space
    :param device: device of the minibatches
    :param gae_lambda: factor of GAE
    :param gamma: discount factor
    :param n_envs: number of environments
    :param seq_len: T, length of a training sequence; default n_steps
    :param context_size: bytes of context per step
    :raises ValueError: ``seq_len`` does not divide ``buffer_size``
    """

    observations: Any  # np.ndarray, or a dict of them
    contexts: np.ndarray
    action_masks: np.ndarray | None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        seq_len: int | None = None,
        context_size: int = 0,
    ) -> None:
        self.seq_len = buffer_size if seq_len is None else seq_len
        self.context_size = context_size
        if self.seq_len < 1 or buffer_size % self.seq_len:
            raise ValueError(f"seq_len must divide n_steps = {buffer_size}, got {self.seq_len}")
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def _zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        return np.zeros((self.n_envs, self.buffer_size, *shape), dtype).swapaxes(0, 1)

    def reset(self) -> None:
        zeros = self._zeros
        if isinstance(self.observation_space, spaces.Dict):
            self.observations = {
                key: zeros(self.obs_shape[key], space.dtype)  # type: ignore[call-overload]
                for key, space in self.observation_space.spaces.items()
            }
        else:
            self.observations = zeros(self.obs_shape, self.observation_space.dtype)
        is_box = isinstance(self.action_space, spaces.Box)  # the policy's numbers, whatever the environment's precision
        self.actions = zeros((self.action_dim,), np.float32 if is_box else self.action_space.dtype)
        self.contexts = zeros((self.context_size,), np.uint8)
        self.action_masks = None
        self.episode_starts, self.rewards, self.values, self.log_probs, self.advantages, self.returns = (
            zeros(()) for _ in range(6)
        )
        self.states: list[State] = []
        self._computed: list[tuple[th.Tensor, th.Tensor, th.Tensor | None]] = []
        self.pos = 0
        self.full = False
        self._sequences: MemoryRolloutBufferSamples | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held by a full buffer."""
        obs = self.observations
        arrays: list[np.ndarray] = list(obs.values()) if isinstance(obs, dict) else [obs]
        arrays += [self.actions, self.contexts, self.episode_starts, self.rewards]
        arrays += [self.values, self.log_probs, self.advantages, self.returns]
        arrays += [] if self.action_masks is None else [self.action_masks]
        held = [tensor for state in self.states for tensor in state_tensors(state)]
        return sum(array.nbytes for array in arrays) + sum(tensor.nbytes for tensor in held)

    def _write(self, array: np.ndarray, obs: Any) -> np.ndarray:
        """:return: the array with the observations of this step, or one that can hold them"""
        obs = np.asarray(obs)
        if self.pos == 0 and obs.dtype.kind == "f" and array.dtype.kind != "f":
            # VecNormalize makes floats of integers that are no picture, and leaves their space as it is
            array = self._zeros(array.shape[2:], obs.dtype)
        array[self.pos] = obs.reshape(array.shape[1:])
        return array

    def add(  # type: ignore[override]
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        state: State,
        context: th.Tensor | None,
        action_masks: np.ndarray | None = None,
    ) -> None:
        """
        :param obs: observations, (n_envs, ...) or a dict of them
        :param action: (n_envs, ...)
        :param reward: (n_envs,)
        :param episode_start: (n_envs,), 1 where ``obs`` is the first of an episode
        :param value: (n_envs, 1)
        :param log_prob: (n_envs,)
        :param state: memory before this step, and before the reset that ``episode_start`` asks for
        :param context: what the memory drew in this step, (n_envs, 1, context_size), or None
        :param action_masks: which options were legal, (n_envs, options) bool; None throughout a rollout for all
        """
        if action_masks is not None:
            if self.action_masks is None:
                self.action_masks = self._zeros(action_masks.shape[1:], bool)
            self.action_masks[self.pos] = action_masks
        if isinstance(self.observations, dict):
            self.observations = {key: self._write(array, obs[key]) for key, array in self.observations.items()}
        else:
            self.observations = self._write(self.observations, obs)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self._computed.append((value.flatten(), log_prob, None if context is None else context[:, 0]))
        if self.pos % self.seq_len == 0:
            self.states.append(state)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        End the rollout: fill the arrays that hold what the policy computed, and by GAE ``advantages`` and ``returns``.

        :param last_values: values of the observations after the last step, (n_envs,) or (n_envs, 1)
        :param dones: (n_envs,), whether the last step ended an episode
        """
        if self._computed:
            values, log_probs, contexts = zip(*self._computed, strict=True)
            for array, tensors in ((self.values, values), (self.log_probs, log_probs), (self.contexts, contexts)):
                if tensors[0] is not None:
                    array[:] = th.stack(tensors).cpu().numpy()
            self._computed = []
        super().compute_returns_and_advantage(last_values, dones)

    def get(self, batch_size: int | None = None) -> Generator[MemoryRolloutBufferSamples, None, None]:  # type: ignore[override]
        """
        Yield every sequence once, in random order.

        :param batch_size: steps per minibatch, a multiple of ``seq_len``; None for all at once
        :return: minibatches of ``batch_size // seq_len`` sequences, the last one perhaps of fewer
        :raises ValueError: no multiple of ``seq_len``
        """
        assert self.full, "The buffer must be full before sampling from it"
        if batch_size is not None and (batch_size < 1 or batch_size % self.seq_len):
            raise ValueError(f"batch_size must be a multiple of seq_len = {self.seq_len}, 1 or more, got {batch_size}")
        if self._sequences is None:
            self._sequences = self._as_sequences()
        data = self._sequences
        n_sequences = self.n_envs * self.buffer_size // self.seq_len
        size = n_sequences if batch_size is None else batch_size // self.seq_len
        order = th.from_numpy(np.random.permutation(n_sequences)).to(self.device)  # noqa: NPY002  # the generator that SB3 seeds
        for rows in order.split(size):

            def pick(part: Any, rows: th.Tensor = rows) -> Any:
                if isinstance(part, dict):
                    return {key: tensor.index_select(0, rows) for key, tensor in part.items()}
                return None if part is None else map_state(lambda tensor: tensor.index_select(0, rows), part)

            yield MemoryRolloutBufferSamples(*map(pick, data))

    def _as_sequences(self) -> MemoryRolloutBufferSamples:
        """All data as sequences on the device, (n_sequences, seq_len, ...): views of the arrays if that is the CPU."""

        def sequences(array: np.ndarray) -> th.Tensor:
            return self.to_torch(array.swapaxes(0, 1).reshape(-1, self.seq_len, *array.shape[2:]), copy=False)

        obs = self.observations
        return MemoryRolloutBufferSamples(
            {key: sequences(array) for key, array in obs.items()} if isinstance(obs, dict) else sequences(obs),
            sequences(self.actions),
            sequences(self.values),
            sequences(self.log_probs),
            sequences(self.advantages),
            sequences(self.returns),
            sequences(self.episode_starts).bool(),
            # n_steps / seq_len states of n_envs rows each, to one row per sequence in the order of the sequences
            map_state(lambda *tensors: th.stack(tensors, dim=1).flatten(0, 1), *self.states),
            sequences(self.contexts) if self.context_size else None,
            None if self.action_masks is None else sequences(self.action_masks),
        )


def check_lengths(
    n_steps: int, n_envs: int, seq_len: int | None, batch_size: int | None, normalize_advantage: bool
) -> tuple[int, int]:
    """
    :param n_steps: steps per environment and rollout
    :param n_envs: number of environments
    :param seq_len: steps of a training sequence; None for ``n_steps``, cut in up to four equal parts with less than four
        environments, so that there are minibatches to make, and for the greatest common divisor of this and ``batch_size``
        if that is 8 or more
    :param batch_size: steps of a minibatch, None for an equal part of the rollout, a quarter if possible; more than the
        rollout has are as many as it has
    :param normalize_advantage: whether advantages are divided by their standard deviation in the minibatch
    :return: ``seq_len`` and ``batch_size``, their defaults resolved
    :raises ValueError: whole sequences cannot make this rollout or these minibatches
    """
    if batch_size is not None:  # as in SB3, one minibatch of all there is
        batch_size = min(batch_size, n_steps * n_envs)
    if seq_len is None:
        seq_len = n_steps // max(parts for parts in range(1, -(-4 // n_envs) + 1) if n_steps % parts == 0)
        if batch_size is not None and batch_size % seq_len and (common := math.gcd(seq_len, batch_size)) >= SHORTEST:
            seq_len = common
    if seq_len < 1 or n_steps % seq_len:
        divisors = [length for length in range(1, n_steps + 1) if n_steps % length == 0]
        raise ValueError(f"seq_len must divide n_steps = {n_steps}: one of {divisors}; got {seq_len}")
    n_sequences = n_envs * n_steps // seq_len
    if batch_size is None:  # the most minibatches, up to four, that are equal and hold more than one step
        parts = max(n for n in (1, 2, 3, 4) if n == 1 or (n_sequences % n == 0 and n_sequences // n * seq_len > 1))
        batch_size = n_sequences // parts * seq_len
    if batch_size % seq_len:
        raise ValueError(
            f"batch_size must be a multiple of seq_len = {seq_len} up to n_steps * n_envs = {n_steps * n_envs}, so {seq_len} "
            f"times 1 to {n_sequences}; got {batch_size}: or lower seq_len, for example to {math.gcd(batch_size, n_steps)}"
        )
    if normalize_advantage and batch_size == 1:
        raise ValueError(
            f"batch_size must be above 1 to normalise advantages, and so must n_steps * n_envs = {n_steps * n_envs}: take "
            "more steps, or normalize_advantage=False"
        )
    return seq_len, batch_size
