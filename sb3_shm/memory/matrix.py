"""What the memories with a matrix of scalar gates, or none, have in common: their layers, and one recurrence in chunks."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.base import Memory
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.memory.linear import Linear

CHUNK = 32
"""Steps that are computed as one product of matrices: more make the products quadratic in time, fewer make them small."""


class MatrixMemory(Memory):
    """
    The layers around the matrix, as those of :class:`~sb3_shm.memory.shm.SHM`, so that a comparison compares the matrices::

        x ← LayerNorm(x);  key, query, value, ... = linear functions of x;  y = W_o (h + shortcut(x))

    :param input_size: D, number of input features
    :param memory_size: H, number of features of a value, and of a key and a query
    :param output_size: number of output features, default ``memory_size``
    :param layer_norm: normalise the input first
    :param shortcut: add a linear function of the input to what is read
    :param gates: names and widths of further linear functions of x
    :raises ValueError: a size below 1
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int,
        output_size: int | None,
        layer_norm: bool,
        shortcut: bool,
        gates: dict[str, int],
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, size in (("input_size", input_size), ("memory_size", memory_size), ("output_size", self.output_size)):
            check_in_range(name, size, low=1, integer=True)
        check_flag("layer_norm", layer_norm)
        check_flag("shortcut", shortcut)
        self.memory_size = memory_size
        self.norm = nn.LayerNorm(input_size) if layer_norm else nn.Identity()
        self.widths = {"key": memory_size, "query": memory_size, "value": memory_size, **gates}
        if shortcut:
            self.widths["shortcut"] = memory_size
        # All linear functions of x in one product
        self.projection = Linear(input_size, sum(self.widths.values()))
        self.output = Linear(memory_size, self.output_size)

    def project(self, x: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param x: inputs, (N, T, input_size)
        :return: the linear functions of the normalised input by name, (N, T, width) each
        """
        z: th.Tensor = self.projection(self.norm(x))
        return dict(zip(self.widths, z.split(list(self.widths.values()), dim=-1), strict=True))

    def read_out(self, h: th.Tensor, z: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param h: what was read from the matrix, (N, T, memory_size)
        :param z: what ``project`` returned
        :return: outputs, (N, T, output_size)
        """
        y: th.Tensor = self.output(h + z["shortcut"] if "shortcut" in z else h)
        return y


def split_chunks(x: th.Tensor, size: int) -> th.Tensor:
    """
    :param x: (N, T, ...)
    :param size: steps per chunk
    :return: (N, number of chunks, size, ...), the last chunk filled up with zeros
    """
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    chunks: th.Tensor = x.unflatten(1, (-1, size))
    return chunks


def sum_between(x: th.Tensor) -> th.Tensor:
    """
    Sums over pieces of the last dimension, each added up by itself: a difference of two sums from the beginning would lose the
    digits of a small piece behind a large one.

    :param x: (..., C)
    :return: (..., C, C), entry (t, s) is x[s + 1] + ... + x[t], 0 for s ≥ t
    """
    size = x.shape[-1]
    later = th.ones(size, size, dtype=th.bool, device=x.device).tril(-1)
    return th.where(later, x.unsqueeze(-1), 0).cumsum(dim=-2)


def gated_recurrence(
    query: th.Tensor,
    key: th.Tensor,
    value: th.Tensor,
    log_forget: th.Tensor,
    log_write: th.Tensor,
    matrix: th.Tensor,
    log_scale: th.Tensor,
    episode_start: th.Tensor,
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    A matrix that is forgotten and written by scalar gates, for each sequence and t = 1..T::

        S_{t-1} = 0                    where episode_start_t
        S_t = exp(log_forget_t) S_{t-1} + exp(log_write_t) value_t ⊗ key_t
        h_t = S_t query_t

    with S_t = exp(m_t) M_t kept as M_t and a logarithmic scale m_t (xLSTM's stabiliser, Beck et al. 2024, arXiv 2405.04517,
    section 2.2), here never below 0, as only large numbers need one: m_t = max(log_forget_t + m_{t-1}, log_write_t, 0). The
    scale is no part of the result, S is the same with any, so no gradient flows through it.

    Parallel in time: a step reads the steps of its own chunk by masked products of matrices, and everything before from the
    matrix at the beginning of the chunk. Those matrices are weighted sums of what each chunk adds, one product again. A
    start shows in the weights alone: they are 0 wherever an episode starts between two steps.

    :param query: (N, T, K)
    :param key: (N, T, K)
    :param value: (N, T, V)
    :param log_forget: logarithm of the forget gate, at most 0, (N, T)
    :param log_write: logarithm of the input gate, (N, T)
    :param matrix: M_0, (N, V, K)
    :param log_scale: m_0, at least 0, (N,)
    :param episode_start: (N, T) bool
    :return: exp(-m_t) h_t, (N, T, V); m_t, (N, T); M_T, (N, V, K); m_T, (N,)
    """
    t = query.shape[1]
    if t == 1:  # acting: as few operations as possible
        fresh = episode_start[:, 0]
        before = log_forget[:, 0] + th.where(fresh, 0, log_scale)
        log_scale = th.maximum(before, log_write[:, 0]).clamp(min=0).detach()
        written = th.exp(log_write[:, 0] - log_scale)[:, None, None] * (value[:, 0, :, None] * key)
        kept = th.where(fresh, 0, th.exp(before - log_scale))[:, None, None]
        matrix = th.where(fresh[:, None, None], 0, matrix) * kept + written
        return query @ matrix.mT, log_scale.unsqueeze(1), matrix, log_scale

    size = min(t, CHUNK)
    query, key, value, log_forget, log_write = (split_chunks(x, size) for x in (query, key, value, log_forget, log_write))
    episode = split_chunks(episode_start.long(), size).cumsum(dim=-1)  # 0 as long as the chunk has seen no start
    carried_on = episode == 0
    # Logarithmic weights of step s at step t, of the chunk's beginning at step t, and of step s at the chunk's end
    visible = (episode.unsqueeze(-1) == episode.unsqueeze(-2)).tril()
    within = th.where(visible, sum_between(log_forget) + log_write.unsqueeze(-2), -th.inf)
    since_begin = log_forget.cumsum(dim=-1)
    to_end = within[..., -1, :]

    # What each chunk adds, the matrix at the beginning being the first, and its scale
    add_scale = to_end.detach().amax(dim=-1).clamp(min=0)
    added = (value * th.exp(to_end - add_scale.unsqueeze(-1)).unsqueeze(-1)).mT @ key
    scales = th.cat([log_scale.unsqueeze(1), add_scale], dim=1)
    # From chunk i's end to chunk j's end; a chunk with a start lets nothing through
    through = th.where(carried_on[..., -1], since_begin[..., -1], -th.inf)
    between = sum_between(F.pad(through, (1, 0)))
    passes = (between > -th.inf).tril()
    between = th.where(passes, between + scales.unsqueeze(1), -th.inf)
    log_scales = between.detach().amax(dim=-1).clamp(min=0)
    weights = th.exp(between - log_scales.unsqueeze(-1))
    first = weights[..., 0, None, None]
    matrices = (weights[..., 1:] @ added.flatten(2)).unflatten(2, added.shape[2:])
    matrices = matrices + th.where(passes[..., 0, None, None], first * matrix.unsqueeze(1), 0)

    begin, begin_scale = matrices[:, :-1], log_scales[:, :-1, None]
    from_begin = th.where(carried_on, since_begin + begin_scale, -th.inf)
    scale = th.maximum(within.detach().amax(dim=-1), from_begin.detach()).clamp(min=0)
    h = (query @ key.mT * th.exp(within - scale.unsqueeze(-1))) @ value
    h = h + th.where(carried_on.unsqueeze(-1), th.exp(from_begin - scale).unsqueeze(-1) * (query @ begin.mT), 0)
    return h.flatten(1, 2)[:, :t], scale.flatten(1, 2)[:, :t], matrices[:, -1], log_scales[:, -1]
