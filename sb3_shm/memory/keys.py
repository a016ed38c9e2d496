"""Keys and queries of :class:`~sb3_shm.memory.shm.SHM`."""

import torch as th
from torch.nn import functional as F

KEYS = ("unit", "softmax", "sum")


def make_keys(z: th.Tensor, kind: str) -> th.Tensor:
    """
    :param z: linear functions of the input, (..., H)
    :param kind: "unit", silu(z) at Euclidean length 1; "softmax"; or "sum", relu(z) / (1e-5 + its sum)
    :return: keys or queries, (..., H)
    """
    if kind == "unit":
        z = F.silu(z)
        return z * (z.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()
    if kind == "softmax":
        return F.softmax(z, dim=-1)
    z = F.relu(z)
    return z / (1e-5 + z.sum(dim=-1, keepdim=True))
