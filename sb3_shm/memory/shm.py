"""The Stable Hadamard Memory."""

import math
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.base import Memory, State, steps_in_episode
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.hadamard import BACKENDS, hadamard_recurrence

THETAS = ("random", "fixed", "neural")
CALIBRATIONS = ("hadamard", "none", "random", "constant")
_N_DETERMINISTIC_ROWS = 8192


def normalise(z: th.Tensor) -> th.Tensor:
    """
    :param z: non-negative features, (..., H)
    :return: z / (1e-5 + sum of z), (..., H)
    """
    return z / (1e-5 + z.sum(dim=-1, keepdim=True))


def check_time_scales(time_scales: Any) -> tuple[float, float]:
    """
    :param time_scales: what a user passed as shortest and longest time
    :return: the two
    :raises ValueError: not two numbers from 0.1 on, the first not above the second
    """
    try:
        shortest, longest = time_scales
    except (TypeError, ValueError):
        raise ValueError(f"time_scales must be a pair (shortest, longest) in steps, got {time_scales!r}") from None
    # In less than a tenth of a step exp(-1 / time) is 0 in float32, and its bias infinite
    check_in_range("time_scales' shortest time", shortest, low=0.1)
    check_in_range("time_scales' longest time", longest, low=shortest)
    return float(shortest), float(longest)


