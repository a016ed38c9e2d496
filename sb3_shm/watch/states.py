"""What there is to see in the state of each memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_shm.memory import (
    FFM,
    FWP,
    GPT,
    GRU,
    LRU,
    LSTM,
    MLP,
    MLSTM,
    S6,
    SHM,
    FrameStack,
    LinearAttention,
    Memory,
    State,
)
from sb3_shm.memory.base import state_tensors
from sb3_shm.memory.stack import Stack, kind_of


@dataclass
class Part:
    """A part of a memory's state, as a table of numbers after each step."""

    name: str
    tables: NDArray[np.float32]
    """(T, rows, columns)"""


class _Kind(NamedTuple):
    """How the state of a class of memories is shown."""

    note: str
    # Of the floating-point tensors of its state, one after the other, {} for its number; the last stands for all that follow
    names: tuple[str, ...] = ()
    is_complex: bool = False  # the last dimension is a real and an imaginary part
    keeps_steps: bool = False  # the rows are steps; else a vector is folded to a rectangle


_NO_MEANING = "No number in it has a meaning of its own; what can be seen is when it changes."
_KINDS: dict[type[Memory], _Kind] = {
    SHM: _Kind(
        "The matrix is written and read by key: a column is what belongs to one feature of the keys.",
        ("matrix M: values down, keys across", "previous input"),
    ),
    GRU: _Kind(_NO_MEANING, ("hidden state",)),
    LSTM: _Kind(_NO_MEANING, ("hidden state", "cell")),
    MLP: _Kind("An MLP keeps nothing: only what is seen now can count."),
    FrameStack: _Kind("The last inputs, as they are.", ("inputs of the last steps, the latest on top",), keeps_steps=True),
    FFM: _Kind(_NO_MEANING, ("traces (absolute values): features down, frequencies across",), is_complex=True),
    LRU: _Kind(_NO_MEANING, ("state (absolute values)",), is_complex=True),
    S6: _Kind(_NO_MEANING, ("state: features down", "inputs of the convolution, by step")),
    LinearAttention: _Kind(
        "The matrix is written and read by key; nothing is ever forgotten.",
        ("matrix: values down, keys across; the last row counts the keys",),
    ),
    FWP: _Kind("The matrix is written and read by key.", ("matrix W: values down, keys across",)),
    MLSTM: _Kind(
        "The matrix is written and read by key.",
        ("matrix: values down, keys across; the last row counts the keys", "logarithm of its scale"),
    ),
    GPT: _Kind(
        "Keys and values of the last steps, which a step attends to; no number in them has a meaning of its own.",
        ("attention layer {}: keys and values of the last steps, the latest below",),
        keeps_steps=True,
    ),
}
_UNKNOWN = _Kind("sb3-shm does not know this memory: its state is shown as it is.", ("part {} of its state",))


def _kind(memory: Memory) -> _Kind:
    return next((_KINDS[cls] for cls in type(memory).__mro__ if cls in _KINDS), _UNKNOWN)


def describe(memory: Memory) -> str:
    """
    :param memory: a memory
    :return: its name and the size of its state
    """
    return f"memory {kind_of(memory)} ({memory.state_size()} numbers)"


def about(memory: Memory) -> str:
    """
    :param memory: a memory
    :return: what can be read in its picture, and what cannot
    """
    return _kind(memory.layers[0] if isinstance(memory, Stack) else memory).note


def parts_of(memory: Memory, states: Sequence[State]) -> list[Part]:
    """
    :param memory: a memory
    :param states: its states after each of T steps, of one row each
    :return: what there is to see, without counters of steps
    """
    if isinstance(memory, Stack):
        return [
            Part(f"layer {i + 1}: {part.name}", part.tables)
            for i, layer in enumerate(memory.layers)
            for part in parts_of(layer, [state[i] for state in states])
        ]
    kind = _kind(memory)
    parts = []
    tensors = [[tensor for tensor in state_tensors(state) if tensor.is_floating_point()] for state in states]
    for i, steps in enumerate(zip(*tensors, strict=True)):
        name = kind.names[min(i, len(kind.names) - 1)].format(i + 1)
        values: Any = th.cat(steps).float().cpu()  # (T, ...)
        if kind.is_complex:
            values = values.norm(dim=-1)
        if values.numel():  # a stack of one frame keeps nothing
            parts.append(Part(name, _tables(values.numpy(), kind.keeps_steps)))
    return parts


def _tables(values: NDArray[np.float32], keeps_steps: bool) -> NDArray[np.float32]:
    """
    :param values: (T, ...)
    :param keeps_steps: the first dimension of a step's numbers is not to be folded
    :return: (T, rows, columns): a vector becomes a rectangle about twice as wide as high, the rest of it NaN
    """
    t = len(values)
    if values.ndim >= 3 and (keeps_steps or values.shape[1] > 1):
        return values.reshape(t, values.shape[1], -1)
    flat = values.reshape(t, -1)
    size = flat.shape[1]
    columns = max(1, min(size, int(np.ceil(np.sqrt(2 * size)))))
    rows = -(-size // columns)
    padded = np.full((t, rows * columns), np.nan, dtype=np.float32)
    padded[:, :size] = flat
    return padded.reshape(t, rows, columns)
