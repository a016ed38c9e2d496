"""Recurrent PPO, whole: algorithm, policies and rollout buffer."""

from sb3_shm.shm_ppo.policies import CnnSHMPolicy, MlpSHMPolicy, MultiInputSHMPolicy, RecurrentSHMPolicy
from sb3_shm.shm_ppo.shm_ppo import SHMPPO

__all__ = ["SHMPPO", "CnnSHMPolicy", "MlpSHMPolicy", "MultiInputSHMPolicy", "RecurrentSHMPolicy"]
