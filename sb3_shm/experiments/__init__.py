"""The paper's experiments and its open questions as commands: ``python -m sb3_shm.experiments <name>``."""

from sb3_shm.experiments.base import Experiment, Run

__all__ = ["Experiment", "Run"]
