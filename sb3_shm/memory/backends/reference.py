"""The Hadamard recurrence, written as its equations: the definition that every other backend is tested against."""

from typing import Any

import torch as th

from sb3_shm.memory.backends.inputs import LARGEST_GRADIENT, HadamardInputs

BOUND_EVERY = 32  # steps


class _BoundedGradient(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: th.Tensor) -> th.Tensor:
        return memory.view_as(memory)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)


def hadamard_recurrence(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    A loop over time in plain autograd, any dtype and device; the backward pass keeps C_t, U_t and M_t of every step.

    See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.
    """
    theta, vc, v, k, q = inputs
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
            # Gradients pass at the bound itself, as in the kernels; through clamp() they did so up to torch 2.13
            memory = th.where(memory.abs() > clip, memory.detach().clamp(-clip, clip), memory)
        outputs.append((memory @ q[:, t, :, None]).squeeze(-1))
    return th.stack(outputs, dim=1), memory
