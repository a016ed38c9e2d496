"""Where a kernel may compute in place of torch's operations, and what torch cannot see of it."""

import functools
from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.autograd import forward_ad, function

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
    :return: whether somebody hooked it, and so wants it to be called, as pruning and adapters do
    """
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """
    As torch's, for a backward pass that has no derivative itself. torch's raises an error where the derivative is asked for
    only if the incoming gradients have one. What the forward pass saved has one, too, of which torch's would make nothing.

    :param backward: of an ``autograd.Function``
    :return: the same, whose results cannot be differentiated
    """
    of_gradients = function.once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: th.Tensor) -> Any:
        if th.is_grad_enabled():
            gradients = tuple(gradient.detach().requires_grad_() for gradient in gradients)
        return of_gradients(ctx, *gradients)

    return wrapper
