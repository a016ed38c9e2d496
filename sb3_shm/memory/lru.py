"""The Linear Recurrent Unit."""

import math

import torch as th
from torch import nn

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.linear_scan import rotating_scan


class LRU(Memory):
    """
    Linear Recurrent Unit (Orvieto et al., ICML 2023, arXiv 2303.06349, section 3): a diagonal linear recurrence in complex
    numbers inside the unit circle, with normalised inputs::

        h_t = λ ⊙ h_{t-1} + γ ⊙ (B x_t),   λ = exp(-exp(ν) + i exp(θ))
        y_t = Re(C h_t) + D x_t

    ν, θ and log γ are learned; at first ``|λ|`` is uniform on the ring between ``r_min`` and ``r_max``, and γ is
    ``sqrt(1 - |λ|²)``. This is the recurrent layer alone, without the residual block around it in the paper's deep
    networks; D is a matrix, since inputs and outputs may differ in size. Computed by
    :func:`~sb3_shm.memory.linear_scan.rotating_scan`.

    State: real and imaginary parts of h, (N, H, 2).

    :param input_size: D, number of input features
    :param memory_size: H, number of complex states
    :param output_size: number of output features, default ``memory_size``
    :param r_min: smallest \\|λ\\| at first, 0 to ``r_max``
    :param r_max: greatest \\|λ\\| at first, ``r_min`` to 1
    :param max_phase: greatest angle of λ at first, in radians, above 0, at most 2π
    :raises ValueError: an argument outside the values named here
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 64,
        output_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, size in (("input_size", input_size), ("memory_size", memory_size), ("output_size", self.output_size)):
            check_in_range(name, size, low=1, integer=True)
        check_in_range("r_max", r_max, above=0, high=1)
        check_in_range("r_min", r_min, low=0, high=r_max)
        check_in_range("max_phase", max_phase, above=0, high=2 * math.pi)
        self.memory_size = memory_size
        # Lemma 3.2; kept off 0, whose logarithm is infinite, and off 1, where nothing would ever fade
        area = (th.rand(memory_size) * (r_max**2 - r_min**2) + r_min**2).clamp(1e-6, 1 - 1e-6)
        self.nu_log = nn.Parameter(th.log(-0.5 * th.log(area)))
        self.theta_log = nn.Parameter(th.log(max_phase * th.rand(memory_size).clamp(min=1e-6)))
        self.gamma_log = nn.Parameter(0.5 * th.log1p(-area))
        # B and C as real layers to and from real and imaginary parts
        self.input = nn.Linear(input_size, 2 * memory_size, bias=False)
        self.output = nn.Linear(2 * memory_size, self.output_size, bias=False)
        self.skip = nn.Linear(input_size, self.output_size)
        nn.init.normal_(self.input.weight, std=(2 * input_size) ** -0.5)
        nn.init.normal_(self.output.weight, std=memory_size**-0.5)

    def initial_state(self, n: int) -> State:
        return (self.nu_log.new_zeros(n, self.memory_size, 2),)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        inputs = self.input(x).unflatten(-1, (-1, 2)) * self.gamma_log.exp().unsqueeze(-1)
        size, angle = th.exp(-th.exp(self.nu_log)), th.exp(self.theta_log)
        h = rotating_scan(size, angle, inputs, state[0], episode_start)
        return self.output(h.flatten(2)) + self.skip(x), (h[:, -1],)
