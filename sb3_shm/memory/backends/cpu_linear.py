"""Linear functions of many rows in float32 on the CPU, by the library that multiplies faster on this processor."""

from functools import cache
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_vectors import can_fuse

MANY, MANY_INPUTS = 1 << 22, 64
"""Multiplications of a product, and of a row's output, from which on oneDNN's shorter time pays for Python's part in it."""


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    As ``torch.nn.functional.linear``, in two thirds to half of the time on AMD's processors with AVX-512.

    :param x: (..., in_features); differentiable, as are weight and bias
    :param weight: (out_features, in_features)
    :param bias: (out_features,) or None
    :return: (..., out_features)
    """
    is_large = can_fuse(x) and x.ndim > 1 and x.shape[-1] >= MANY_INPUTS and x.numel() * len(weight) >= MANY
    if not (is_large and onednn_is_faster() and _fits(x, weight, bias)) or th.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)  # which also knows what to say of tensors that do not fit
    if th.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _onednn(x, weight, bias)


def _fits(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> bool:
    fits = can_fuse(weight) and weight.ndim == 2 and weight.shape[1] == x.shape[-1]
    return fits and (bias is None or (can_fuse(bias) and bias.shape == weight.shape[:1]))


@cache
def onednn_is_faster() -> bool:
    """
    :return: whether oneDNN multiplies float32 faster than MKL here. On AMD's processors MKL leaves AVX-512 unused
    """
    import llvmlite.binding  # here, as it takes its time and small products need it not

    if not (th.backends.mkldnn.is_available() and hasattr(th.ops.mkldnn, "_linear_pointwise")):
        return False
    is_amd = llvmlite.binding.get_host_cpu_name().startswith("znver")
    return is_amd and th.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    # What torch's compiler makes of a linear layer on the CPU
    y = th.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "none", [], "")
    # As F.linear does it: a view could not be changed in place, by the activation behind the layer
    out: th.Tensor = th.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight)))
    return out


class _Linear(th.autograd.Function):
    """See :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # With gradients of gradients, torch's own
        product = F.linear if th.is_grad_enabled() else _onednn
        grad = grad.contiguous()
        rows, inputs = grad.flatten(0, -2), x.contiguous().flatten(0, -2)
        dx = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        dweight = product(rows.t(), inputs.t()) if ctx.needs_input_grad[1] else None
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias
