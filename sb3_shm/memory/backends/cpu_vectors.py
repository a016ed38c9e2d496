"""What SHM computes before its recurrence, for float32 tensors on the CPU, as two fused operations."""

from typing import Any

import torch as th

from sb3_shm.memory.backends.cpu_threads import run
from sb3_shm.memory.backends.plain import is_transformed, once_differentiable


def can_fuse(x: th.Tensor) -> bool:
    """
    :param x: inputs, or linear functions of them
    :return: whether the operations of this file take them; a traced program is made of torch's own
    """
    return x.is_cpu and x.dtype == th.float32 and not th.compiler.is_compiling() and not is_transformed()


def with_change(x: th.Tensor, before: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
    """
    :param x: inputs, (N, T, D) float32 on the CPU; differentiable
    :param before: the input before the first step, (N, D); differentiable
    :param episode_start: (N, T) bool
    :return: each input and behind it how it differs from that of the step before, from 0 where an episode starts, (N, T, 2 D)
    :raises ValueError: a ``before`` that the kernel would read beyond
    """
    if before.shape != (len(x), x.shape[2]) or before.dtype != x.dtype or not before.is_cpu:
        raise ValueError(
            f"The state's previous input must be {(len(x), x.shape[2])} of {x.dtype} on the CPU, got {tuple(before.shape)} of "
            f"{before.dtype} on {before.device}"
        )
    if th.is_grad_enabled() and (x.requires_grad or before.requires_grad):
        return _Change.apply(x, before, episode_start)  # type: ignore[no-any-return, no-untyped-call]
    return _change_forward(x, before, episode_start)


def _change_forward(x: th.Tensor, before: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
    from sb3_shm.memory.backends import cpu_vectors_kernels

    n, t, d = x.shape
    both = x.new_empty(n, t, 2 * d)
    run(
        cpu_vectors_kernels.change_forward(d),
        n,
        4 * n * t * d,
        [x.contiguous(), before.contiguous(), episode_start.contiguous(), both],
    )
    return both


class _Change(th.autograd.Function):
    """See :func:`with_change`."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, before: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(episode_start.contiguous())
        return _change_forward(x, before, episode_start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        from sb3_shm.memory.backends import cpu_vectors_kernels

        (episode_start,) = ctx.saved_tensors
        n, t, d = *grad.shape[:2], grad.shape[2] // 2
        dx, dbefore = th.empty(n, t, d), th.empty(n, d)
        run(cpu_vectors_kernels.change_backward(d), n, 4 * n * t * d, [episode_start, grad.contiguous(), dx, dbefore])
        return dx, dbefore, None


def fused_vectors(z: th.Tensor, h: int) -> tuple[th.Tensor, ...]:
    """
    With z = (z_k, z_q, z_v, z_g, z_c, z_s) of each step::

        unit(a) = a / sqrt(|a|² + 1e-6)
        k = unit(silu(z_k)),  q = unit(silu(z_q)),  v = σ(z_g) z_v,  vc = z_c,  shortcut = z_s

    :param z: (N, T, 5 H + 1) float32 on the CPU; differentiable
    :param h: H, memory size
    :return: vc, v, k, q and shortcut, (N, T, H) each
    """
    if th.is_grad_enabled() and z.requires_grad:
        return _Vectors.apply(z, h)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(z, h)


def _forward(z: th.Tensor, h: int) -> tuple[th.Tensor, ...]:
    from sb3_shm.memory.backends import cpu_vectors_kernels

    n, t, width = z.shape
    outputs = tuple(z.new_empty(n, t, h) for _ in range(5))
    steps = n * t
    arrays = [z.contiguous().view(steps, width), *(x.view(steps, h) for x in outputs)]
    run(cpu_vectors_kernels.vectors_forward(h), steps, 8 * steps * h, arrays)
    return outputs


class _Vectors(th.autograd.Function):
    """See :func:`fused_vectors`."""

    @staticmethod
    def forward(ctx: Any, z: th.Tensor, h: int) -> tuple[th.Tensor, ...]:
        outputs = _forward(z, h)
        ctx.save_for_backward(z, outputs[2], outputs[3])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        from sb3_shm.memory.backends import cpu_vectors_kernels

        z, k, q = ctx.saved_tensors
        n, t, width = z.shape
        h, steps = k.shape[-1], n * t
        dz = th.empty(steps, width)
        arrays = [z.reshape(steps, width), k.view(steps, h), q.view(steps, h)]
        arrays += [gradient.contiguous().view(steps, h) for gradient in gradients]
        run(cpu_vectors_kernels.vectors_backward(h), steps, 8 * steps * h, [*arrays, dz])
        return dz.view(n, t, width), None
