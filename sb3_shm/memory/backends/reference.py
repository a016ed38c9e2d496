"""The Hadamard recurrence, written as its equations: the definition that every other backend is tested against."""

from typing import Any

import torch as th

LARGEST_GRADIENT, BOUND_EVERY = 1e20, 32
"""
The gradient of M is a product of as many C as there are steps after it, up to 2 each: in float32 it is infinite after 128, and
infinity times an entry of M or k that is 0 would be NaN, where the derivative is 0. It is held at a number so large that what
does not vanish is not finite in the weights' gradients, so that the optimizers see it.
"""


class _BoundedGradient(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: th.Tensor) -> th.Tensor:
        return memory.view_as(memory)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)


def hadamard_recurrence(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    state: th.Tensor,
    episode_start: th.Tensor,
    clip: float | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    A loop over time in plain autograd, any dtype and device; the backward pass keeps C_t, U_t and M_t of every step.

    See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.
    """
    memory = state
    outputs = []
    for t in range(theta.shape[1]):
        if t and t % BOUND_EVERY == 0:
            memory = _BoundedGradient.apply(memory)  # type: ignore[no-untyped-call]
        memory = th.where(episode_start[:, t, None, None], th.zeros_like(memory), memory)
        calibration = 1 + th.tanh(theta[:, t, :, None] * vc[:, t, None, :])
        update = v[:, t, :, None] * k[:, t, None, :]
        memory = memory * calibration + update
        if clip is not None:
            memory = memory.clamp(-clip, clip)
        outputs.append((memory @ q[:, t, :, None]).squeeze(-1))
    return th.stack(outputs, dim=1), memory
