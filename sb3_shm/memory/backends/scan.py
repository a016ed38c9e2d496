"""The Hadamard recurrence as a parallel prefix over its steps: the paper's Remark 2, O(log T) deep."""

import torch as th

from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.linear_scan import linear_scan


def hadamard_recurrence(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Two steps (C, U) and (C', U') are one, (C ⊙ C', U ⊙ C' + U'), so all T of them are a tree; any dtype and device.

    C, U and M of every step exist at once, several times N·T·H² numbers. Products of C that leave the range of the dtype are
    held at its end. See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.

    :raises ValueError: a clip, with which M is no linear function of M before
    """
    if clip is not None:
        raise ValueError(f"backend 'scan' needs clip=None, got {clip}: choose another backend, or do without the bound")
    memory = linear_scan(inputs.calibration(), inputs.update(), state, episode_start)
    return (memory @ inputs.q.unsqueeze(-1)).squeeze(-1), memory[:, -1]
