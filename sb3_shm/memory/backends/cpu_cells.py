"""GRU and LSTM as recurrences with episodes that start inside, for float32 (and float64) tensors on the CPU."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_linear import linear, products_over_rows
from sb3_shm.memory.backends.cpu_threads import INLINE, run
from sb3_shm.memory.backends.plain import is_transformed, once_differentiable


class Pieces(NamedTuple):
    """What lies between two starts of episodes, over all rows; from the longest to the shortest piece."""

    start: th.Tensor  # int64, the first step, counted row after row
    length: th.Tensor  # int64
    fresh: th.Tensor  # bool: begins at zero, not at the row's state


def can_run(x: th.Tensor, weight: th.Tensor) -> bool:
    """
    :param x: inputs, (N, T, D)
    :param weight: a weight of the layer
    :return: whether the functions of this file take them; a traced program is made of torch's own operations
    """
    return (
        x.is_cpu
        and x.dtype in (th.float32, th.float64)
        and x.dtype == weight.dtype
        and not th.compiler.is_compiling()
        and not is_transformed()
        and not th.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def find_pieces(episode_start: th.Tensor) -> Pieces:
    """
    :param episode_start: (N, T) bool
    :return: the pieces between starts
    """
    starts = episode_start.numpy()
    begins = starts.copy()
    begins[:, 0] = True
    start = np.flatnonzero(begins)
    length = np.diff(start, append=begins.size)
    order = np.argsort(-length, kind="stable")
    start = start[order]
    return Pieces(*map(th.from_numpy, (start, length[order], starts.ravel()[start])))


def _pack(matrix: th.Tensor) -> th.Tensor:
    """:return: what the kernels multiply by, (panels, rows, columns of a panel), the last panel filled up with zeros"""
    from sb3_shm.memory.backends import cpu_product

    panel = cpu_product.panel_size(matrix.element_size())
    extra = -matrix.shape[1] % panel
    packed: th.Tensor = (F.pad(matrix, (0, extra)) if extra else matrix).unflatten(1, (-1, panel)).transpose(0, 1).contiguous()
    return packed


def _run(kernel: Any, gates: th.Tensor, pieces: Pieces, before: list[Any], after: list[Any]) -> None:
    """Call a kernel of whole sequences, its pieces dealt out to as many units of work as there are threads."""
    work = gates.numel() * gates.shape[-1] // 64  # a product's 16 additions take about the time of an entry of C
    units = 1 if work < INLINE else min(th.get_num_threads(), len(pieces.start))
    run(kernel, units, work, [*before, *pieces, units, *after])


# ------------------------------------------------------------------------------------------------------------------------- GRU
def gru(
    x: th.Tensor,
    state: th.Tensor,
    pieces: Pieces,
    weight_ih: th.Tensor,
    weight_hh: th.Tensor,
    bias_ih: th.Tensor,
    bias_hh: th.Tensor,
) -> tuple[th.Tensor]:
    """
    One layer of a GRU. Its pieces are rows of one product in each step; the result of a row depends neither on the number of
    threads nor on the other rows. Weights are as in ``nn.GRU``; differentiable in all of them, in ``x`` and in ``state``.

    :param x: inputs, (N, T, D)
    :param state: hidden state before the first step, (N, H)
    :param pieces: of ``episode_start``
    :return: hidden states, (N, T, H)
    """
    gates = linear(x, weight_ih, bias_ih).contiguous()
    if th.is_grad_enabled() and any(tensor.requires_grad for tensor in (gates, state, weight_hh, bias_hh)):
        return (_GRU.apply(gates, state, weight_hh, bias_hh, pieces),)  # type: ignore[no-untyped-call]
    return _gru_forward(gates, state, weight_hh, bias_hh, pieces, keep=False)[:1]


def _gru_forward(
    gates: th.Tensor, state: th.Tensor, weight_hh: th.Tensor, bias_hh: th.Tensor, pieces: Pieces, keep: bool
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :param gates: what the input gives to the gates r, u, n, (N, T, 3 H); the gates themselves afterwards
    :return: hidden states, and if they are kept what the state gave to n, and the hidden states before each step
    """
    from sb3_shm.memory.backends import cpu_cells_kernels

    n, t, h = *gates.shape[:2], state.shape[1]
    weights, bias = _pack(weight_hh.roll(h, 0).t()), _pack(bias_hh.roll(h).unsqueeze(0)).flatten()  # of n, r, u
    out = gates.new_empty(n * t, h)
    kept_zn, before = (gates.new_empty((n * t, h) if keep else (0, 0)) for _ in range(2))
    arguments = [gates.view(n * t, -1), weights, bias, state.contiguous()]
    _run(cpu_cells_kernels.gru_forward, gates, pieces, arguments, [out, kept_zn, before])
    return out.view(n, t, h), kept_zn, before


