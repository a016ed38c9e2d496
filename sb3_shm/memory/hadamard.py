"""The recurrence of the Hadamard memory framework, and the choice of the code that computes it."""

from collections.abc import Callable

import torch as th

from sb3_shm.memory.backends import cpu, reference

BACKENDS: dict[str, Callable[..., tuple[th.Tensor, th.Tensor]]] = {
    "reference": reference.hadamard_recurrence,
    "cpu": cpu.hadamard_recurrence,
}


def hadamard_recurrence(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
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

    :param theta: calibration rows, (N, T, H)
    :param vc: calibration columns, (N, T, H)
    :param v: values, already scaled by the update gate, (N, T, H)
    :param k: keys, (N, T, H)
    :param q: queries, (N, T, H)
    :param state: M_0, (N, H, H)
    :param episode_start: (N, T) bool
    :param clip: bound of \\|M\\| after each step; None for no bound. A clipped entry passes no gradient on.
    :param backend: "auto" (the fastest that fits the tensors), "cpu" (numba, float32 on the CPU), "reference"
    :return: h, (N, T, H), and M_T, (N, H, H)
    :raises ValueError: unknown backend, shapes or dtypes that do not fit, or a clip that is not positive
    """
    if not _fits(theta, vc, v, k, q, state, episode_start):
        _explain(theta, vc, v, k, q, state, episode_start)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if backend == "auto":
        backend = "cpu" if theta.dtype == th.float32 and theta.is_cpu else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}, choose one of 'auto', {', '.join(map(repr, BACKENDS))}")
    return BACKENDS[backend](theta, vc, v, k, q, state, episode_start, clip)


def _fits(
    theta: th.Tensor, vc: th.Tensor, v: th.Tensor, k: th.Tensor, q: th.Tensor, state: th.Tensor, episode_start: th.Tensor
) -> bool:
    """Whether everything fits, in as few operations as possible: every rollout step asks."""
    shape = theta.shape
    if len(shape) != 3 or shape[1] == 0:
        return False
    n, t, h = shape
    return (
        shape == vc.shape == v.shape == k.shape == q.shape
        and state.shape == (n, h, h)
        and episode_start.shape == (n, t)
        and theta.dtype == vc.dtype == v.dtype == k.dtype == q.dtype == state.dtype
        and episode_start.dtype == th.bool
        and theta.device == vc.device == v.device == k.device == q.device == state.device == episode_start.device
    )


def _explain(
    theta: th.Tensor, vc: th.Tensor, v: th.Tensor, k: th.Tensor, q: th.Tensor, state: th.Tensor, episode_start: th.Tensor
) -> None:
    """:raises ValueError: what does not fit, and what would"""
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
