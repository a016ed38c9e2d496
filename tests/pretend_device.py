"""
A device that is none: its tensors are on the CPU and say "meta". What a GPU would refuse it refuses, tensors of two devices in
one operation; what a GPU would wait for it counts, each transfer to and from it and each number asked for.
"""

from collections import Counter
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = th.device("meta")
MOVES = (th.ops.aten._to_copy.default, th.ops.aten.copy_.default)


class OnDevice(th.Tensor):
    """:param inner: the numbers, on the CPU"""

    inner: th.Tensor

    @staticmethod
    def __new__(cls, inner: th.Tensor, requires_grad: bool = False) -> "OnDevice":
        return th.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE,
            requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, inner: th.Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    __torch_dispatch__ = classmethod(lambda cls, func, types, args=(), kwargs=None: _run(func, args, kwargs or {}))


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, th.Tensor)]
    on_device = [isinstance(x, OnDevice) for x in tensors]
    device = kwargs.get("device")
    here = any(on_device) if device is None else th.device(device) == DEVICE
    if device is not None:
        kwargs = {**kwargs, "device": th.device("cpu")}
    if func in MOVES:
        here_now = on_device[0]
        if func is th.ops.aten.copy_.default:
            here, here_now = on_device
        if here != here_now:
            TRANSFERS["to" if here else "from"] += 1
    elif any(on_device) and not all(on_device):
        wrong = [x for x, is_here in zip(tensors, on_device, strict=True) if not is_here and x.dim()]
        # As on a GPU: scalars of the CPU may take part
        assert not wrong, f"{func} of tensors on two devices: {wrong}"
    if func in (th.ops.aten._local_scalar_dense.default, th.ops.aten.nonzero.default, th.ops.aten.equal.default) and here:
        TRANSFERS["number"] += 1
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not here:
        return out
    out = tree_map(lambda x: OnDevice(x) if isinstance(x, th.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


TRANSFERS: Counter[str] = Counter()
"""Since the last ``clear()``: "to" and "from" the device, and each "number" that Python asked for."""


class PretendDevice(TorchDispatchMode):
    """Within it, ``device="meta"`` is that device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})
