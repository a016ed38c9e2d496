"""The recurrence of the Hadamard memory framework, and the choice of the code that computes it."""

from collections.abc import Callable
from contextlib import nullcontext

import torch as th

from sb3_shm.memory.backends import cpu, cuda, reference, scan
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.backends.plain import is_transformed

BACKENDS: dict[str, Callable[..., tuple[th.Tensor, th.Tensor]]] = {
    "reference": reference.hadamard_recurrence,
    "scan": scan.hadamard_recurrence,
    "cpu": cpu.hadamard_recurrence,
    "cuda": cuda.hadamard_recurrence,
}
HALVES = frozenset((th.float16, th.bfloat16))


def hadamard_recurrence(
    inputs: HadamardInputs,
    state: th.Tensor,
    episode_start: th.Tensor,
    clip: float | None = None,
    backend: str = "auto",
) -> tuple[th.Tensor, th.Tensor]:
    """
    The Stable Hadamard Memory's recurrence (paper, sections 3.1 and 3.3, equation 14), for each sequence and t = 1..T::

        M_{t-1} = 0                    where episode_start_t
        C_t = 1 + tanh(theta_t ⊗ vc_t)
        M_t = M_{t-1} ⊙ C_t + v_t ⊗ k_t,   limited to [-clip, clip]
        h_t = M_t q_t

    Rows of M follow theta and v, columns follow vc and k. Differentiable in every tensor but ``episode_start``.

    :param inputs: theta, vc, v, k and q, (N, T, H) each, floats; float16 and bfloat16 are computed in float32
    :param state: M_0, (N, H, H), of theta's dtype; better float32 if that is float16 or bfloat16
    :param episode_start: (N, T) bool
    :param clip: bound of \\|M\\| after each step; None for no bound. A clipped entry passes no gradient on.
    :param backend: "auto" (the fastest that fits the tensors), "cpu" (numba, on the CPU), "cuda" (triton, on a GPU), "scan"
        (parallel over time in plain torch, any device and dtype, clip must be None), "reference" (a loop in plain torch, any
        device and dtype). Under autocast, the tensors may differ in dtype, and all backends compute in float32
    :return: h, (N, T, H), of theta's dtype, and M_T, (N, H, H), of theta's or float32 if computed in that
    :raises ValueError: shapes or dtypes that do not fit, a clip that is not positive, a backend that is unknown, that is not
        made for such tensors, or that lacks something on this machine
    """
    theta = inputs[0]
    if not _fits(inputs, state, episode_start):
        if not _autocasts(theta):
            _explain(inputs, state, episode_start)
        return _in_float32(inputs, state, episode_start, clip, backend)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if backend == "auto":
        backend = _fastest(theta, clip)
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}, choose one of 'auto', {', '.join(map(repr, BACKENDS))}")
    if theta.dtype in HALVES or (backend in ("reference", "scan") and _autocasts(theta)):
        return _in_float32(inputs, state, episode_start, clip, backend)
    return BACKENDS[backend](inputs, state, episode_start, clip)


def _in_float32(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float | None, backend: str
) -> tuple[th.Tensor, th.Tensor]:
    """As without autocast, from tensors of any precision; h is of theta's own outside of autocast."""
    theta = inputs.theta
    autocasts, dtype = _autocasts(theta), theta.dtype
    inputs = HadamardInputs(*(x.float() for x in inputs))
    with th.autocast(theta.device.type, enabled=False) if autocasts else nullcontext():
        out, memory = hadamard_recurrence(inputs, state.float(), episode_start, clip, backend)
    return out if autocasts else out.to(dtype), memory


def _autocasts(x: th.Tensor) -> bool:
    device = x.device.type
    return th.amp.is_autocast_available(device) and th.is_autocast_enabled(device)


def _fastest(theta: th.Tensor, clip: float | None) -> str:
    if theta.is_cpu:
        is_torchs = theta.dtype == th.float64 or (not th.compiler.is_compiling() and is_transformed())
        return "reference" if is_torchs else "cpu"
    if cuda.can_run(theta):
        return "cuda"
    return "scan" if clip is None else "reference"


def _fits(inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor) -> bool:
    """Whether everything fits, in as few operations as possible: every rollout step asks."""
    theta, vc, v, k, q = inputs
    shape = theta.shape
    if len(shape) != 3 or shape[1] == 0:
        return False
    n, t, h = shape
    return (
        shape == vc.shape == v.shape == k.shape == q.shape
        and state.shape == (n, h, h)
        and episode_start.shape == (n, t)
        and theta.dtype == vc.dtype == v.dtype == k.dtype == q.dtype
        and (state.dtype == theta.dtype or (state.dtype == th.float32 and theta.dtype in HALVES))
        and episode_start.dtype == th.bool
        and theta.device == vc.device == v.device == k.device == q.device == state.device == episode_start.device
    )


def _explain(inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor) -> None:
    """:raises ValueError: what does not fit, and what would"""
    theta, vc, v, k, q = inputs
    if theta.dim() != 3:
        raise ValueError(f"theta must have the shape (N, T, H), got {tuple(theta.shape)}")
    n, t, h = theta.shape
    if t == 0:
        raise ValueError("T must be at least 1, got T = 0")
    tensors = {
        "vc": (vc, (n, t, h)),
        "v": (v, (n, t, h)),
        "k": (k, (n, t, h)),
        "q": (q, (n, t, h)),
        "state": (state, (n, h, h)),
    }
    for name, (tensor, shape) in {**tensors, "episode_start": (episode_start, (n, t))}.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} to fit theta's, got {tuple(tensor.shape)}")
    for name, (tensor, _) in tensors.items():
        if tensor.dtype != theta.dtype or tensor.device != theta.device:
            raise ValueError(
                f"{name} must be {theta.dtype} on {theta.device} as theta is, got {tensor.dtype} on {tensor.device}"
            )
    raise ValueError(
        f"episode_start must be torch.bool on {theta.device}, got {episode_start.dtype} on {episode_start.device}"
    )
