"""Linear attention."""

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.base import State
from sb3_shm.memory.matrix import MatrixMemory, gated_recurrence


class LinearAttention(MatrixMemory):
    """
    Linear attention (Katharopoulos et al., ICML 2020, arXiv 2006.16236, section 3.4): a matrix that sums up and never forgets.

    With φ(z) = elu(z) + 1 (equation 7)::

        S_t = S_{t-1} + v_t ⊗ φ(k_t),   z_t = z_{t-1} + φ(k_t)
        h_t = S_t φ(q_t) / (z_t·φ(q_t) + 1e-6)

    The paper divides without the 1e-6, its released code (fast-transformers, ``CausalLinearAttention``) with it. In the
    Hadamard framework C = 1. Layers around it: :class:`~sb3_shm.memory.matrix.MatrixMemory`.

    State: S and, as one more row of it, z: (N, H + 1, H).

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
        super().__init__(input_size, memory_size, output_size, layer_norm, shortcut, gates={})

    def initial_state(self, n: int) -> State:
        return (self.output.weight.new_zeros(n, self.memory_size + 1, self.memory_size),)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        z = self.project(x)
        key, query = F.elu(z["key"]) + 1, F.elu(z["query"]) + 1
        open_gate = x.new_zeros(x.shape[:2])
        value = F.pad(z["value"], (0, 1), value=1.0)
        h, _, matrix, _ = gated_recurrence(query, key, value, open_gate, open_gate, state[0], open_gate[:, 0], episode_start)
        h, normaliser = h.split([self.memory_size, 1], dim=-1)
        return self.read_out(h / (normaliser + 1e-6), z), (matrix,)
