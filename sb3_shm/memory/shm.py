"""The Stable Hadamard Memory."""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_step import can_step, shm_step
from sb3_shm.memory.backends.cpu_vectors import can_fuse, fused_vectors, with_change
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.base import Memory, State, steps_in_episode
from sb3_shm.memory.checks import check_flag, check_in_range
from sb3_shm.memory.hadamard import BACKENDS, hadamard_recurrence
from sb3_shm.memory.keys import KEYS, make_keys
from sb3_shm.memory.linear import Linear

THETAS = ("random", "fixed", "neural")
CALIBRATIONS = ("hadamard", "none", "random", "constant")
CAN_FUSE = {"key_query", "value", "gate", "vc", "shortcut"}  # the linear functions that fused_vectors takes, in this order
_N_DETERMINISTIC_ROWS = 8192
# Of the variance of what is read: little is read as it is, much at length g sqrt(H). With a smaller one the little that a
# young memory holds is blown up: its sign jumps, and how much there is is lost
_READ_EPS = 1.0


class SHM(Memory):
    """
    Stable Hadamard Memory (Le et al., ICLR 2025, arXiv 2410.10132): a matrix that every step calibrates element by element.

    With x the normalised input and p that of the step before (0 at an episode's first step), each z a linear function
    z = W x + W' (x - p) whose W' begins at 0::

        k = unit(silu(z_k)),  q = unit(silu(z_q)),  v = z_v,  vc = z_c,  η = σ(z_η)
        C_t = 1 + tanh(s θ_t ⊗ vc)
        M_t = M_{t-1} ⊙ C_t + η (v ⊗ k)
        h = LayerNorm(M_t q) with a gain g,  y = W_o (h + z_shortcut)

    The calibration is the paper's (sections 3.1 to 3.3), where s = 1. The paper's keys are non-negative and sum to 1, so they
    always overlap and what is written reads back mixed; its h grows without bound; and it has no p. :class:`PaperSHM` is that
    published form. With a small s hardly anything is forgotten at first, and to forget is learned more slowly than what to
    write and to read. As W_q begins as W_k, what is read at first are the inputs most like the present one.

    θ is a table of L rows, of which each step takes one at random: that keeps the product of all C near 1 (Propositions 4, 5).
    The row numbers are the memory's context: a policy stores them while it explores and gives them back in the update, so
    that the update sees the very network that acted. Deterministic use takes them from a table drawn at construction,
    saved with the weights and read at the step within the episode.

    State: the matrix, (N, H, H) float; the number of steps taken in the episode, (N,) int64; with ``previous_input`` the last
    normalised input, (N, D) float.

    :param input_size: D, number of input features
    :param memory_size: H, the memory is an H × H matrix
    :param output_size: number of output features, default ``memory_size``
    :param theta: which θ_t calibrates step t: "random" row of the table (the paper), "fixed" (always row 0, as the released
        POPGym code does in effect), or "neural" (a linear function of x); of use with ``calibration="hadamard"`` only
    :param calibration: "hadamard" (the paper), or an ablation: "none" (C = 1), "random" (C drawn at each step, not learned),
        "constant" (C learned, the same at each step)
    :param n_theta: L, rows of θ, 1 to 256 (a row number is one byte)
    :param keys: "unit", silu at Euclidean length 1; "softmax"; or "sum", relu divided by its sum (the paper)
    :param read_gain: initial value of the learned gain g, (H,), of what is read, after a LayerNorm; None to take it as it is
        (the paper)
    :param previous_input: whether the linear functions see the previous input, too (the paper: no)
    :param tied_start: whether the weights of queries begin as those of keys (the paper: no); they learn apart
    :param calibration_scale: s (the paper: 1). It is saved with the weights; weights that were saved without it were learned
        with 1
    :param layer_norm: normalise the input first
    :param shortcut: add a linear function of the input to what is read
    :param clip: bound of \\|M\\| after each step, None for no bound
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
        keys: str = "unit",
        read_gain: float | None = 1.0,
        previous_input: bool = True,
        tied_start: bool = True,
        calibration_scale: float = 0.1,
        layer_norm: bool = True,
        shortcut: bool = True,
        clip: float | None = 100.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, memory_size if output_size is None else output_size)
        for name, value, legal in (
            ("theta", theta, THETAS),
            ("calibration", calibration, CALIBRATIONS),
            ("keys", keys, KEYS),
            ("backend", backend, ("auto", *BACKENDS)),
        ):
            if value not in legal:
                raise ValueError(f"Unknown {name} {value!r}, choose one of {', '.join(map(repr, legal))}")
        for name, size in (("input_size", input_size), ("memory_size", memory_size), ("output_size", self.output_size)):
            check_in_range(name, size, low=1, integer=True)
        flags = dict(previous_input=previous_input, tied_start=tied_start, layer_norm=layer_norm, shortcut=shortcut)
        for name, flag in flags.items():
            check_flag(name, flag)
        check_in_range("calibration_scale", calibration_scale)
        check_in_range("n_theta", n_theta, low=1, high=256, integer=True)
        for name, bound in (("clip (None for no bound)", clip), ("read_gain (None for no norm)", read_gain)):
            if bound is not None:
                check_in_range(name, bound, above=0)
        self.memory_size = memory_size
        self.theta = theta
        self.calibration = calibration
        self.n_theta = n_theta
        self.keys = keys
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
        # What the CPU's fused vectors know, and its fused step
        self.can_fuse = keys == "unit" and self.widths.keys() == CAN_FUSE and backend in ("auto", "cpu")
        self.can_step = self.can_fuse and layer_norm and previous_input and read_gain is not None
        # All linear functions of x, and of x - p behind it, in one product. A change is small beside what it is a change of:
        # weights of p itself would have to find it as the difference of two large numbers
        self.projection = Linear(input_size, sum(self.widths.values()), bias=False)
        if tied_start:
            key, query = self.projection.weight.data[: 2 * memory_size].chunk(2)
            query.copy_(key)
        self.previous_input = previous_input
        if previous_input:
            self.projection.weight = nn.Parameter(F.pad(self.projection.weight.data, (0, input_size)))
        self.output = Linear(memory_size, self.output_size)

        rows = nn.init.xavier_uniform_(th.empty(n_theta, memory_size))
        if is_hadamard:
            if theta != "neural":
                self.theta_rows = nn.Parameter(rows if theta == "random" else rows[:1])
        elif calibration == "random":
            # Columns as large as W_c x is at initialisation.
            self.register_buffer("theta_rows", rows)
            self.register_buffer("vc_rows", th.empty(n_theta, memory_size).uniform_(-1, 1))
        elif calibration == "constant":
            self.theta_rows = nn.Parameter(rows[:1])
            self.vc_rows = nn.Parameter(th.empty(1, memory_size).uniform_(-1, 1))
        if self.draws_rows:
            self.deterministic_rows: th.Tensor
            # Floats, as all in a state dict: what averages or perturbs models reckons with that
            rows_of_steps = th.randint(n_theta, (_N_DETERMINISTIC_ROWS,), dtype=th.uint8).float()
            self.register_buffer("deterministic_rows", rows_of_steps)
        self.calibration_scale: th.Tensor
        self.register_buffer("calibration_scale", th.tensor(float(calibration_scale)))
        self.read_norm: nn.Module = nn.Identity()
        if read_gain is not None:
            self.read_norm = nn.LayerNorm(memory_size, eps=_READ_EPS, bias=False)
            nn.init.constant_(self.read_norm.weight, read_gain)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}projection.weight" in state_dict:  # else a module that two others share, whose weights come once
            state_dict.setdefault(f"{prefix}calibration_scale", th.ones_like(self.calibration_scale))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def initial_state(self, n: int) -> State:
        like: dict[str, Any] = dict(dtype=self.output.weight.dtype, device=self.output.weight.device)
        matrix = th.zeros(n, self.memory_size, self.memory_size, **like)
        step = th.zeros(n, dtype=th.int64, device=matrix.device)
        return (matrix, step, th.zeros(n, self.input_size, **like)) if self.previous_input else (matrix, step)

    def draw_context(self, state: State, episode_start: th.Tensor, deterministic: bool = False) -> th.Tensor | None:
        if not self.draws_rows:
            return None
        if not deterministic:
            return th.randint(self.n_theta, (*episode_start.shape, 1), dtype=th.uint8, device=episode_start.device)
        index, _ = steps_in_episode(state[1], episode_start)
        return self.deterministic_rows[index % _N_DETERMINISTIC_ROWS].to(th.uint8).unsqueeze(-1)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        if self.can_step and can_step(self, x):
            theta = self._rows(self.theta_rows, context, episode_start)
            y, matrix, x = shm_step(self, x, state[0], state[2], theta, episode_start)
            return y, (matrix, steps_in_episode(state[1], episode_start)[1], x)
        z, x = self.project(x, state, episode_start)
        inputs, shortcut = self.vectors(z, context, episode_start)
        h, matrix = hadamard_recurrence(inputs, state[0], episode_start, self.clip, self.backend)
        h = self.read_norm(h)
        if shortcut is not None:
            h = h + shortcut
        _, step = steps_in_episode(state[1], episode_start)
        return self.output(h), (matrix, step, x[:, -1]) if self.previous_input else (matrix, step)

    def project(self, x: th.Tensor, state: State, episode_start: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: inputs, (N, T, input_size)
        :param state: state before the first step
        :param episode_start: (N, T) bool
        :return: the linear functions z of normalised and previous input, (N, T, sum of ``widths``), and the normalised input
        """
        x = self.norm(x)
        if not self.previous_input:
            return self.projection(x), x
        if self.backend in ("auto", "cpu") and can_fuse(x):
            return self.projection(with_change(x, state[2], episode_start)), x
        previous = th.cat((state[2].unsqueeze(1), x), dim=1)[:, :-1]
        previous = th.where(episode_start.unsqueeze(-1), 0, previous)
        return self.projection(th.cat((x, x - previous), dim=-1)), x

    def split(self, projected: th.Tensor, dim: int = -1) -> dict[str, th.Tensor]:
        """
        :param projected: linear functions of the input in one tensor, or the projection's weight with ``dim=0``
        :param dim: dimension of the functions
        :return: the parts by name
        """
        return dict(zip(self.widths, projected.split(list(self.widths.values()), dim), strict=True))

    def vectors(
        self, z: th.Tensor, context: th.Tensor | None, episode_start: th.Tensor
    ) -> tuple[HadamardInputs, th.Tensor | None]:
        """
        :param z: what :meth:`project` returns, (N, T, ...)
        :param context: row numbers, (N, T, 1) uint8, if rows are drawn
        :param episode_start: (N, T) bool
        :return: s theta, vc, v (the update gate included), k and q of the recurrence, and the way past it, None if there is
            none; (N, T, H) each
        """
        if self.can_fuse and can_fuse(z):
            vc, value, key, query, shortcut = fused_vectors(z, self.memory_size)
            theta = self._rows(self.calibration_scale * self.theta_rows, context, episode_start)
            return HadamardInputs(theta, vc, value, key, query), shortcut
        parts = self.split(z)
        key, query = make_keys(parts["key_query"].unflatten(-1, (2, self.memory_size)), self.keys).unbind(-2)
        value = th.sigmoid(parts["gate"]) * parts["value"]
        if self.calibration == "none":
            theta = vc = th.zeros_like(value)
        else:
            theta = parts["theta"] if "theta" in parts else self._rows(self.theta_rows, context, episode_start)
            theta = self.calibration_scale * theta
            vc = parts["vc"] if "vc" in parts else self._rows(self.vc_rows, context, episode_start)
        return HadamardInputs(theta, vc, value, key, query), parts.get("shortcut")

    @staticmethod
    def _rows(table: th.Tensor, context: th.Tensor | None, episode_start: th.Tensor) -> th.Tensor:
        """:return: the table's row of each step, (N, T, H)"""
        # An embedding's backward pass is several times faster than that of indexing
        rows = th.zeros_like(episode_start, dtype=th.int32) if context is None else context.squeeze(-1).int()
        return F.embedding(rows, table)


class PaperSHM(SHM):
    """
    Stable Hadamard Memory as the paper publishes it (sections 3.1 to 3.3), ``memory="shm_paper"``: :class:`SHM` with keys and
    queries relu(W x) / (1e-5 + their sum), M_t q as it is read, and functions of the present input alone.

    State: the matrix, (N, H, H) float, and the number of steps taken in the episode, (N,) int64.

    For the arguments see :class:`SHM`.
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
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size,
            memory_size,
            output_size,
            theta,
            calibration,
            n_theta,
            keys="sum",
            read_gain=None,
            previous_input=False,
            tied_start=False,
            calibration_scale=1.0,
            layer_norm=layer_norm,
            shortcut=shortcut,
            clip=clip,
            backend=backend,
        )
