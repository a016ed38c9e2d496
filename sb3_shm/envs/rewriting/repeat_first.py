"""Repeat First over many steps: nothing to rewrite, one symbol to keep. See :mod:`sb3_shm.envs.rewriting`."""

from __future__ import annotations

import numpy as np

from sb3_shm.envs.batched import Array, Generators, check_whole
from sb3_shm.envs.popgym.batched import RepeatFirst


class LongRepeatFirst(RepeatFirst):
    """
    Repeat First over many steps (ids ``RepeatFirst1000-v0``, ``RepeatFirst10000-v0``): name the first symbol at each step.

    :param n_envs: N, number of copies
    :param n_steps: n, length of an episode, 1 or more
    :raises ValueError: ``n_steps`` is no whole number or below 1

    * Observation: one of four symbols, one-hot, drawn anew at each step.
    * Action: Discrete(4), a symbol.
    * Reward: 1/n if it is the first symbol of the episode, otherwise -1/n; so returns lie between -1 and 1 and can be compared
      with POPGym's RepeatFirst. A random policy gets -0.5.
    * Length: terminates after n steps, 1,000 or 10,000.
    * Success: every answer so far was right.
    * Source: after RepeatFirst of POPGym 1.0.7, whose symbols are the suits of shuffled decks and whose longest episode has
      831 steps. Symbols are independent here, because no number of decks makes 1,000 steps.
    """

    def __init__(self, n_envs: int = 1, n_steps: int = 1_000) -> None:
        n_cards = check_whole("n_steps", n_steps) + 1
        # Not decks of 52 cards, as RepeatFirst has them
        super(RepeatFirst, self).__init__(n_envs, n_cards=n_cards, size=4, previous_action=False)
        self._mistakes = np.zeros(n_envs, dtype=np.int64)

    def _begin(self, indices: Array, generators: Generators) -> None:
        for i in indices.tolist():
            self.suits[i] = generators[i].integers(4, size=self.n_cards, dtype=np.int8)
        self.t[indices] = 0
        self._mistakes[indices] = 0

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        rewards, terminated, truncated = super()._act(actions)
        self._mistakes += rewards < 0
        return rewards, terminated, truncated

    def success(self) -> Array:
        """
        :return: no mistake so far, (N,)
        """
        faultless: Array = self._mistakes == 0
        return faultless
