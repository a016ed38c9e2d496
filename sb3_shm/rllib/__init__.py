"""Agents with memory in RLlib, for training on more than one machine (extra ``rllib``)."""

from sb3_shm.rllib.module import CONTEXT, SHMRLModule, module_spec

__all__ = ["CONTEXT", "SHMRLModule", "module_spec"]
