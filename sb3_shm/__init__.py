"""Agents with memory for Stable-Baselines3."""

from pathlib import Path

import sb3_shm.envs  # noqa: F401  # registers the environments
from sb3_shm.common.predictor import StatefulPredictor
from sb3_shm.memory import SHM, Memory
from sb3_shm.shm_ppo import SHMPPO, RecurrentSHMPolicy
from sb3_shm.shm_sac import SHMSAC, SHMSACPolicy

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = ["SHM", "SHMPPO", "SHMSAC", "Memory", "RecurrentSHMPolicy", "SHMSACPolicy", "StatefulPredictor", "__version__"]
