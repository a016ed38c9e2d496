"""Fast and Forgetful Memory."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.linear_scan import rotating_scan

_FORGOTTEN_AT = 0.01  # what is left after the longest period
_FASTEST_DECAY = 0.673  # of α per step, the released code's: what float64 could hold over 1,024 steps


class FFM(Memory):
    """
    Fast and Forgetful Memory (Morad et al., NeurIPS 2023, arXiv 2310.04128, section 3): traces that decay and oscillate::

        S_t = S_{t-1} ⊙ exp(-|α_j| + i ω_k) + (W_1 x_t ⊙ σ(W_2 x_t)) 1^T       (m × c complex)
        z_t = W_3 [Re S_t, Im S_t]
        y_t = LayerNorm(z_t) ⊙ σ(W_4 x_t) + W_5 x_t ⊙ (1 - σ(W_4 x_t))

    with biases. α and ω are learned and begin as in the released code (github.com/proroklab/ffm): α linear from what leaves
    1% after ``max_period`` steps to 0.673, the periods 2π / ω linear from ``min_period`` to ``max_period``. That code
    multiplies by ``exp(|α| t)``, for which it needs float64 and a bound of α;
    :func:`~sb3_shm.memory.linear_scan.rotating_scan` needs neither.

    State: real and imaginary parts of S, (N, m, c, 2).

    :param input_size: D, number of input features
    :param memory_size: m, number of traces
    :param n_contexts: c, number of frequencies at which each trace oscillates ("context" in the paper)
    :param output_size: number of output features, default ``memory_size``
    :param min_period: shortest period at first, in steps, at least 1
    :param max_period: longest period at first, in steps, at least ``min_period`` and 7
    :raises ValueError: an argument outside the values named here
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 32,
        n_contexts: int = 4,
        output_size: int | None = None,
        min_period: float = 1.0,
        max_period: float = 1024.0,
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, size in (
            ("input_size", input_size),
            ("memory_size", memory_size),
            ("n_contexts", n_contexts),
            ("output_size", self.output_size),
        ):
            check_in_range(name, size, low=1, integer=True)
        check_in_range("min_period", min_period, low=1)
        check_in_range("max_period", max_period, low=max(min_period, 7))  # from 7 on the slowest trace is not the fastest
        self.memory_size = memory_size
        self.n_contexts = n_contexts
        self.alpha = nn.Parameter(th.linspace(-math.log(_FORGOTTEN_AT) / max_period, _FASTEST_DECAY, memory_size))
        self.omega = nn.Parameter(2 * math.pi / th.linspace(min_period, max_period, n_contexts))
        # All linear functions of x in one product: W_1, W_2, W_5, W_4
        self.widths = [memory_size, memory_size, self.output_size, self.output_size]
        self.projection = nn.Linear(input_size, sum(self.widths))
        self.mix = nn.Linear(2 * memory_size * n_contexts, self.output_size)

    def initial_state(self, n: int) -> State:
        return (self.alpha.new_zeros(n, self.memory_size, self.n_contexts, 2),)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        value, input_gate, through, output_gate = self.projection(x).split(self.widths, dim=-1)
        # The same real number to each of a trace's frequencies
        inputs = F.pad((value * th.sigmoid(input_gate)).unsqueeze(-1), (0, 1)).unsqueeze(-2)
        inputs = inputs.expand(-1, -1, -1, self.n_contexts, -1)
        size, angle = th.exp(-self.alpha.abs()).unsqueeze(-1), self.omega.expand(self.memory_size, -1)
        s = rotating_scan(size, angle, inputs, state[0], episode_start)
        z = F.layer_norm(self.mix(s.flatten(2)), (self.output_size,))
        return th.lerp(through, z, th.sigmoid(output_gate)), (s[:, -1],)
