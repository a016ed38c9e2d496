"""What the fused backends share: autograd around their kernels, and operators that torch.compile and torch.export can see."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.autograd.function import once_differentiable


class _Recurrence(th.autograd.Function):
    """A forward kernel and its backward kernel; see :func:`fuse`."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], clip: float, *tensors: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        out, memory, kept = forward(*tensors, clip, True)
        ctx.save_for_backward(*tensors[:5], tensors[6], kept)
        ctx.backward, ctx.clip = backward, clip
        return out, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: th.Tensor, dmemory: th.Tensor) -> tuple[th.Tensor | None, ...]:
        gradients = ctx.backward(*ctx.saved_tensors, dout, dmemory, ctx.clip)
        return None, None, None, *gradients, None


def fuse(
    name: str,
    forward: Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor]],
    backward: Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]],
    chunk: int,
) -> Callable[..., tuple[th.Tensor, th.Tensor]]:
    """
    A differentiable recurrence out of a forward and a backward kernel.

    Compiled and exported programs call the kernels as operators ``sb3_shm::hadamard_<name>`` and ``..._backward``. Otherwise
    they are called directly: an operator's dispatch costs as much as a whole step of a small memory.

    :param name: the backend's
    :param forward: (theta, vc, v, k, q, state, episode_start, clip, keep) -> h, M_T, and M at the start of every ``chunk``
        steps, (N, ceil(T / chunk), H, H), or (0, 0, 0, 0) if not to be kept. clip is inf for no bound
    :param backward: (theta, vc, v, k, q, episode_start, kept, dh, dM_T, clip) -> gradients of theta, vc, v, k, q, state
    :param chunk: steps between two kept M
    :return: (clip, theta, vc, v, k, q, state, episode_start) -> h, M_T
    """
    forward_operator = th.library.custom_op(f"sb3_shm::hadamard_{name}", forward, mutates_args=())
    backward_operator = th.library.custom_op(f"sb3_shm::hadamard_{name}_backward", backward, mutates_args=())

    def fake_forward(*arguments: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        q, state, keep = arguments[4], arguments[5], arguments[8]
        n, t, h = q.shape
        kept = state.new_empty((n, -(-t // chunk), h, h) if keep else (0, 0, 0, 0))
        return th.empty_like(q), th.empty_like(state), kept

    def fake_backward(*arguments: Any) -> tuple[th.Tensor, ...]:
        return tuple(th.empty_like(x) for x in (*arguments[:5], arguments[8]))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[th.Tensor, th.Tensor, th.Tensor]) -> None:
        ctx.save_for_backward(*inputs[:5], inputs[6], output[2])
        ctx.clip = inputs[7]

    def operator_backward(ctx: Any, dout: th.Tensor, dmemory: th.Tensor, _: th.Tensor) -> tuple[th.Tensor | None, ...]:
        gradients = backward_operator(*ctx.saved_tensors, dout, dmemory, ctx.clip)
        return *gradients, None, None, None

    forward_operator.register_fake(fake_forward)
    backward_operator.register_fake(fake_backward)
    forward_operator.register_autograd(operator_backward, setup_context=setup_context)

    def recurrence(clip: float, *tensors: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        differentiates = th.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if th.compiler.is_compiling():
            out, memory, _ = forward_operator(*tensors, clip, differentiates)
        elif differentiates:
            out, memory = _Recurrence.apply(forward, backward, clip, *tensors)  # type: ignore[no-untyped-call]
        else:
            out, memory, _ = forward(*tensors, clip, False)
        return out, memory

    return recurrence
