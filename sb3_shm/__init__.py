"""Agents with memory for Stable-Baselines3."""

from pathlib import Path
from typing import Any

import sb3_shm.envs  # noqa: F401  # registers the environments
from sb3_shm.callbacks.diagnostics import MemoryDiagnosticsCallback
from sb3_shm.memory import SHM, Memory
from sb3_shm.policies.predictor import StatefulPredictor
from sb3_shm.shm_ppo import SHMPPO, RecurrentSHMPolicy
from sb3_shm.shm_sac import SHMSAC, SHMSACPolicy
from sb3_shm.shm_sac.masks import tell_last_mask
from sb3_shm.training.masks import WithMasks

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = [
    "SHM",
    "SHMPPO",
    "SHMSAC",
    "Memory",
    "MemoryDiagnosticsCallback",
    "RecurrentSHMPolicy",
    "SHMSACPolicy",
    "StatefulPredictor",
    "WithMasks",
    "__version__",
    "load_from_hub",
    "push_to_hub",
    "tell_last_mask",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: who only trains needs neither the time nor the packages of the Hub
    if name in ("load_from_hub", "push_to_hub"):
        from sb3_shm.sharing import hub

        return getattr(hub, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
