"""Mamba's selective state space model."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.frame_stack import last_inputs
from sb3_shm.memory.linear_scan import linear_scan

_STEP_MIN, _STEP_MAX = 0.001, 0.1  # range of Δ at first


class S6(Memory):
    """
    The selective state space model of Mamba (Gu and Dao, 2023, arXiv 2312.00752, section 3 and figure 3), with its short
    convolution and its gate::

        u, g = W_u x, W_g x
        u_t = silu(convolution of u_{t-k+1} to u_t, channel by channel)
        Δ_t = softplus(W_Δ' W_Δ u_t + b),  B_t = W_B u_t,  C_t = W_C u_t
        h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t ⊙ u_t) B_t^T,   A < 0 learned,        (E × S)
        y_t = W_o ((h_t C_t + D ⊙ u_t) ⊙ silu(g_t))

    This is Mamba's mixer alone, without the norm and the residual sum around it. A begins with -1 to -S in each row, Δ between
    0.001 and 0.1, as in the released code. Computed by :func:`~sb3_shm.memory.linear_scan.linear_scan`, which keeps h at
    every step.

    State: h, (N, E, S), and the last inputs of the convolution, latest first, (N, k - 1, E).

    :param input_size: D, number of input features
    :param memory_size: E, number of channels
    :param n_states: S, number of states of each channel
    :param output_size: number of output features, default ``memory_size``
    :param conv_size: k, steps that the convolution sees; 1 for none but this step
    :param step_rank: rank of W_Δ' W_Δ, default E / 32 rounded up, as in Mamba
    :raises ValueError: an argument below 1
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 64,
        n_states: int = 16,
        output_size: int | None = None,
        conv_size: int = 4,
        step_rank: int | None = None,
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, size in (
            ("input_size", input_size),
            ("memory_size", memory_size),
            ("n_states", n_states),
            ("output_size", self.output_size),
            ("conv_size", conv_size),
            ("step_rank", 1 if step_rank is None else step_rank),
        ):
            check_in_range(name, size, low=1, integer=True)
        step_rank = math.ceil(memory_size / 32) if step_rank is None else step_rank
        self.memory_size = memory_size
        self.n_states = n_states
        self.conv_size = conv_size
        self.widths = [step_rank, n_states, n_states]
        bound = conv_size**-0.5
        self.input = nn.Linear(input_size, 2 * memory_size, bias=False)
        self.conv_weight = nn.Parameter(th.empty(conv_size, memory_size).uniform_(-bound, bound))  # latest first
        self.conv_bias = nn.Parameter(th.empty(memory_size).uniform_(-bound, bound))
        self.selection = nn.Linear(memory_size, sum(self.widths), bias=False)
        self.step = nn.Linear(step_rank, memory_size)
        self.a_log = nn.Parameter(th.arange(1, n_states + 1).float().log().repeat(memory_size, 1))
        self.skip = nn.Parameter(th.ones(memory_size))
        self.output = nn.Linear(memory_size, self.output_size, bias=False)
        nn.init.uniform_(self.step.weight, -(step_rank**-0.5), step_rank**-0.5)
        steps = th.exp(th.empty(memory_size).uniform_(math.log(_STEP_MIN), math.log(_STEP_MAX)))
        self.step.bias.data = steps + th.log(-th.expm1(-steps))  # the inverse of softplus

    def initial_state(self, n: int) -> State:
        new_zeros = self.a_log.new_zeros
        return new_zeros(n, self.memory_size, self.n_states), new_zeros(n, self.conv_size - 1, self.memory_size)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        h, past = state
        u, gate = self.input(x).chunk(2, dim=-1)
        frames, past = last_inputs(u, past, episode_start)
        u = F.silu((frames * self.conv_weight).sum(dim=2) + self.conv_bias)
        step, b, c = self.selection(u).split(self.widths, dim=-1)
        step = F.softplus(self.step(step))
        factor = th.exp(step.unsqueeze(-1) * -th.exp(self.a_log))
        states = linear_scan(factor, (step * u).unsqueeze(-1) * b.unsqueeze(-2), h, episode_start)
        y = (states @ c.unsqueeze(-1)).squeeze(-1) + self.skip * u
        return self.output(y * F.silu(gate)), (states[:, -1], past)
