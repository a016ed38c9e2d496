"""One step of SHM in its default form for some float32 rows on the CPU, without gradients, as one operation: for acting."""

from typing import Any

import torch as th
from torch import nn

from sb3_shm.memory.backends.cpu import LANES
from sb3_shm.memory.backends.cpu_threads import run
from sb3_shm.memory.backends.cpu_vectors import can_fuse
from sb3_shm.memory.backends.inputs import BLOCK
from sb3_shm.memory.backends.plain import is_hooked
from sb3_shm.memory.linear import Linear

FEW = 64
"""Rows up to which one loop is faster than torch's products between several, which have an overhead each."""
_LAYERS = (
    ("norm", nn.LayerNorm, True),
    ("projection", Linear, False),
    ("read_norm", nn.LayerNorm, False),
    ("output", Linear, True),
)


def can_step(memory: Any, x: th.Tensor) -> bool:
    """
    :param memory: an SHM of the form that :func:`shm_step` knows
    :param x: inputs, (N, T, D)
    :return: whether :func:`shm_step` takes them, and what the memory's layers compute is in their weights: none was exchanged,
        pruned, adapted or hooked
    """
    # First, as a traced program must not depend on the number of rows
    if th.is_grad_enabled() or not can_fuse(x) or th.is_autocast_enabled("cpu"):
        return False
    if x.shape[1] != 1 or not 0 < len(x) <= FEW or memory.memory_size % LANES:
        return False
    for name, kind, has_bias in _LAYERS:
        layer = memory._modules[name]  # as attributes of a module take their time, at every step
        if type(layer) is not kind or is_hooked(layer) or (layer._parameters["bias"] is not None) != has_bias:
            return False
        if layer._parameters["weight"] is None:
            return False
    return True


def shm_step(
    memory: Any, x: th.Tensor, matrix: th.Tensor, before: th.Tensor, theta: th.Tensor, episode_start: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    What :meth:`SHM.forward <sb3_shm.memory.shm.SHM.forward>` makes of one step.

    :param memory: an SHM with ``keys="unit"``, ``calibration="hadamard"``, and everything that can be switched off
    :param x: inputs, (N, 1, D)
    :param matrix: M before the step, (N, H, H)
    :param before: the normalised input before it, (N, D)
    :param theta: the rows of θ that were drawn, (N, 1, H)
    :param episode_start: (N, 1) bool
    :return: outputs, (N, 1, output_size); M after the step; and the normalised input, (N, D)
    :raises ValueError: a state or weights that the kernel would read wrongly
    """
    from sb3_shm.memory.backends import cpu_step_kernels

    (n, _, d), h = x.shape, memory.memory_size
    if matrix.shape != (n, h, h) or before.shape != (n, d):
        raise ValueError(
            f"The state must hold a matrix of {(n, h, h)} and a previous input of {(n, d)}, got {tuple(matrix.shape)} and "
            f"{tuple(before.shape)}"
        )
    dtypes = matrix.dtype, before.dtype, memory.projection.weight.dtype
    if dtypes != (th.float32,) * 3:
        raise ValueError(f"x is of torch.float32, so must state and weights be, got {', '.join(map(str, dtypes))}")
    matrix = th.from_numpy(matrix.numpy().copy())  # clone() would wake torch's threads, which a rollout step must not
    y, normed = x.new_empty(n, len(memory.output.weight)), x.new_empty(n, d)
    blocks = matrix.view(n, h // BLOCK, BLOCK * h)
    rows = [part.contiguous() for part in (x.view(n, d), blocks, before, episode_start.view(n), theta.view(n, h))]
    scale, clip = float(memory.calibration_scale), float("inf") if memory.clip is None else float(memory.clip)
    norm, read_norm, output = memory.norm, memory.read_norm, memory.output
    weights = [norm.weight, norm.bias, norm.eps, memory.projection.weight, read_norm.weight, read_norm.eps]
    # As entries of C, of which each costs as much as some products
    work = n * (h * h + (10 * h + 2) * d // 8)
    run(cpu_step_kernels.shm_step(d, h), n, work, [*rows, scale, *weights, output.weight, output.bias, clip, y, normed])
    return y.unsqueeze(1), matrix, normed