class _GRU(th.autograd.Function):
    """See :func:`gru`."""

    @staticmethod
    def forward(
        ctx: Any, gates: th.Tensor, state: th.Tensor, weight_hh: th.Tensor, bias_hh: th.Tensor, pieces: Pieces
    ) -> th.Tensor:
        out, kept_zn, before = _gru_forward(gates, state, weight_hh, bias_hh, pieces, keep=True)
        ctx.save_for_backward(gates, weight_hh, kept_zn, before)
        ctx.pieces = pieces
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: th.Tensor) -> tuple[th.Tensor | None, ...]:
        from sb3_shm.memory.backends import cpu_cells_kernels

        gates, weight_hh, kept_zn, before = ctx.saved_tensors
        n, t, h = dout.shape
        # Of zn, r, u and n: the first three are the state's, the last three the input's
        dgates = gates.new_empty(n * t, 4 * h)
        dstate = gates.new_zeros(n, h)
        arguments = [gates.view(n * t, -1), _pack(weight_hh.roll(h, 0)), kept_zn, before]
        after = [dout.contiguous().view(n * t, h), dgates, dstate]
        _run(cpu_cells_kernels.gru_backward, gates, ctx.pieces, arguments, after)
        of_state, of_input = dgates[:, : 3 * h], dgates[:, h:]
        dweight = products_over_rows(of_state, before).roll(-h, 0) if ctx.needs_input_grad[2] else None
        dbias = of_state.sum(dim=0).roll(-h) if ctx.needs_input_grad[3] else None
        return of_input.unflatten(0, (n, t)), dstate, dweight, dbias, None


def gru_step(
    x: th.Tensor,
    state: th.Tensor,
    episode_start: th.Tensor,
    weight_ih: th.Tensor,
    weight_hh: th.Tensor,
    bias_ih: th.Tensor,
    bias_hh: th.Tensor,
) -> tuple[th.Tensor]:
    """
    One step of :func:`gru`, not differentiable.

    :param x: inputs, (N, 1, D)
    :param state: hidden state, (N, H)
    :param episode_start: (N, 1) bool
    :return: hidden states, (N, 1, H)
    """
    from sb3_shm.memory.backends import cpu_cells_kernels

    state = th.where(episode_start, 0.0, state).contiguous()
    gates, z = F.linear(x.squeeze(1), weight_ih, bias_ih), F.linear(state, weight_hh, bias_hh)
    run(cpu_cells_kernels.gru_step, len(state), 4 * gates.numel(), [gates, z, state])
    return (state.unsqueeze(1),)


