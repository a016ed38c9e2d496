"""SHM and what becomes of it when one of its parts is another one: the rows of the decision grids."""

from __future__ import annotations

from typing import Any

SHM_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "shm": ("shm", {}),
    "shm, keys sum": ("shm", dict(keys="sum")),
    "shm, keys softmax": ("shm", dict(keys="softmax")),
    "shm, no norm": ("shm", dict(read_gain=None)),
    "shm, gain 0.1": ("shm", dict(read_gain=0.1)),
    "shm, no previous input": ("shm", dict(previous_input=False)),
    "shm, C starts as published": ("shm", dict(calibration_scale=1.0)),
    "shm, θ fixed": ("shm", dict(theta="fixed")),
    "shm, θ neural": ("shm", dict(theta="neural")),
    "shm, C = 1": ("shm", dict(calibration="none")),
}
