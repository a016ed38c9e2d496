"""xLSTM's matrix memory."""

import math

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.base import State
from sb3_shm.memory.matrix import MatrixMemory, gated_recurrence


class MLSTM(MatrixMemory):
    """
    The mLSTM of xLSTM (Beck et al., NeurIPS 2024, arXiv 2405.04517, section 2.3): a matrix with exponential gates.

    With i_t = exp(w_i·x + b_i), f_t = σ(w_f·x + b_f), o_t = σ(W_o x + b_o) and keys divided by sqrt(H)::

        S_t = f_t S_{t-1} + i_t v_t ⊗ k_t,   n_t = f_t n_{t-1} + i_t k_t
        h_t = o_t ⊙ S_t q_t / max(|n_t·q_t|, 1)

    S and n are kept as multiples of exp(m_t), see :func:`~sb3_shm.memory.matrix.gated_recurrence`; h is that of the equations,
    except that the divisor is at least 1e-6 exp(m_t) (the released code adds as much), so that n_t·q_t = 0 does no harm.
    One head and the cell alone: the paper's block around it (projection up, convolution, group norm) is left out, the layers
    are those of :class:`~sb3_shm.memory.matrix.MatrixMemory`. In the Hadamard framework C is a scalar.

    State: S and, as one more row of it, n: (N, H + 1, H); and m, (N,).

    :param input_size: D, number of input features
    :param memory_size: H, the memory is an H × H matrix and a vector
    :param output_size: number of output features, default ``memory_size``
    :param layer_norm: normalise the input first
    :param shortcut: add a linear function of the input to what is read
    :raises ValueError: a size below 1
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 32,
        output_size: int | None = None,
        layer_norm: bool = True,
        shortcut: bool = True,
    ) -> None:
        gates = {"input_gate": 1, "forget_gate": 1, "output_gate": memory_size}
        super().__init__(input_size, memory_size, output_size, layer_norm, shortcut, gates)
        with th.no_grad():
            # The released code starts the forget gates of its heads at σ(3) to σ(6): for one head the middle
            bias = dict(zip(self.widths, self.projection.bias.split(list(self.widths.values())), strict=True))
            bias["forget_gate"].fill_(4.5)
            bias["input_gate"].zero_()

    def initial_state(self, n: int) -> State:
        weight = self.output.weight
        return weight.new_zeros(n, self.memory_size + 1, self.memory_size), weight.new_zeros(n)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        z = self.project(x)
        key = z["key"] / math.sqrt(self.memory_size)
        value = F.pad(z["value"], (0, 1), value=1.0)
        log_forget, log_write = F.logsigmoid(z["forget_gate"].squeeze(-1)), z["input_gate"].squeeze(-1)
        h, log_scale, *after = gated_recurrence(
            z["query"], key, value, log_forget, log_write, state[0], state[1], episode_start
        )
        h, normaliser = h.split([self.memory_size, 1], dim=-1)
        divisor = th.maximum(normaliser.abs(), th.exp(-log_scale).clamp(min=1e-6).unsqueeze(-1))
        return self.read_out(th.sigmoid(z["output_gate"]) * h / divisor, z), tuple(after)
