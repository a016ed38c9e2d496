"""Several memories, each reading what the one before it puts out."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch as th
from torch import nn

from sb3_shm.memory.base import Memory, State


def kind_of(memory: Memory) -> str:
    """
    :param memory: a memory
    :return: its class, and how many of it if it is a :class:`Stack`
    """
    return f"{len(memory.layers)} × {kind_of(memory.layers[0])}" if isinstance(memory, Stack) else type(memory).__name__


class Stack(Memory):
    """
    Memories one on top of the other, as the layers of ``torch.nn.LSTM(num_layers=...)``. State: a tuple of theirs.

    :param layers: the memories, the one that reads the input first; each reads the output of the one before it
    :raises ValueError: no layer, or one that does not fit onto the one before it
    """

    def __init__(self, layers: Sequence[Memory]) -> None:
        if not layers:
            raise ValueError("A Stack needs one layer at least, got none")
        for below, above in pairwise(layers):
            if above.input_size != below.output_size:
                raise ValueError(
                    f"Each layer must read the output of the one before it: {above.input_size} inputs on "
                    f"{below.output_size} outputs"
                )
        super().__init__(layers[0].input_size, layers[-1].output_size)
        self.layers: Any = nn.ModuleList(layers)
        self.context_size = sum(layer.context_size for layer in layers)

    def initial_state(self, n: int) -> State:
        return tuple(layer.initial_state(n) for layer in self.layers)

    def draw_context(self, state: State, episode_start: th.Tensor, deterministic: bool = False) -> th.Tensor | None:
        pairs = zip(self.layers, state, strict=True)
        drawn = [layer.draw_context(part, episode_start, deterministic) for layer, part in pairs]
        drawn = [context for context in drawn if context is not None]
        return th.cat(drawn, dim=-1) if drawn else None

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        sizes = [layer.context_size for layer in self.layers]
        contexts: Any = [None] * len(sizes) if context is None else context.split(sizes, dim=-1)
        after = []
        for layer, before, own in zip(self.layers, state, contexts, strict=True):
            x, part = layer(x, before, episode_start, own if layer.context_size else None)
            after.append(part)
        return x, tuple(after)
