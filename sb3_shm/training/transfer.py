"""What keeps a GPU busy: few transfers, each of which takes as long as several kernels, and no waiting for single numbers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th

from sb3_shm.memory.backends.cpu_threads import alone


def to_device(device: th.device, *data: Any) -> tuple[Any, ...]:
    """
    Bring all data to a device, in one transfer.

    :param device: where to; tensors on the CPU share the arrays' memory
    :param data: arrays, or dicts of arrays, of any types
    :return: the same as tensors
    """
    arrays = [array for part in data for array in (part.values() if isinstance(part, dict) else [part])]
    tensors: Iterator[th.Tensor]
    if device.type == "cpu":
        tensors = map(th.as_tensor, arrays)
    else:
        packed, unpack = pack(arrays)
        tensors = iter(unpack(packed.to(device)))
    return tuple({key: next(tensors) for key in part} if isinstance(part, dict) else next(tensors) for part in data)


def pack(arrays: list[np.ndarray]) -> tuple[th.Tensor, Callable[[th.Tensor], list[th.Tensor]]]:
    """
    :param arrays: arrays of any types
    :return: their bytes one after the other, (bytes,) uint8, and a function from these bytes, wherever they are, to the arrays
        as tensors, views of them
    """
    # The largest numbers first, so that each array begins at a multiple of the size of its numbers
    order = sorted(range(len(arrays)), key=lambda i: -arrays[i].itemsize)
    packed = np.concatenate([np.ascontiguousarray(arrays[i]).reshape(-1).view(np.uint8) for i in order])

    def unpack(packed: th.Tensor) -> list[th.Tensor]:
        tensors = [packed] * len(arrays)
        for i, part in zip(order, packed.split([arrays[i].nbytes for i in order]), strict=True):
            dtype = th.from_numpy(np.empty(0, arrays[i].dtype)).dtype
            tensors[i] = part.view(dtype).view(arrays[i].shape)
        return tensors

    return th.from_numpy(packed), unpack


def clip_gradient(parameters: Iterable[th.Tensor], max_norm: float | None) -> th.Tensor:
    """
    :param parameters: have the gradient, whose norm this bounds
    :param max_norm: greatest norm, None for no bound
    :return: the norm before, a scalar on the parameters' device
    """
    if max_norm is not None:
        return th.nn.utils.clip_grad_norm_(parameters, max_norm)
    return th.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


class Guard:
    """
    Lets optimizers step until a loss or a gradient is not finite, and never after it, without waiting for the device to say
    which: it is the device that skips the update. (What the CPU computes is there already, and optimizers that cannot skip,
    those that are not ``fused``, are waited for.)

    :param device: device of the losses
    """

    def __init__(self, device: th.device) -> None:
        self.has_stopped = th.zeros((), device=device)
        """1 from the first loss or gradient on that is not finite, else 0; a float as optimizers want it."""

    def step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, gradient_norm: th.Tensor) -> None:
        """
        :param optimizer: its parameters have the loss's gradient
        :param loss: a scalar
        :param gradient_norm: norm of the whole gradient, a scalar
        """
        # A finite loss can have an infinite gradient: derivatives through time are products of as many factors as steps
        is_finite = (loss.detach() + gradient_norm).isfinite()
        self.has_stopped = th.maximum(self.has_stopped, (~is_finite).float())
        # A loaded optimizer may not be fused, though it was made so
        is_fused = all(group.get("fused") for group in optimizer.param_groups)
        if is_fused and not loss.is_cpu:  # as torch.amp.GradScaler skips
            optimizer.found_inf = self.has_stopped  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not self.has_stopped:
            # Each parameter, however small, is shared between all threads, which changes no number if it is fused
            with alone() if is_fused else nullcontext():
                optimizer.step()
