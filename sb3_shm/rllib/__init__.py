"""Agents with memory in RLlib, for training on more than one machine (extra ``rllib``)."""

from sb3_shm.rllib.convert import from_shm_ppo, load_shm_ppo, to_shm_ppo
from sb3_shm.rllib.module import CONTEXT, SHMRLModule, module_spec

__all__ = ["CONTEXT", "SHMRLModule", "from_shm_ppo", "load_shm_ppo", "module_spec", "to_shm_ppo"]
