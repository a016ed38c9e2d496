"""The contract that every memory of this package keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch as th
from torch import nn

State: TypeAlias = tuple[Any, ...]
"""A memory's state: a nested tuple of tensors, each with the batch as its first dimension."""


def map_state(fn: Callable[..., Any], *states: Any) -> Any:
    """
    Apply a function to each tensor of a state, or to the tensors at the same place of several states.

    :param fn: called with one tensor of each state
    :param states: nested tuples of the same structure
    :return: nested tuple of the results
    """
    if isinstance(states[0], tuple):
        return tuple(map_state(fn, *parts) for parts in zip(*states, strict=True))
    return fn(*states)


def state_tensors(state: Any) -> list[th.Tensor]:
    """
    :param state: nested tuple of tensors
    :return: its tensors, depth first
    """
    if isinstance(state, tuple):
        return [tensor for part in state for tensor in state_tensors(part)]
    return [state]


def reset_state(state: State, initial_state: State, episode_start: th.Tensor) -> State:
    """
    Put the initial state into the rows where an episode starts.

    A selection, never a product with 0: inf * 0 would be NaN.

    :param state: state of N rows
    :param initial_state: state of N rows
    :param episode_start: (N,) bool
    :return: state of N rows
    """

    def select(current: th.Tensor, initial: th.Tensor) -> th.Tensor:
        return th.where(episode_start.view(-1, *[1] * (current.dim() - 1)), initial, current)

    result: State = map_state(select, state, initial_state)
    return result


def steps_in_episode(step: th.Tensor, episode_start: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Number the steps of each row's episodes.

    :param step: (N,) int64, number of steps already taken in the running episode
    :param episode_start: (N, T) bool
    :return: index of each step within its episode, (N, T) int64, and the counter after step T, (N,) int64
    """
    if episode_start.shape[1] == 1:  # acting: as few operations as possible
        index = th.where(episode_start, 0, step.unsqueeze(1))
        return index, index[:, 0] + 1
    time = th.arange(episode_start.shape[1], device=step.device)
    # The latest start at or before each step; where there is none yet, the episode began `step` steps before the sequence.
    started_at = th.where(episode_start, time, -step.unsqueeze(1)).cummax(dim=1).values
    index = time - started_at
    return index, index[:, -1] + 1


class Memory(nn.Module, ABC):
    """
    A sequence memory: a causal map from inputs to outputs that carries a state.

    Shape symbols, here and everywhere: N sequences, T steps, H memory size, D features.

    It is called as ``y, state = memory(x)``, then ``memory(x, state)`` for the steps that follow, see :meth:`__call__`, and
    computes in :meth:`forward`, which each memory defines.

    A memory promises three things (:func:`~sb3_shm.memory.testing.check_memory` holds any memory to them):

    * T calls with one step each give the outputs and the state of one call with T steps;
    * rows do not influence each other;
    * where ``episode_start`` is true, the state before that step is the initial one, so one row may hold several episodes
      and nothing is ever padded.

    :param input_size: D, number of input features
    :param output_size: number of output features
    """

    context_size: int = 0
    """Bytes that the memory draws at random in each step and that must be given back to replay it; 0 if nothing is random."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size

    def __call__(
        self,
        x: th.Tensor,
        state: State | None = None,
        episode_start: th.Tensor | None = None,
        context: th.Tensor | None = None,
    ) -> tuple[th.Tensor, State]:
        """
        Read T steps.

        :param x: inputs, (N, T, input_size)
        :param state: state before the first step, what the call before returned; None for the initial one
        :param episode_start: (N, T) bool; ``episode_start[:, t]`` means that the state before step t is the initial one; None
            for nowhere
        :param context: what ``draw_context`` returned for these steps, (N, T, context_size); None to draw it now, and after
            ``eval()`` to draw nothing: then equal calls have equal results
        :return: outputs, (N, T, output_size), and the state after step T
        :raises ValueError: a shape that does not fit
        """
        if x.dim() != 3 or x.shape[2] != self.input_size or x.shape[1] == 0:
            raise ValueError(f"x must have the shape (N, T, {self.input_size}), T at least 1, got {tuple(x.shape)}")
        if state is None:
            state = self.initial_state(x.shape[0])
        elif not isinstance(state, tuple):
            raise ValueError(f"state must be the tuple that the call before returned, got {type(state).__name__}")
        elif any(tensor.shape[0] != x.shape[0] for tensor in state_tensors(state)):
            rows = [len(tensor) for tensor in state_tensors(state)]
            raise ValueError(f"state must have one row per sequence of x, that is {len(x)}, got {rows}")
        if episode_start is None:
            episode_start = th.zeros(x.shape[:2], dtype=th.bool, device=x.device)
        elif episode_start.shape != x.shape[:2] or episode_start.dtype != th.bool:
            raise ValueError(
                f"episode_start must be {tuple(x.shape[:2])} of torch.bool as x is {tuple(x.shape)}, got "
                f"{tuple(episode_start.shape)} of {episode_start.dtype}"
            )
        if context is None and self.context_size:
            context = self.draw_context(state, episode_start, deterministic=not self.training)
        elif context is not None and context.shape != (*x.shape[:2], self.context_size):
            raise ValueError(
                f"context must be {(*x.shape[:2], self.context_size)} as x is {tuple(x.shape)}, got {tuple(context.shape)}"
            )
        result: tuple[th.Tensor, State] = super().__call__(x, state, episode_start, context)
        return result

    @abstractmethod
    def initial_state(self, n: int) -> State:
        """
        :param n: number of rows
        :return: the state before the first step of an episode, each tensor (n, ...)
        """

    @abstractmethod
    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        """
        What :meth:`__call__` does when it has checked and filled in its arguments.

        :param x: inputs, (N, T, input_size)
        :param state: state before the first step
        :param episode_start: (N, T) bool; ``episode_start[:, t]`` means that the state before step t is the initial one
        :param context: what ``draw_context`` returned for these steps, (N, T, context_size); None if nothing is drawn
        :return: outputs, (N, T, output_size), and the state after step T
        """

    @property
    def parameter_count(self) -> int:
        """Number of learned numbers, to compare memories at equal size."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def state_size(self) -> int:
        """
        :return: floating-point numbers of state per environment; counters (integers) are not counted
        """
        return sum(tensor.numel() for tensor in state_tensors(self.initial_state(1)) if tensor.is_floating_point())

    def draw_context(self, state: State, episode_start: th.Tensor, deterministic: bool = False) -> th.Tensor | None:
        """
        Draw what is random in the next T steps, so that it can be stored and given back when the steps are replayed.

        :param state: state before the first step
        :param episode_start: (N, T) bool
        :param deterministic: draw nothing: a function of the step within the episode alone
        :return: (N, T, context_size) uint8, or None if nothing is random in this memory
        """
        return None
