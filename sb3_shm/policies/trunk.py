"""From features to what the heads of a policy or critic see: encoder, position, memory."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory import Memory, State, make_memory
from sb3_shm.memory.backends.cpu_threads import adapt_waits
from sb3_shm.memory.base import steps_in_episode
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.linear import Linear
from sb3_shm.memory.stack import Stack
from sb3_shm.policies.layers import LayerNorm, hidden_layers

POSITIONS = (None, "sine")


class SinePosition(nn.Module):
    """
    Mix the step within the episode into features: ``(1 - a) x + a s``, where s is the sine table of Vaswani et al. (2017) with
    base 1024 and the weight a in (0, 1) is learned, 0.5 at first (as in the released POPGym code).

    :param size: number of features
    """

    table: th.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.logit = nn.Parameter(th.zeros(()))
        self.register_buffer("table", self._sines(th.arange(2048)), persistent=False)

    def _sines(self, index: th.Tensor) -> th.Tensor:
        frequency = th.exp(th.arange(0, self.size, 2, device=index.device) * (-math.log(1024.0) / self.size))
        angle = index.unsqueeze(-1) * frequency
        return th.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., : self.size].contiguous()

    def forward(self, x: th.Tensor, index: th.Tensor) -> th.Tensor:
        """
        :param x: features, (N, T, size)
        :param index: step within the episode, (N, T) int64
        :return: mixed features, (N, T, size)
        """
        # On the CPU reading the table is faster than computing it, which very long episodes need. A traced step cannot choose,
        # and a GPU would have to be waited for
        fits = index.is_cpu and not th.compiler.is_compiling() and int(index.max()) < len(self.table)
        sines = F.embedding(index, self.table) if fits else self._sines(index)
        return th.lerp(x, sines.to(x), th.sigmoid(self.logit))


class MemoryTrunk(Memory):
    """
    Encoder, optional position, memory: itself a memory, over features.

    The encoder is that of the released POPGym code (PPO of the paper): Linear, LayerNorm without parameters, [position], then
    Linear and ReLU for each further size.

    :param input_size: number of features
    :param memory: name or class, see :func:`~sb3_shm.memory.make_memory`
    :param memory_kwargs: arguments of the memory
    :param encoder_arch: sizes of the encoder's layers; may be empty
    :param position: None, or "sine" for :class:`SinePosition` after the first layer: the same for every memory
    :param memory_layers: number of memories one on top of the other
    :raises ValueError: unknown memory, memory argument or position
    """

    def __init__(
        self,
        input_size: int,
        memory: str | type[Memory] = "shm",
        memory_kwargs: dict[str, Any] | None = None,
        encoder_arch: Sequence[int] = (128, 64),
        position: str | None = None,
        memory_layers: int = 1,
    ) -> None:
        check_in_range("memory_layers", memory_layers, low=1, integer=True)
        if position not in POSITIONS:
            raise ValueError(f"Unknown position {position!r}, choose one of {', '.join(map(repr, POSITIONS))}")
        if not isinstance(encoder_arch, Sequence):
            raise ValueError(f"encoder_arch must be a list of layer sizes, it may be empty, got {encoder_arch!r}")
        sizes = [input_size, *encoder_arch]
        for size in sizes:
            check_in_range("each size of encoder_arch and input_size", size, low=1, integer=True)
        first = [Linear(input_size, sizes[1]), LayerNorm(sizes[1])] if encoder_arch else []
        rest = hidden_layers(sizes[1:], partial(nn.ReLU, inplace=True))
        inner = make_memory(memory, sizes[-1], memory_kwargs)
        if memory_layers > 1:
            above = [make_memory(memory, inner.output_size, memory_kwargs) for _ in range(memory_layers - 1)]
            inner = Stack([inner, *above])
        super().__init__(input_size, inner.output_size)
        self.first = nn.Sequential(*first)
        self.position = SinePosition(sizes[min(1, len(encoder_arch))]) if position == "sine" else None
        self.rest = nn.Sequential(*rest)
        self.memory = inner
        self.context_size = inner.context_size

    def initial_state(self, n: int, step: th.Tensor | None = None) -> State:
        """
        :param n: number of rows
        :param step: step within the episode at which each row begins, (n,) int64: the memory is empty but the position is
            known; None for the first step
        :return: the state before that step
        """
        state = self.memory.initial_state(n)
        if self.position is None:
            return state
        return state, th.zeros(n, dtype=th.int64, device=self.position.logit.device) if step is None else step

    def draw_context(self, state: State, episode_start: th.Tensor, deterministic: bool = False) -> th.Tensor | None:
        inner: Any = state if self.position is None else state[0]
        return self.memory.draw_context(inner, episode_start, deterministic)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        if not th.compiler.is_compiling():
            adapt_waits()  # here for the memories without kernels
        x = self.first(x)
        if self.position is None:
            y, state = self.memory(self.rest(x), state, episode_start, context)
            return y, state
        inner: Any
        step: Any
        inner, step = state
        index, step = steps_in_episode(step, episode_start)
        y, inner = self.memory(self.rest(self.position(x, index)), inner, episode_start, context)
        return y, (inner, step)


def read_trunks(
    trunks: Sequence[MemoryTrunk],
    features: Sequence[th.Tensor],
    state: State,
    episode_start: th.Tensor,
    context: th.Tensor | None = None,
    deterministic: bool = False,
) -> tuple[list[th.Tensor], State, th.Tensor | None]:
    """
    Read T steps with several trunks.

    :param trunks: the trunks
    :param features: what each reads, with N and T flattened to one dimension, (N T, input_size)
    :param state: a state for each, before the first step
    :param episode_start: (N, T) bool
    :param context: what their memories drew in these steps, side by side, (N, T, context_size of all); drawn now when None
    :param deterministic: take it from the memories' tables instead of drawing it
    :return: what each puts out, (N T, output_size), their states after step T, and the context (None if nothing is random)
    """
    sizes = [trunk.context_size for trunk in trunks]
    if context is None and any(sizes):
        pairs = zip(trunks, state, strict=True)
        drawn = [trunk.draw_context(part, episode_start, deterministic) for trunk, part in pairs]
        context = th.cat([part for part in drawn if part is not None], dim=-1)
    contexts: Any = [None] * len(trunks) if context is None else context.split(sizes, dim=-1)
    outputs, states = [], []
    for trunk, x, before, own in zip(trunks, features, state, contexts, strict=True):
        y, after = trunk(x.view(*episode_start.shape, -1), before, episode_start, own if trunk.context_size else None)
        outputs.append(y.flatten(0, 1))
        states.append(after)
    return outputs, tuple(states), context
