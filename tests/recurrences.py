"""Inputs of the recurrence as a trained memory would make them, and all that comes out of it."""

import torch as th

from sb3_shm.memory import HadamardInputs
from sb3_shm.memory.hadamard import hadamard_recurrence


def recurrence(
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
    return hadamard_recurrence(HadamardInputs(theta, vc, v, k, q), state, episode_start, clip, backend)


NAMES = ("h", "M_T", "dtheta", "dvc", "dv", "dk", "dq", "dstate")


def make_inputs(n: int, t: int, h: int, seed: int = 0, resets: float = 0.1) -> tuple[list[th.Tensor], th.Tensor]:
    """theta, vc, v, k, q, state, and episode_start."""
    generator = th.Generator().manual_seed(seed)
    theta, vc, v, k, q = th.randn(5, n, t, h, generator=generator)
    state = th.randn(n, h, h, generator=generator)
    episode_start = th.rand(n, t, generator=generator) < resets
    return [theta * 0.5, vc * 0.5, v * 0.3, k.relu(), q / h, state], episode_start


def run(
    tensors: list[th.Tensor], episode_start: th.Tensor, clip: float | None = None, backend: str = "cpu"
) -> dict[str, th.Tensor]:
    """h, M_T and the gradients of a fixed function of both, by name; the "cuda" backend on a GPU if there is one."""
    device = "cuda" if backend == "cuda" and th.cuda.is_available() else "cpu"
    tensors = [x.detach().to(device).requires_grad_() for x in tensors]
    out, memory = recurrence(*tensors, episode_start.to(device), clip=clip, backend=backend)
    # Weights that do not depend on N, so that rows can be compared between batches
    loss = sum((x * (th.arange(x[0].numel(), device=device) % 7 - 3).view(x[0].shape)).sum() for x in (out, memory))
    return dict(zip(NAMES, (x.detach().cpu() for x in (out, memory, *th.autograd.grad(loss, tensors))), strict=True))


def assert_equal(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> None:
    for name in NAMES:
        assert th.equal(a[name], b[name]), name


def assert_close_to_reference(
    result: dict[str, th.Tensor], tensors: list[th.Tensor], episode_start: th.Tensor, clip: float | None
) -> None:
    """To the reference in float64."""
    expected = run([x.double() for x in tensors], episode_start, clip, "reference")
    for name in NAMES:
        tolerance = 1e-4 * expected[name].abs().max().item() + 1e-12
        th.testing.assert_close(result[name].double(), expected[name], rtol=0, atol=tolerance, msg=name)
