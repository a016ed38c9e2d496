"""GRU and LSTM: the weights of torch's own layers behind the contract of a memory."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from sb3_shm.memory.backends import cpu_cells
from sb3_shm.memory.backends.plain import is_hooked
from sb3_shm.memory.base import Memory, State, map_state, reset_state, state_tensors
from sb3_shm.memory.checks import check_in_range


class TorchRecurrent(Memory):
    """
    A recurrent layer of torch. Where episodes start inside the sequences, each row is split there and all pieces run side by
    side: no step is computed twice, none is padded, and no Python loop runs over time. On the CPU kernels of this package
    compute it, elsewhere, under autocast and in traced programs torch's own layer, from a packed batch of the pieces.

    :param input_size: D, number of input features
    :param hidden_size: number of features of the state and of the output
    :param num_layers: number of layers
    :raises ValueError: a size below 1
    """

    layer_class: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    sequence: ClassVar[Callable[..., tuple[th.Tensor, ...]]]
    step: ClassVar[Callable[..., tuple[th.Tensor, ...]]]

    def __init__(self, input_size: int, hidden_size: int = 64, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size)
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_in_range(name, size, low=1, integer=True)
        self.layer = self.layer_class(int(input_size), int(hidden_size), int(num_layers), batch_first=True)

    def initial_state(self, n: int) -> State:
        weight = next(self.layer.parameters())
        zeros = th.zeros(n, self.layer.num_layers, self.layer.hidden_size, dtype=weight.dtype, device=weight.device)
        return (zeros, zeros.clone()) if isinstance(self.layer, nn.LSTM) else (zeros,)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        weight: Any = self.layer.weight_ih_l0
        if cpu_cells.can_run(x, weight) and self._is_known():
            return self._fused(x, state, episode_start)
        state = reset_state(state, self.initial_state(x.shape[0]), episode_start[:, 0])
        if episode_start.shape[1] == 1 or not episode_start[:, 1:].any():
            y, final = self.layer(x, self._to_layer(state))
            return y, self._from_layer(final)

        n, t = episode_start.shape
        begins = episode_start.clone()
        begins[:, 0] = True
        start = begins.flatten().nonzero().squeeze(1)  # where each piece begins, in steps counted row after row
        length = th.diff(start, append=start.new_tensor([n * t]))
        length, order = length.sort(descending=True, stable=True)
        start = start[order]
        # packed[i] is the flat index of the i-th packed step: step 0 of all pieces, then step 1 of those that have one, ...
        time = th.arange(int(length[0]), device=x.device).unsqueeze(1)
        present = time < length
        packed = (start + time)[present]
        # A piece at the beginning of a row goes on from that row's state, every other one from the initial state.
        row, is_first = start // t, start % t == 0
        pieces = reset_state(map_state(lambda s: s[row], state), self.initial_state(len(start)), ~is_first)
        batch = PackedSequence(x.flatten(0, 1)[packed], present.sum(dim=1).cpu())
        y, final = self.layer(batch, self._to_layer(pieces))
        outputs = th.empty_like(y.data).index_copy(0, packed, y.data).view(n, t, -1)
        is_last = (start + length) % t == 0
        last = th.empty(n, dtype=th.int64, device=x.device)
        last[row[is_last]] = is_last.nonzero().squeeze(1)
        return outputs, map_state(lambda s: s[last], self._from_layer(final))

    def _is_known(self) -> bool:
        """:return: whether the layer's weights say all: it was not exchanged or hooked, and drops nothing"""
        layer = self.layer
        is_plain = layer.bias and not (layer.dropout or layer.bidirectional or layer.proj_size)
        return is_plain and type(layer) is self.layer_class and not is_hooked(layer)

    def _fused(self, x: th.Tensor, state: State, episode_start: th.Tensor) -> tuple[th.Tensor, State]:
        """As ``forward``, by the kernels, which would read anything: so it is looked at first."""
        expected = (len(x), self.layer.num_layers, self.layer.hidden_size)
        n_tensors = 1 + isinstance(self.layer, nn.LSTM)
        if len(state) != n_tensors:
            raise ValueError(f"The state of {type(self).__name__} is {n_tensors} tensor(s), got {len(state)}")
        for tensor in state:
            if tensor.shape != expected or tensor.dtype != x.dtype or not tensor.is_cpu:
                raise ValueError(
                    f"The state must be {expected} of {x.dtype} on the CPU, as initial_state({len(x)}) is, got "
                    f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
                )
        if episode_start.shape != x.shape[:2] or episode_start.dtype != th.bool or not episode_start.is_cpu:
            raise ValueError(
                f"episode_start must be {tuple(x.shape[:2])} of torch.bool on the CPU, got {tuple(episode_start.shape)} of "
                f"{episode_start.dtype} on {episode_start.device}"
            )
        acts = x.shape[1] == 1 and not th.is_grad_enabled()
        steps: Any = episode_start if acts else cpu_cells.find_pieces(episode_start)
        final = []
        for i, weights in enumerate(self.layer.all_weights):
            before = [tensor[:, i] for tensor in state]
            x, *cell = (self.step if acts else self.sequence)(x, *before, steps, *weights)
            final.append((x[:, -1], *cell))
        return x, tuple(th.stack(tensors, dim=1) for tensors in zip(*final, strict=True))

    @staticmethod
    def _to_layer(state: State) -> th.Tensor | tuple[th.Tensor, ...]:
        """torch wants (num_layers, N, hidden_size), and the bare tensor if there is one only."""
        tensors = tuple(tensor.transpose(0, 1).contiguous() for tensor in state_tensors(state))
        return tensors if len(tensors) > 1 else tensors[0]

    @staticmethod
    def _from_layer(final: th.Tensor | tuple[th.Tensor, ...]) -> State:
        return tuple(tensor.transpose(0, 1) for tensor in state_tensors(final))


class GRU(TorchRecurrent):
    """Gated recurrent unit (Cho et al., 2014). State: (N, num_layers, hidden_size)."""

    layer_class = nn.GRU
    sequence, step = staticmethod(cpu_cells.gru), staticmethod(cpu_cells.gru_step)


class LSTM(TorchRecurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997). State: hidden and cell, (N, num_layers, hidden_size) each."""

    layer_class = nn.LSTM
    sequence, step = staticmethod(cpu_cells.lstm), staticmethod(cpu_cells.lstm_step)
