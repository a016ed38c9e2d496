"""Observations with further numbers beside them: what the wrappers of this folder are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array


class Flattener:
    """Rows of numbers from values of a space: one-hot for discrete ones, the numbers themselves for the rest."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._offsets: NDArray[np.int64] | None = None
        if isinstance(space, spaces.Box):
            self.low, self.high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
            begins = np.cumsum(sizes) - sizes
            self._offsets = (begins - np.reshape(space.start, -1)).astype(np.int64)
            self.low, self.high = np.zeros(sizes.sum(), dtype=np.float32), np.ones(sizes.sum(), dtype=np.float32)
        elif isinstance(space, spaces.MultiBinary):
            size = int(np.prod(space.shape))
            self.low, self.high = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
        else:
            raise ValueError(f"The space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")
        self.size = len(self.low)

    def __call__(self, values: Array) -> Array:
        """Values (N, ...) to rows (N, size) float32."""
        rows = np.asarray(values).reshape(len(values), -1)
        if self._offsets is None:
            return rows.astype(np.float32)
        one_hot = np.zeros((len(rows), self.size), dtype=np.float32)
        one_hot[np.arange(len(rows))[:, None], rows + self._offsets] = 1
        return one_hot


class Joiner:
    """Joins observations with named numbers, which come as one row for each observation."""

    def __init__(self, space: spaces.Space[Any], extras: dict[str, tuple[Array, Array]]) -> None:
        """
        :param space: of the observations
        :param extras: lower and upper bounds of the numbers under each name, (size,) each
        :raises ValueError: there is no way to add numbers to such observations
        """
        self._flatten: Flattener | None = None
        self._parts: dict[str, slice] = {}
        end = 0
        for name, (low, _) in extras.items():
            self._parts[name] = slice(end, end + len(low))
            end += len(low)
        boxes = {name: spaces.Box(low, high, dtype=np.float32) for name, (low, high) in extras.items()}
        self.space: spaces.Space[Any]
        if isinstance(space, spaces.Dict):
            if taken := sorted(boxes.keys() & space.spaces.keys()):
                raise ValueError(f"The observations already have the keys {taken}")
            self.space = spaces.Dict({**space.spaces, **boxes})
        elif isinstance(space, spaces.Box) and len(space.shape) > 1:
            self.space = spaces.Dict({"observation": space, **boxes})
        elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            self._flatten = Flattener(space)
            low = np.concatenate([self._flatten.low, *(box.low for box in boxes.values())])
            high = np.concatenate([self._flatten.high, *(box.high for box in boxes.values())])
            self.space = spaces.Box(low, high, dtype=np.float32)
        else:
            raise ValueError(
                f"The observations must be Box, Discrete, MultiDiscrete, MultiBinary or Dict, got {space}: "
                "gymnasium.wrappers.FlattenObservation may help"
            )

    def join(self, observations: Any, rows: Array) -> Any:
        """Observations (N, ...), or a dictionary of them, with rows (N, size)."""
        if self._flatten is not None:
            return np.concatenate([self._flatten(observations), rows], axis=1)
        named = observations if isinstance(observations, dict) else {"observation": observations}
        # Copies, for the rows may change
        return {**named, **{name: rows[..., part].copy() for name, part in self._parts.items()}}

    def join_one(self, observation: Any, row: Array) -> Any:
        """One observation with one row (size,)."""
        if self._flatten is not None:
            return self.join(np.asarray(observation)[None], row[None])[0]
        return self.join(observation, row)
