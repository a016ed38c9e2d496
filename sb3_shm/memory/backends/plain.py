"""Where a kernel may compute in place of torch's operations, and what torch cannot see of it."""

import functools
from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.autograd import forward_ad

# What another version of torch may lack, then nothing of it is asked
_interpreter: Callable[[], Any] = getattr(getattr(th._C, "_functorch", None), "peek_interpreter_stack", lambda: None)


def is_transformed() -> bool:
    """
    :return: whether more than autograd's backward pass looks at each operation: ``torch.jit``, ``torch.func``, forward
        derivatives. Nobody may ask within a program that torch compiles
    """
    is_traced: bool = th.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or _interpreter() is not None or getattr(forward_ad, "_current_level", -1) >= 0


def is_hooked(module: nn.Module) -> bool:
    """
    :param module: a layer whose weights a kernel would read without calling it
    :return: whether somebody hooked it or gave it a ``forward`` of its own, as pruning and adapters do, and so wants it called
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


class _Last(th.autograd.Function):
    """Gradients as functions of all that they depend on, whose derivatives are an error."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: th.Tensor | None) -> tuple[th.Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        raise RuntimeError(
            "trying to differentiate twice: this memory's kernels have no second derivatives; SHM with backend='reference' has"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """
    For a backward pass that has no derivative itself. torch's decorator of this name raises an error only if the derivative is
    asked for with respect to what the incoming gradients depend on. What the forward pass saved counts, too.

    :param backward: of an ``autograd.Function``, gives a tuple
    :return: the same, whose results cannot be differentiated
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: th.Tensor) -> Any:
        with th.no_grad():
            results = backward(ctx, *gradients)
        if not th.is_grad_enabled():
            return results
        return _Last.apply(len(results), *results, *gradients, *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    return wrapper
