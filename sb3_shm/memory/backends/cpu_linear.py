"""Linear functions of many rows in float32 on the CPU, by what multiplies faster than MKL on this processor."""

from functools import cache
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_threads import run
from sb3_shm.memory.backends.plain import is_transformed

MANY, MANY_INPUTS = 1 << 21, 32
"""Multiplications of a product, and of a row's output, from which on the shorter time pays for Python's part in it."""
MANY_TANH = 1 << 14
"""Entries of an output from which on it pays to make their tanh, too, for which torch takes several times as long."""


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None, tanh: bool = False) -> th.Tensor:
    """
    As ``torch.nn.functional.linear``, in about half the time on AMD's processors with AVX-512, forward and backward: there
    oneDNN multiplies, and makes the tanh, and a kernel of our own makes the weight's gradient.

    :param x: (..., in_features); differentiable, as are weight and bias
    :param weight: (out_features, in_features)
    :param bias: (out_features,) or None
    :param tanh: give the tanh of it
    :return: (..., out_features)
    """
    # First, as a program must not depend on the number of rows with which it is traced
    is_plain = not (th.compiler.is_compiling() or is_transformed() or th.is_autocast_enabled("cpu"))
    if is_plain and _gains(x, weight, tanh) and _fits(x, weight, bias) and onednn_is_faster():
        if th.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
            return _Linear.apply(x, weight, bias, tanh)  # type: ignore[no-any-return, no-untyped-call]
        return _onednn(x, weight, bias, tanh)
    y = F.linear(x, weight, bias)  # which also knows what to say of tensors that do not fit
    return y.tanh() if tanh else y


def _gains(x: th.Tensor, weight: th.Tensor, tanh: bool = False) -> bool:
    if x.ndim < 2 or weight.ndim != 2:
        return False
    is_large = x.shape[-1] >= MANY_INPUTS and x.numel() * len(weight) >= MANY
    return is_large or (tanh and x.shape[:-1].numel() * len(weight) >= MANY_TANH)


def _fits(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    are_plain = all(
        tensor.is_cpu and tensor.dtype == th.float32 and tensor.layout == th.strided and not tensor.is_nested
        for tensor in tensors
    )
    return are_plain and weight.shape[1] == x.shape[-1] and (bias is None or bias.shape == weight.shape[:1])


@cache
def onednn_is_faster() -> bool:
    """
    :return: whether oneDNN multiplies float32 faster than MKL here. On AMD's processors MKL leaves AVX-512 unused
    """
    import llvmlite.binding  # here, as it takes its time and small products need it not

    # What is used here and another version of torch may lack
    needed = [(getattr(th._C, "_functorch", None), "is_legacy_batchedtensor"), (th.ops.mkldnn, "_linear_pointwise")]
    if not (th.backends.mkldnn.is_available() and all(hasattr(*name) for name in needed)):
        return False
    is_amd = llvmlite.binding.get_host_cpu_name().startswith("znver")
    return is_amd and th.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None, tanh: bool = False) -> th.Tensor:
    # What torch's compiler makes of a linear layer on the CPU
    bias = None if bias is None else bias.contiguous()  # as which it is read
    y = th.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "tanh" if tanh else "none", [], "")
    # As F.linear does it: a view could not be changed in place, by the activation behind the layer
    out: th.Tensor = th.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight)))
    return out


def products_over_rows(grad: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    The gradient of a linear layer's weight; not differentiable.

    :param grad: (N, out_features)
    :param x: (N, in_features)
    :return: ``grad.t() @ x``
    """
    if not (_gains(grad.t(), x.t()) and _fits(grad.t(), x.t(), None) and onednn_is_faster()):
        return grad.t() @ x
    from sb3_shm.memory.backends import cpu_linear_kernels as kernels
    from sb3_shm.memory.backends.cpu_product import ROWS

    (n, n_out), n_in = grad.shape, x.shape[1]
    if n_in % kernels.PANEL:
        # oneDNN would copy both column by column
        return products_over_rows(x, grad).t() if n_out % kernels.PANEL == 0 else _onednn(grad.t(), x.t())
    out = x.new_zeros(n_out, n_in)
    work = n * n_out * n_in // 8  # as entries of C, of which each costs as much as some products
    # As much for each thread: with more and smaller units x would be read as often
    entries = -(-n_out // (ROWS * th.get_num_threads())) * ROWS
    run(kernels.products_over_rows(), -(-n_out // entries), work, [grad.contiguous(), x.contiguous(), out, entries])
    return out


class _Linear(th.autograd.Function):
    """See :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None, tanh: bool) -> th.Tensor:
        of_x, of_weight, _, _ = ctx.needs_input_grad
        y = _onednn(x, weight, bias, tanh)
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None, y if tanh else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = th.ops.aten.tanh_backward(grad, y)
        # Torch's own with gradients of gradients, and with many gradients at once
        is_torchs = th.is_grad_enabled() or is_transformed() or th._C._functorch.is_legacy_batchedtensor(grad)
        dx = dweight = None
        if weight is not None:
            dx = grad @ weight if is_torchs or not _gains(grad, weight.t()) else _onednn(grad, weight.t())
        rows = grad.reshape(-1, grad.shape[-1])
        if x is not None:
            inputs = x.reshape(-1, x.shape[-1])
            dweight = rows.t() @ inputs if is_torchs else products_over_rows(rows, inputs)
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None