# ------------------------------------------------------------------------------------------------------------------------ LSTM
def lstm(
    x: th.Tensor,
    state: th.Tensor,
    cell: th.Tensor,
    pieces: Pieces,
    weight_ih: th.Tensor,
    weight_hh: th.Tensor,
    bias_ih: th.Tensor,
    bias_hh: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """
    One layer of an LSTM, as :func:`gru`.

    :param x: inputs, (N, T, D)
    :param state: hidden state before the first step, (N, H)
    :param cell: cell state before the first step, (N, H)
    :param pieces: of ``episode_start``
    :return: hidden states, (N, T, H), and the cell state after the last step, (N, H)
    """
    gates = linear(x, weight_ih, bias_ih).contiguous()
    if th.is_grad_enabled() and any(tensor.requires_grad for tensor in (gates, state, cell, weight_hh, bias_hh)):
        return _LSTM.apply(gates, state, cell, weight_hh, bias_hh, pieces)  # type: ignore[no-any-return, no-untyped-call]
    return _lstm_forward(gates, state, cell, weight_hh, bias_hh, pieces, keep=False)[:2]


def _lstm_forward(
    gates: th.Tensor,
    state: th.Tensor,
    cell: th.Tensor,
    weight_hh: th.Tensor,
    bias_hh: th.Tensor,
    pieces: Pieces,
    keep: bool,
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    :param gates: what the input gives to the gates i, f, g, o, (N, T, 4 H); the gates themselves afterwards
    :return: hidden states, last cell state, and if they are kept the hidden and the cell states before each step
    """
    from sb3_shm.memory.backends import cpu_cells_kernels

    n, t, h = *gates.shape[:2], state.shape[1]
    weights, bias = _pack(weight_hh.t()), _pack(bias_hh.unsqueeze(0)).flatten()
    out, last_cell = gates.new_empty(n * t, h), gates.new_empty(n, h)
    before, cell_before = (gates.new_empty((n * t, h) if keep else (0, 0)) for _ in range(2))
    arguments = [gates.view(n * t, -1), weights, bias, state.contiguous(), cell.contiguous()]
    _run(cpu_cells_kernels.lstm_forward, gates, pieces, arguments, [out, last_cell, before, cell_before])
    return out.view(n, t, h), last_cell, before, cell_before


class _LSTM(th.autograd.Function):
    """See :func:`lstm`."""

    @staticmethod
    def forward(
        ctx: Any,
        gates: th.Tensor,
        state: th.Tensor,
        cell: th.Tensor,
        weight_hh: th.Tensor,
        bias_hh: th.Tensor,
        pieces: Pieces,
    ) -> tuple[th.Tensor, th.Tensor]:
        out, last_cell, before, cell_before = _lstm_forward(gates, state, cell, weight_hh, bias_hh, pieces, keep=True)
        ctx.save_for_backward(gates, weight_hh, before, cell_before)
        ctx.pieces = pieces
        return out, last_cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: th.Tensor, dlast_cell: th.Tensor) -> tuple[th.Tensor | None, ...]:
        from sb3_shm.memory.backends import cpu_cells_kernels

        gates, weight_hh, before, cell_before = ctx.saved_tensors
        n, t, h = dout.shape
        dgates = gates.new_empty(n * t, 4 * h)
        dstate, dcell = gates.new_zeros(2, n, h)
        arguments = [gates.view(n * t, -1), _pack(weight_hh), cell_before]
        after = [dout.contiguous().view(n * t, h), dlast_cell.contiguous(), dgates, dstate, dcell]
        _run(cpu_cells_kernels.lstm_backward, gates, ctx.pieces, arguments, after)
        dweight = products_over_rows(dgates, before) if ctx.needs_input_grad[3] else None
        dbias = dgates.sum(dim=0) if ctx.needs_input_grad[4] else None
        return dgates.view(n, t, -1), dstate, dcell, dweight, dbias, None


def lstm_step(
    x: th.Tensor,
    state: th.Tensor,
    cell: th.Tensor,
    episode_start: th.Tensor,
    weight_ih: th.Tensor,
    weight_hh: th.Tensor,
    bias_ih: th.Tensor,
    bias_hh: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """
    One step of :func:`lstm`, not differentiable.

    :param x: inputs, (N, 1, D)
    :param state: hidden state, (N, H)
    :param cell: cell state, (N, H)
    :param episode_start: (N, 1) bool
    :return: hidden states, (N, 1, H), and the cell state, (N, H)
    """
    from sb3_shm.memory.backends import cpu_cells_kernels

    state, cell = (th.where(episode_start, 0.0, tensor).contiguous() for tensor in (state, cell))
    gates, z = F.linear(x.squeeze(1), weight_ih, bias_ih), F.linear(state, weight_hh, bias_hh)
    run(cpu_cells_kernels.lstm_step, len(state), 4 * gates.numel(), [gates, z, state, cell])
    return state.unsqueeze(1), cell
