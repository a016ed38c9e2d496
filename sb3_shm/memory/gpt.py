"""A causal transformer with a window of keys and values."""

from typing import ClassVar

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.base import Memory, State, steps_in_episode
from sb3_shm.memory.checks import check_in_range

BLOCK = 64
"""Steps whose queries are compared with the same keys, BLOCK + window - 1 of them."""


class TransformerLayer(nn.Module):
    """
    Attention to the last steps of the episode, then two linear layers; each behind a LayerNorm and added to its input.

    :param hidden_size: number of features, a multiple of ``n_heads``
    :param n_heads: attention heads
    :param window: steps that a step attends to, itself included
    """

    def __init__(self, hidden_size: int, n_heads: int, window: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.window = window
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.distance_bias = nn.Parameter(th.zeros(n_heads, window))
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.feedforward = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )

    def after_attention(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        :param x: input, (N, T, hidden_size)
        :param y: what attention made of it
        :return: both joined
        """
        return x + y

    def after_feedforward(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        :param x: input, (N, T, hidden_size)
        :param y: what the linear layers made of it
        :return: both joined
        """
        return x + y

    def forward(self, x: th.Tensor, cache: th.Tensor, distance: th.Tensor, seen: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: inputs, (N, T, hidden_size)
        :param cache: keys and values of the ``window - 1`` steps before, the oldest first, (N, window - 1, 2 hidden_size)
        :param distance: what :func:`compare` returned
        :param seen: what :func:`compare` returned
        :return: outputs, (N, T, hidden_size), and keys and values of all steps, (N, window - 1 + T, 2 hidden_size)
        """
        (n, t, size), (block, n_keys) = x.shape, distance.shape
        query, key_value = self.query_key_value(self.attention_norm(x)).split([size, 2 * size], dim=-1)
        key_value = th.cat([cache, key_value], dim=1)
        missing = -t % block
        query, padded = (F.pad(z, (0, 0, 0, missing)) for z in (query, key_value)) if missing else (query, key_value)
        query = query * (size // self.n_heads) ** -0.5
        blocks = query.shape[1] // block  # and no -1, as n may be 0
        query = query.reshape(n, blocks, block, self.n_heads, size // self.n_heads).transpose(2, 3)
        # (N, blocks, 2 hidden_size, keys): each block with the window before it
        windows = padded.unfold(1, n_keys, block).unflatten(2, (2, self.n_heads, size // self.n_heads))
        key, value = windows.transpose(-1, -2).unbind(2)
        bias = th.where(seen.unsqueeze(2), self.distance_bias[:, distance.clamp(0, self.window - 1)], -th.inf)
        y = (query @ key.mT + bias).softmax(dim=-1) @ value
        y = y.transpose(2, 3).reshape(n, blocks * block, size)[:, :t]
        x = self.after_attention(x, self.attention_output(y))
        return self.after_feedforward(x, self.feedforward(self.feedforward_norm(x))), key_value


def compare(index: th.Tensor, window: int) -> tuple[th.Tensor, th.Tensor]:
    """
    Which steps a step attends to: those of its episode, in the window.

    :param index: step within the episode, (N, T) int64
    :param window: steps that a step attends to, itself included
    :return: how many steps a query of a block comes after each key, of the block or the window before it: (block, keys) int64
        with keys = window - 1 + block; and whether the query sees the key, (N, blocks, block, keys) bool
    """
    block = min(index.shape[1], BLOCK)
    index = F.pad(index, (0, -index.shape[1] % block))  # what is missing begins an episode each, and nobody reads it
    reach = index.clamp(max=window - 1).view(index.shape[0], index.shape[1] // block, block, 1)
    steps = th.arange(window - 1 + block, device=index.device)
    distance = steps[window - 1 :].unsqueeze(1) - steps
    return distance, (distance >= 0) & (distance <= reach)


class GPT(Memory):
    """
    A causal transformer (Radford et al., 2019, GPT-2: normalisation before each part, and after the last layer) which in
    every layer attends to the last ``window`` steps of the episode. So n_layers * (window - 1) steps back reach the output.

    Positions are a learned number per head and distance, added to the logarithm of the weights (as in T5, Raffel et al.
    2020, arXiv 1910.10683, section 2.1): GPT-2 has a table of absolute positions, which ends with the window, and which
    would change the cached keys at each step.

    State: for each layer, keys and values of the last ``window - 1`` steps, (N, window - 1, 2 hidden_size); and the number of
    steps taken in the episode, (N,) int64.

    :param input_size: D, number of input features
    :param hidden_size: number of features in the transformer, a multiple of ``n_heads``
    :param output_size: number of output features, default ``hidden_size``
    :param n_layers: number of layers
    :param n_heads: attention heads
    :param window: steps that a step attends to in each layer, itself included
    :raises ValueError: a number below 1, or ``hidden_size`` no multiple of ``n_heads``
    """

    layer_class: ClassVar[type[TransformerLayer]] = TransformerLayer

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        output_size: int | None = None,
        n_layers: int = 2,
        n_heads: int = 4,
        window: int = 64,
    ) -> None:
        super().__init__(input_size, hidden_size if output_size is None else output_size)
        sizes = dict(hidden_size=hidden_size, output_size=self.output_size, n_layers=n_layers, n_heads=n_heads, window=window)
        for name, size in {"input_size": input_size, **sizes}.items():
            check_in_range(name, size, low=1, integer=True)
        if hidden_size % n_heads:
            raise ValueError(f"hidden_size must be a multiple of n_heads, got {hidden_size} and {n_heads}")
        self.hidden_size = hidden_size
        self.window = window
        self.input = nn.Linear(input_size, hidden_size)
        self.layers = nn.ModuleList(self.layer_class(hidden_size, n_heads, window) for _ in range(n_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, self.output_size)

    def initial_state(self, n: int) -> State:
        weight = self.output.weight
        caches = tuple(weight.new_zeros(n, self.window - 1, 2 * self.hidden_size) for _ in self.layers)
        return caches, th.zeros(n, dtype=th.int64, device=weight.device)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        caches, step = state
        index, step = steps_in_episode(step, episode_start)
        distance, seen = compare(index, self.window)
        age = th.arange(self.window - 1, 0, -1, device=x.device)  # of what is cached, at the next step
        h = self.input(x)
        after = []
        for layer, cache in zip(self.layers, caches, strict=True):
            cache = th.where((age <= index[:, :1]).unsqueeze(-1), cache, 0)
            if x.shape[1] == 1:
                h, key_value = layer(h, cache, distance, seen)
                after.append(key_value[:, 1:])
                continue
            # A start inside the sequence hides the cache by weights of 0, which would not hide an infinite value
            h, key_value = layer(h, cache.nan_to_num(nan=th.nan, posinf=0, neginf=0), distance, seen)
            # What is left of another episode becomes 0, as in a fresh cache
            after.append(th.where((age <= step.unsqueeze(1)).unsqueeze(-1), key_value[:, x.shape[1] :], 0))
        return self.output(self.norm(h)), (tuple(after), step)
