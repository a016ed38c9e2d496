"""Recurrent SAC, whole: algorithm, policies, networks, tape and sampling."""

from sb3_shm.shm_sac.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy, SHMSACPolicy
from sb3_shm.shm_sac.shm_sac import SHMSAC

__all__ = ["SHMSAC", "CnnSHMPolicy", "MlpSHMPolicy", "MultiInputSHMPolicy", "SHMSACPolicy"]
