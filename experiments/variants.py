"""SHM and what becomes of it when one of its parts is another one: the rows of the decision grids."""

from __future__ import annotations

from typing import Any

SHM_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "shm": ("shm", {}),
    "shm, keys sum": ("shm", dict(keys="sum")),
    "shm, queries start apart": ("shm", dict(tied_start=False)),
    "shm, no norm": ("shm", dict(read_gain=None)),
    "shm, no previous input": ("shm", dict(previous_input=False)),
    "shm, s = 1": ("shm", dict(calibration_scale=1.0)),
    "shm, θ fixed": ("shm", dict(theta="fixed")),
    "shm, θ neural": ("shm", dict(theta="neural")),
    "shm, C = 1": ("shm", dict(calibration="none")),
}
