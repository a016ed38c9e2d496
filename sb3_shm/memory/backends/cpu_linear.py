"""Linear functions of many rows in float32 on the CPU, by the library that multiplies faster on this processor."""

from functools import cache
from typing import Any

import torch as th
from torch.autograd import forward_ad
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_vectors import can_fuse

MANY, MANY_INPUTS = 1 << 22, 64
"""Multiplications of a product, and of a row's output, from which on oneDNN's shorter time pays for Python's part in it."""


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    As ``torch.nn.functional.linear``, in half to four fifths of the time on AMD's processors with AVX-512.

    :param x: (..., in_features); differentiable, as are weight and bias
    :param weight: (out_features, in_features)
    :param bias: (out_features,) or None
    :return: (..., out_features)
    """
    # First, as a program must not depend on the number of rows with which it is traced
    is_traced = th.compiler.is_compiling() or th.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or not (_is_large(x, weight) and _fits(x, weight, bias) and onednn_is_faster() and _is_plain()):
        return F.linear(x, weight, bias)  # which also knows what to say of tensors that do not fit
    if th.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _onednn(x, weight, bias)


def _is_large(x: th.Tensor, weight: th.Tensor) -> bool:
    return x.ndim > 1 and weight.ndim == 2 and x.shape[-1] >= MANY_INPUTS and x.numel() * len(weight) >= MANY


def _fits(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    fits = all(can_fuse(tensor) and tensor.layout == th.strided and not tensor.is_nested for tensor in tensors)
    return fits and weight.shape[1] == x.shape[-1] and (bias is None or bias.shape == weight.shape[:1])


def _is_plain() -> bool:
    """:return: whether nothing but autograd's backward pass looks on: no autocast, no torch.func, no forward derivative"""
    is_transformed = th._C._functorch.peek_interpreter_stack() is not None
    return not (is_transformed or th.is_autocast_enabled("cpu") or forward_ad._current_level >= 0)


@cache
def onednn_is_faster() -> bool:
    """
    :return: whether oneDNN multiplies float32 faster than MKL here. On AMD's processors MKL leaves AVX-512 unused
    """
    import llvmlite.binding  # here, as it takes its time and small products need it not

    functorch = getattr(th._C, "_functorch", None)
    # What is used here and another version of torch may lack
    needed = [
        (functorch, "peek_interpreter_stack"),
        (functorch, "is_legacy_batchedtensor"),
        (forward_ad, "_current_level"),
        (th.ops.mkldnn, "_linear_pointwise"),
    ]
    if not (th.backends.mkldnn.is_available() and all(hasattr(*name) for name in needed)):
        return False
    is_amd = llvmlite.binding.get_host_cpu_name().startswith("znver")
    return is_amd and th.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    # What torch's compiler makes of a linear layer on the CPU
    bias = None if bias is None else bias.contiguous()  # as which it is read
    y = th.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "none", [], "")
    # As F.linear does it: a view could not be changed in place, by the activation behind the layer
    out: th.Tensor = th.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight)))
    return out


class _Linear(th.autograd.Function):
    """See :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # Torch's own with gradients of gradients, and with many gradients at once
        product = F.linear if th.is_grad_enabled() or th._C._functorch.is_legacy_batchedtensor(grad) else _onednn
        grad = grad.contiguous()
        rows = grad.reshape(-1, grad.shape[-1])
        dx = None if weight is None else product(grad, weight.t())
        dweight = None if x is None else product(rows.t(), x.reshape(-1, x.shape[-1]).t())
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias
