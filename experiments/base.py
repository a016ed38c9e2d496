"""What an experiment is: runs, which know nothing of each other, and a report on their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pandas import DataFrame

Rows: TypeAlias = list[dict[str, Any]]
"""Rows of a table: column -> number, string, bool or None."""
BUDGETS = ("smoke", "small", "paper")
"""Some seconds, to see whether it runs; about an hour on 2 cores; what the paper used."""


@dataclass(frozen=True)
class Run:
    """
    One run of an experiment. It is a process of its own with one torch thread.

    :param id: name within the experiment; a file name: letters, digits and ``._-``
    :param function: what computes it, "package.module:function"; gets ``kwargs`` and returns rows
    :param kwargs: the function's arguments, values of JSON, the seed among them
    """

    id: str
    function: str
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """
    An experiment: its runs and what is reported of them.

    :param name: its name in the command line
    :param summary: what it answers, one line
    :param runs: (budget, number of seeds) -> runs; ``budget`` is one of :data:`BUDGETS`
    :param report: (rows of the finished runs, folder) -> Markdown. Each row has a column "run", the id of its run. Writes its
        figures into the folder, as PNG and SVG
    """

    name: str
    summary: str
    runs: Callable[[str, int], list[Run]]
    report: Callable[[DataFrame, Path], str]
