"""
Five tasks of POPGym, N copies stepped together: Autoencode, Battleship, Concentration, RepeatFirst and RepeatPrevious, at the
levels Easy, Medium and Hard, as released and with the previous action in the observation (see ``sb3_shm.envs.popgym.single``).

``make_batched_env("RepeatPreviousEasy-v0", 256)`` makes them, without popgym. ``gym.make`` makes popgym's own environments
under the same ids, and both agree: the same seed gives the same episodes, observation by observation, also those that follow
without a new seed, because each copy asks its generator for the same numbers in the same order as popgym does (a test steps
both). Rewards are popgym's, rounded to float32. Battleship and Concentration are in
``sb3_shm.envs.popgym.boards``.

Source: POPGym 1.0.7 (Morad et al., ICLR 2023; MIT licence), whose rules were written again here.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, BatchedTask, Generators, check_whole
from sb3_shm.envs.drawing import FACE_DOWN, SUITS, tiles

DECK = 52
ONE_HOT = {n: np.eye(n, dtype=np.float32) for n in (2, 4)}


def count_cards(n_decks: int) -> int:
    """
    :param n_decks: decks of 52 cards
    :return: cards in all of them
    :raises ValueError: ``n_decks`` is no whole number or below 1
    """
    return DECK * check_whole("n_decks", n_decks)


class POPGymTask(BatchedTask):
    """
    What the tasks have in common: flat observations, followed by the previous action and a flag for the first step if wanted.

    :param n_envs: N, number of copies
    :param size: numbers in the observation, without the previous action
    :param action_space: Discrete or MultiDiscrete
    :param previous_action: append the previous action (one-hot, 0 at first) and ``[1, 0]``, ``[0, 1]`` at the first step
    """

    def __init__(
        self, n_envs: int, size: int, action_space: spaces.Discrete | spaces.MultiDiscrete, previous_action: bool
    ) -> None:
        super().__init__(n_envs)
        self.action_space = action_space
        self.previous_action = previous_action
        choices = [int(action_space.n)] if isinstance(action_space, spaces.Discrete) else action_space.nvec.tolist()
        total = size + sum(choices) + 2 if previous_action else size
        self.observation_space = spaces.Box(0.0, 1.0, (total,), dtype=np.float32)
        self._rows = np.arange(n_envs)
        # Places of the ones behind the observation itself: the parts of the action, then the flag
        self._offsets = np.cumsum([0, *choices])
        self._tail = np.zeros((n_envs, len(choices) + 1), dtype=np.int64)

    @abstractmethod
    def _begin(self, indices: Array, generators: Generators) -> None:
        """As ``reset``."""

    @abstractmethod
    def _observe(self) -> Array:
        """As ``observe``, without the previous action."""

    @abstractmethod
    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        """As ``step``."""

    def reset(self, indices: Array, generators: Generators) -> None:
        """
        :param indices: which copies begin anew, (m,)
        :param generators: of all N copies
        """
        self._begin(indices, generators)
        self._tail[indices] = self._offsets
        self._tail[indices, -1] += 1

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """
        :param actions: (N,) or (N, parts)
        :return: rewards (N,) float32, terminated (N,), truncated (N,)
        """
        outcome = self._act(actions)
        if self.previous_action:
            self._tail[:, :-1] = self._offsets[:-1] + actions.reshape(self.n_envs, -1)
            self._tail[:, -1] = self._offsets[-1]
        return outcome

    def observe(self) -> Array:
        """
        :return: (N, size) float32
        """
        observations = self._observe()
        if not self.previous_action:
            return observations
        size = observations.shape[1]
        full = np.zeros((self.n_envs, self.observation_space.shape[0]), dtype=np.float32)  # type: ignore[index]
        full[:, :size] = observations
        full[self._rows[:, None], size + self._tail] = 1.0
        return full


class _Suits(POPGymTask):
    """Tasks with one card after the other, of which only the suit counts (0 to 3: spades, diamonds, clubs, hearts)."""

    def __init__(self, n_envs: int, n_cards: int, size: int, previous_action: bool) -> None:
        super().__init__(n_envs, size, spaces.Discrete(4), previous_action)
        self.n_cards = n_cards
        # In the order in which they are dealt
        self.suits = np.zeros((n_envs, n_cards), dtype=np.int8)
        # Steps done
        self.t = np.zeros(n_envs, dtype=np.int64)

    def _begin(self, indices: Array, generators: Generators) -> None:
        # popgym shuffles the numbers of the cards, card j has the suit j % 4: the swaps do not depend on what is swapped
        decks = np.empty((len(indices), self.n_cards), dtype=np.int8)
        decks[:] = np.arange(self.n_cards) % 4
        for i, deck in zip(indices.tolist(), decks, strict=True):
            generators[i].shuffle(deck)
        # ... and deals from the end of the deck
        self.suits[indices] = decks[:, ::-1]
        self.t[indices] = 0

    def _observe(self) -> Array:
        return ONE_HOT[4][self.suits[self._rows, self.t]]

    def _draw(self, index: int, n_seen: int, wanted: int, named: int = 0) -> NDArray[np.uint8]:
        """Cards in dealing order: those seen in colour, the wanted one framed, the last ``named`` ones turned over again."""
        colours = np.full((self.n_cards, 3), FACE_DOWN, dtype=np.uint8)
        visible = slice(0, n_seen - named)
        colours[visible] = SUITS[self.suits[index, visible]]
        frames = np.arange(self.n_cards) == wanted
        return tiles(colours.reshape(-1, 13, 3), frames.reshape(-1, 13))


class Autoencode(_Suits):
    """
    Autoencode of POPGym (ids ``Autoencode<Level>-v0``): watch a deck, card by card, then name the suits in reverse order.

    :param n_envs: N, number of copies
    :param n_decks: decks of n = 52 cards each, 1 or more
    :param previous_action: see ``POPGymTask``

    * Observation: mode (``[0, 1]`` while watching, ``[1, 0]`` with the last card and from then on) and the card's suit,
      one-hot; 6 numbers. While playing the suit is always spades.
    * Action: Discrete(4), a suit; without effect while watching.
    * Reward: 1/n for the right suit, -1/n for a wrong one, 0 while watching.
    * Length: 2n - 1 steps: 103, 207, 311.
    * Success: not defined.
    * Source: POPGym 1.0.7.
    """

    def __init__(self, n_envs: int = 1, n_decks: int = 1, previous_action: bool = False) -> None:
        super().__init__(n_envs, count_cards(n_decks), 6, previous_action)

    def _observe(self) -> Array:
        last = self.n_cards - 1
        suits = np.where(self.t <= last, self.suits[self._rows, np.minimum(self.t, last)], 0)
        return np.concatenate((ONE_HOT[2][(self.t < last).astype(np.int64)], ONE_HOT[4][suits]), axis=1)

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        last, scale = self.n_cards - 1, np.float32(1 / self.n_cards)
        playing = self.t >= last
        wanted = self.suits[self._rows, np.where(playing, 2 * last - self.t, 0)]
        rewards = np.where(playing, np.where(actions == wanted, scale, -scale), np.float32(0))
        self.t += 1
        return rewards, self.t > 2 * last, np.zeros(self.n_envs, dtype=bool)

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the cards seen and not yet named, the one on show or to be named framed; (height, width, 3)
        """
        t, last = int(self.t[index]), self.n_cards - 1
        return self._draw(index, min(t, last) + 1, min(t, 2 * last - t), max(t - last, 0))


