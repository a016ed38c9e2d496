"""What the fused backends share: autograd around their kernels, and operators that torch.compile and torch.export can see."""

from collections.abc import Callable
from typing import Any

import torch as th

from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.backends.plain import once_differentiable


class _Recurrence(th.autograd.Function):
    """A forward kernel and its backward kernel; see :func:`fuse`."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], clip: float, *tensors: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        out, memory, kept = forward(HadamardInputs(*tensors[:5]), tensors[5], tensors[6], clip, True)
        ctx.save_for_backward(*tensors[:5], tensors[6], kept)
        ctx.backward, ctx.clip = backward, clip
        return out, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: th.Tensor, dmemory: th.Tensor) -> tuple[th.Tensor | None, ...]:
        *inputs, episode_start, kept = ctx.saved_tensors
        gradients, dstate = ctx.backward(HadamardInputs(*inputs), episode_start, kept, dout, dmemory, ctx.clip)
        return None, None, None, *gradients, dstate, None


def fuse(
    name: str,
    forward: Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor]],
    backward: Callable[..., tuple[HadamardInputs, th.Tensor]],
    chunk: int,
) -> Callable[..., tuple[th.Tensor, th.Tensor]]:
    """
    A differentiable recurrence out of a forward and a backward kernel.

    Compiled and exported programs call the kernels as operators ``sb3_shm::hadamard_<name>`` and ``..._backward``. Otherwise
    they are called directly: an operator's dispatch costs as much as a whole step of a small memory.

    :param name: the backend's
    :param forward: (inputs, state, episode_start, clip, keep) -> h, M_T, and M at the start of every ``chunk`` steps,
        (N, ceil(T / chunk), H, H), or (0, 0, 0, 0) if not to be kept. clip is inf for no bound
    :param backward: (inputs, episode_start, kept, dh, dM_T, clip) -> gradients of the inputs and of the state
    :param chunk: steps between two kept M
    :return: (inputs, state, episode_start, clip) -> h, M_T
    """

    # An operator's tensors cannot come in a tuple of ours
    def flat_forward(
        theta: th.Tensor,
        vc: th.Tensor,
        v: th.Tensor,
        k: th.Tensor,
        q: th.Tensor,
        state: th.Tensor,
        episode_start: th.Tensor,
        clip: float,
        keep: bool,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        return forward(HadamardInputs(theta, vc, v, k, q), state, episode_start, clip, keep)

    def flat_backward(
        theta: th.Tensor,
        vc: th.Tensor,
        v: th.Tensor,
        k: th.Tensor,
        q: th.Tensor,
        episode_start: th.Tensor,
        kept: th.Tensor,
        dout: th.Tensor,
        dmemory: th.Tensor,
        clip: float,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        gradients, dstate = backward(HadamardInputs(theta, vc, v, k, q), episode_start, kept, dout, dmemory, clip)
        return *gradients, dstate

    forward_operator = th.library.custom_op(f"sb3_shm::hadamard_{name}", flat_forward, mutates_args=())
    backward_operator = th.library.custom_op(f"sb3_shm::hadamard_{name}_backward", flat_backward, mutates_args=())

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

    def recurrence(
        inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float
    ) -> tuple[th.Tensor, th.Tensor]:
        differentiates = th.is_grad_enabled() and any(x.requires_grad for x in (*inputs, state))
        if th.compiler.is_compiling():
            out, memory, _ = forward_operator(*inputs, state, episode_start, clip, differentiates)
        elif differentiates:
            out, memory = _Recurrence.apply(forward, backward, clip, *inputs, state, episode_start)  # type: ignore[no-untyped-call]
        else:
            out, memory, _ = forward(inputs, state, episode_start, clip, False)
        return out, memory

    return recurrence
