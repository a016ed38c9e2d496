"""The gated transformer."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.gpt import GPT, TransformerLayer


class Gate(nn.Module):
    """
    Joins two streams as a gated recurrent unit does (Parisotto et al. 2020, section 3.2)::

        r = σ(W_r y + U_r x),  z = σ(W_z y + U_z x - 2),  h = tanh(W_g y + U_g (r ⊙ x))
        g = (1 - z) ⊙ x + z ⊙ h

    The 2 is the paper's b_g, learned like any bias: at first the gate lets x through.

    :param size: number of features of each stream
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.of_y = nn.Linear(size, 3 * size, bias=False)
        self.of_x = nn.Linear(size, 2 * size, bias=False)
        self.of_reset = nn.Linear(size, size, bias=False)
        self.bias = nn.Parameter(th.full((size,), 2.0))

    def forward(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        :param x: the stream that goes on, (..., size)
        :param y: what was made of it, (..., size)
        :return: (..., size)
        """
        reset_y, update_y, candidate_y = self.of_y(y).chunk(3, dim=-1)
        reset_x, update_x = self.of_x(x).chunk(2, dim=-1)
        reset, update = th.sigmoid(reset_y + reset_x), th.sigmoid(update_y + update_x - self.bias)
        candidate = th.tanh(candidate_y + self.of_reset(reset * x))
        return x + update * (candidate - x)


class GatedLayer(TransformerLayer):
    """A transformer's layer in which gates join what is added; see :class:`~sb3_shm.memory.gpt.TransformerLayer`."""

    def __init__(self, hidden_size: int, n_heads: int, window: int) -> None:
        super().__init__(hidden_size, n_heads, window)
        self.attention_gate = Gate(hidden_size)
        self.feedforward_gate = Gate(hidden_size)

    def after_attention(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        joined: th.Tensor = self.attention_gate(x, F.relu(y))
        return joined

    def after_feedforward(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        joined: th.Tensor = self.feedforward_gate(x, F.relu(y))
        return joined


class GTrXL(GPT):
    """
    Gated Transformer-XL (Parisotto et al., ICML 2020, arXiv 1910.06764): a transformer whose residual connections are gates
    (section 3.2), with normalisation before each part (section 3.1), so that at first the input passes through unchanged.

    Attention, positions, arguments and state are those of :class:`~sb3_shm.memory.gpt.GPT`. The paper takes Transformer-XL's
    positions, in which keys and sines of the distance are compared, where ours learn a number per head and distance; and it
    sends no gradient into the steps before the sequence, which here depends on whether the state that is passed has one.
    """

    layer_class = GatedLayer
