"""Other names in rl-zoo3's and Stable-Baselines3's places, for where they offer no hook."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exchanged(*ours: tuple[Any, str, Any]) -> Iterator[None]:
    """
    While this lasts, other values stand under some names; each use says why nothing less does.

    :param ours: module or class, name, and what shall stand there
    """
    theirs = [(place, name, getattr(place, name)) for place, name, _ in ours]
    try:
        for place, name, value in ours:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in theirs:
            setattr(place, name, value)