class RepeatFirst(_Suits):
    """
    RepeatFirst of POPGym (ids ``RepeatFirst<Level>-v0``): name the suit of the first card at each step.

    :param n_envs: N, number of copies
    :param n_decks: decks of 52 cards each, n in all, 1 or more
    :param previous_action: see ``POPGymTask``

    * Observation: the suit of the latest card, one-hot, 4 numbers.
    * Action: Discrete(4), a suit.
    * Reward: 1/(n - 1) for the right suit, -1/(n - 1) for a wrong one.
    * Length: n - 1 steps: 51, 415, 831.
    * Success: not defined.
    * Source: POPGym 1.0.7.
    """

    def __init__(self, n_envs: int = 1, n_decks: int = 1, previous_action: bool = False) -> None:
        super().__init__(n_envs, count_cards(n_decks), 4, previous_action)

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        scale = np.float32(1 / (self.n_cards - 1))
        rewards = np.where(actions == self.suits[:, 0], scale, -scale)
        self.t += 1
        return rewards, self.t == self.n_cards - 1, np.zeros(self.n_envs, dtype=bool)

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the first card, framed, and the latest one; (height, width, 3)
        """
        colours = SUITS[self.suits[index, [0, self.t[index]]]]
        return tiles(colours[None], [[True, False]], size=64)


class RepeatPrevious(_Suits):
    """
    RepeatPrevious of POPGym (ids ``RepeatPrevious<Level>-v0``): name the suit that was on show k - 1 observations ago.

    :param n_envs: N, number of copies
    :param n_decks: decks of 52 cards each, n in all, 1 or more
    :param k: how many cards are to be remembered, the latest included, from 1 to n - 1
    :param previous_action: see ``POPGymTask``
    :raises ValueError: ``k`` out of its range

    * Observation: the suit of the latest card, one-hot, 4 numbers.
    * Action: Discrete(4), a suit.
    * Reward: 1/(n - k) for the right suit, -1/(n - k) for a wrong one, 0 as long as fewer than k cards were on show.
    * Length: n - 1 steps: 51, 103, 155.
    * Success: not defined.
    * Source: POPGym 1.0.7.
    """

    def __init__(self, n_envs: int = 1, n_decks: int = 1, k: int = 4, previous_action: bool = False) -> None:
        super().__init__(n_envs, count_cards(n_decks), 4, previous_action)
        self.k = check_whole("k", k, 1, self.n_cards - 1)

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        scale = np.float32(1 / (self.n_cards - self.k))
        asked = self.t + 1 - self.k
        right = actions == self.suits[self._rows, np.maximum(asked, 0)]
        rewards = np.where(asked >= 0, np.where(right, scale, -scale), np.float32(0))
        self.t += 1
        return rewards, self.t == self.n_cards - 1, np.zeros(self.n_envs, dtype=bool)

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the cards so far, the one to be named framed; (height, width, 3)
        """
        t = int(self.t[index])
        return self._draw(index, t + 1, t + 1 - self.k)
