"""The paper's experiments and its open questions as commands: ``python -m experiments <name>``."""

from experiments.base import Experiment, Run

__all__ = ["Experiment", "Run"]
