"""What goes on inside a Stable Hadamard Memory while it reads, for diagnostics and pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_shm.memory import SHM, Memory, State
from sb3_shm.memory.backends.inputs import HadamardInputs


class Call(NamedTuple):
    """One call of a memory."""

    x: th.Tensor  # (N, T, D)
    state: State
    episode_start: th.Tensor  # (N, T) bool
    context: th.Tensor | None  # (N, T, context_size) uint8
    y: th.Tensor  # (N, T, output_size)
    state_after: State


def look_inside(
    memory: SHM, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
) -> HadamardInputs:
    """
    What :meth:`SHM.forward <sb3_shm.memory.shm.SHM.forward>` hands to the recurrence.

    :param memory: a memory
    :param x: its inputs, (N, T, D)
    :param state: its state before the first step
    :param episode_start: (N, T) bool
    :param context: the rows of θ, (N, T, 1) uint8; needed if the memory draws rows
    :return: the vectors of each step
    :raises ValueError: the context of a memory that draws rows is None
    """
    if memory.draws_rows and context is None:
        raise ValueError("This memory draws rows of θ: pass as context those that it drew")
    z, _ = memory.project(x, state, episode_start)
    vectors, _ = memory.vectors(z, context, episode_start)
    return vectors


@contextmanager
def calls_of(memory: Memory) -> Iterator[list[Call]]:
    """
    Note every call of a memory, whoever calls it, while the block runs::

        with calls_of(policy.pi_trunk.memory) as calls:
            policy.predict(obs)
        calls[0].x

    :param memory: the memory
    :return: the calls, a list that grows
    """
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        calls.append(Call(*inputs, *outputs))

    handle = memory.register_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