class SHM(Memory):
    """
    Stable Hadamard Memory (Le et al., ICLR 2025, arXiv 2410.10132): a matrix that every step calibrates element by element.

    With x the (normalised) input, sections 3.1 to 3.3 of the paper::

        k = normalise(relu(W_k x)),  q = normalise(relu(W_q x)),  v = W_v x,  vc = W_c x,  η = σ(w_η·x)
        C_t = 1 + tanh(θ_t ⊗ vc)
        M_t = M_{t-1} ⊙ C_t + η (v ⊗ k)
        y = W_o (M_t q + shortcut(x))

    θ is a table of L rows, of which each step takes one at random: that keeps the product of all C near 1 (Propositions 4, 5).
    The row numbers are the memory's context: a policy stores them while it explores and gives them back in the update, so
    that the update sees the very network that acted. Deterministic use takes them from a table drawn at construction,
    saved with the weights and read at the step within the episode.

    State: the matrix, (N, H, H) float, and the number of steps taken in the episode, (N,) int64.

    :param input_size: D, number of input features
    :param memory_size: H, the memory is an H × H matrix
    :param output_size: number of output features, default ``memory_size``
    :param theta: which θ_t calibrates step t: "random" row of the table (the paper), "fixed" (always row 0, as the released
        POPGym code does in effect), or "neural" (a linear function of x); of use with ``calibration="hadamard"`` only
    :param calibration: "hadamard" (the paper), or an ablation: "none" (C = 1), "random" (C drawn at each step, not learned),
        "constant" (C learned, the same at each step)
    :param n_theta: L, rows of θ, 1 to 256 (a row number is one byte)
    :param layer_norm: normalise the input first
    :param shortcut: add a linear function of the input to what is read
    :param clip: bound of |M| after each step, None for no bound
    :param calibration_scale: factor on the initial weights of W_c: with small ones C starts near 1, the memory as a plain sum
    :param value_scale: factor on the initial weights of W_v. As k and q sum to 1, what is written reads back some H times
        smaller; H / 2 makes up for it.
    :param time_scales: shortest and longest time in steps over which columns forget at first, spaced geometrically between:
        C_t = 1 + tanh((1 + θ_t) ⊗ (b + vc)) with a learned b. Not of the paper, whose memory starts without forgetting (C is 1
        on average): for tasks that need the latest steps, such as a velocity, or old contents replaced. None for the paper.
    :param key_bias: initial value of learned biases b_k and b_q, (H,) each, at least 0: k = normalise(relu(W_k x + b_k)), q
        likewise. Not of the paper, in which key and query of opposite inputs have little in common, as the relu leaves other
        elements of them: a value is hardly read back once the input has changed its sign. With a bias as large as W_k x all
        keys overlap, and what is read comes near to a fading sum of the values. None for the paper, without bias.
    :param backend: see :func:`~sb3_shm.memory.hadamard.hadamard_recurrence`
    :raises ValueError: an argument outside the values named here
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 32,
        output_size: int | None = None,
        theta: str = "random",
        calibration: str = "hadamard",
        n_theta: int = 128,
        layer_norm: bool = True,
        shortcut: bool = True,
        clip: float | None = 100.0,
        calibration_scale: float = 1.0,
        value_scale: float = 1.0,
        time_scales: tuple[float, float] | None = None,
        key_bias: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, value, legal in (
            ("theta", theta, THETAS),
            ("calibration", calibration, CALIBRATIONS),
            ("backend", backend, ("auto", *BACKENDS)),
        ):
            if value not in legal:
                raise ValueError(f"Unknown {name} {value!r}, choose one of {', '.join(map(repr, legal))}")
        for name, size in (("input_size", input_size), ("memory_size", memory_size), ("output_size", self.output_size)):
            check_in_range(name, size, low=1, integer=True)
        check_in_range("n_theta", n_theta, low=1, high=256, integer=True)
        for name, scale in (("calibration_scale", calibration_scale), ("value_scale", value_scale)):
            check_in_range(name, scale)
        if clip is not None:
            check_in_range("clip (None for no bound)", clip, above=0)
        self.memory_size = memory_size
        self.theta = theta
        self.calibration = calibration
        self.n_theta = n_theta
        self.clip = clip
        self.backend = backend
        self.draws_rows = calibration == "random" or (calibration == "hadamard" and theta == "random")
        self.context_size = int(self.draws_rows)

        self.norm = nn.LayerNorm(input_size) if layer_norm else nn.Identity()
        is_hadamard = calibration == "hadamard"
        widths = {
            "key_query": 2 * memory_size,
            "value": memory_size,
            "gate": 1,
            "vc": memory_size * is_hadamard,
            "theta": memory_size * (is_hadamard and theta == "neural"),
            "shortcut": memory_size * shortcut,
        }
        self.widths = {name: width for name, width in widths.items() if width}
        # All linear functions of x in one product
        self.projection = nn.Linear(input_size, sum(self.widths.values()), bias=False)
        self.output = nn.Linear(memory_size, self.output_size)

        self.split(self.projection.weight.data, dim=0)["value"].mul_(value_scale)
        rows = nn.init.xavier_uniform_(th.empty(n_theta, memory_size))
        if is_hadamard:
            self.split(self.projection.weight.data, dim=0)["vc"].mul_(calibration_scale)
            if theta != "neural":
                self.theta_rows = nn.Parameter(rows if theta == "random" else rows[:1])
        elif calibration == "random":
            # Columns as large as W_c x is at initialisation.
            self.register_buffer("theta_rows", rows)
            self.register_buffer("vc_rows", th.empty(n_theta, memory_size).uniform_(-1, 1))
        elif calibration == "constant":
            self.theta_rows = nn.Parameter(rows[:1])
            self.vc_rows = nn.Parameter(th.empty(1, memory_size).uniform_(-1, 1))
        self.forgetting: nn.Parameter | None = None
        if time_scales is not None:
            if not is_hadamard:
                raise ValueError(f"time_scales needs calibration='hadamard', got {calibration!r}")
            shortest, longest = check_time_scales(time_scales)
            times = th.logspace(math.log10(shortest), math.log10(longest), memory_size)
            self.forgetting = nn.Parameter(th.atanh(th.expm1(-1 / times)))  # so that C = exp(-1 / time)
        self.key_bias: nn.Parameter | None = None
        if key_bias is not None:
            check_in_range("key_bias (None for no bias)", key_bias, low=0)
            self.key_bias = nn.Parameter(th.full((2, memory_size), float(key_bias)))
        if self.draws_rows:
            self.deterministic_rows: th.Tensor
            self.register_buffer("deterministic_rows", th.randint(n_theta, (_N_DETERMINISTIC_ROWS,), dtype=th.uint8))

    def initial_state(self, n: int) -> State:
        device = self.output.weight.device
        matrix = th.zeros(n, self.memory_size, self.memory_size, dtype=self.output.weight.dtype, device=device)
        return matrix, th.zeros(n, dtype=th.int64, device=device)

    def draw_context(self, state: State, episode_start: th.Tensor, deterministic: bool = False) -> th.Tensor | None:
        if not self.draws_rows:
            return None
        if not deterministic:
            return th.randint(self.n_theta, episode_start.shape, dtype=th.uint8, device=episode_start.device)
        index, _ = steps_in_episode(state[1], episode_start)
        return self.deterministic_rows[index % _N_DETERMINISTIC_ROWS]

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        matrix, step = state
        assert isinstance(matrix, th.Tensor) and isinstance(step, th.Tensor)
        if context is None:
            context = self.draw_context(state, episode_start)
        z = self.split(self.projection(self.norm(x)))
        theta, vc, value, key, query = self.vectors(z, context, episode_start)
        h, matrix = hadamard_recurrence(theta, vc, value, key, query, matrix, episode_start, self.clip, self.backend)
        if "shortcut" in z:
            h = h + z["shortcut"]
        _, step = steps_in_episode(step, episode_start)
        return self.output(h), (matrix, step)

    def split(self, projected: th.Tensor, dim: int = -1) -> dict[str, th.Tensor]:
        """
        :param projected: what the projection puts out, or its weight with ``dim=0``
        :param dim: dimension of the projection's outputs
        :return: the parts by name
        """
        return dict(zip(self.widths, projected.split(list(self.widths.values()), dim), strict=True))

    def vectors(
        self, z: dict[str, th.Tensor], context: th.Tensor | None, episode_start: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :param z: linear functions of the input, (N, T, ...) each, see :meth:`split`
        :param context: row numbers, (N, T) uint8, if rows are drawn
        :param episode_start: (N, T) bool
        :return: theta, vc, v (the update gate included), k and q of the recurrence, (N, T, H) each
        """
        key_query = z["key_query"].unflatten(-1, (2, self.memory_size))
        key, query = normalise(F.relu(key_query if self.key_bias is None else key_query + self.key_bias)).unbind(-2)
        theta, vc = self._calibration(z, context, episode_start)
        return theta, vc, th.sigmoid(z["gate"]) * z["value"], key, query

    def _calibration(
        self, z: dict[str, th.Tensor], context: th.Tensor | None, episode_start: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param z: linear functions of the input, (N, T, ...) each
        :param context: row numbers, (N, T) uint8, if rows are drawn
        :param episode_start: (N, T) bool
        :return: theta and vc, (N, T, H) each, of C = 1 + tanh(theta ⊗ vc)
        """
        if self.calibration == "none":
            zeros = th.zeros_like(z["value"])
            return zeros, zeros
        if "theta" in z:
            theta, vc = z["theta"], z["vc"]
        else:
            # An embedding's backward pass is several times faster than that of indexing
            rows = th.zeros_like(episode_start, dtype=th.int32) if context is None else context.int()
            theta = F.embedding(rows, self.theta_rows)
            vc = z["vc"] if "vc" in z else F.embedding(rows, self.vc_rows)
        return (theta, vc) if self.forgetting is None else (1 + theta, vc + self.forgetting)
