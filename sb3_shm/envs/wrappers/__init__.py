"""
What an agent with memory may want to see beside the observation: its previous action, its previous reward and whether an
episode begins (:class:`MemoryInputs`, and :class:`VecMemoryInputs` for vector environments); and several rollouts of one task
as one episode (:class:`MetaEpisode`). And what it may not see (:class:`HideEntries`, :class:`VecHideEntries`).

The others add numbers to the observation. If it is a vector, or discrete and so becomes a one-hot vector, they follow it in
the same float32 vector. An image stays as it is, under the key "observation" of a dictionary, and they stand beside it under
their own keys; if the observation is a dictionary already, its keys are kept.
"""

from sb3_shm.envs.wrappers.hide_entries import HideEntries, VecHideEntries
from sb3_shm.envs.wrappers.memory_inputs import MemoryInputs, VecMemoryInputs
from sb3_shm.envs.wrappers.meta_episode import MetaEpisode

__all__ = ["HideEntries", "MemoryInputs", "MetaEpisode", "VecHideEntries", "VecMemoryInputs"]
