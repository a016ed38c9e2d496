"""
POPGym's games on a board, N copies stepped together: Battleship and Concentration. See ``sb3_shm.envs.popgym.batched``.
"""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_shm.envs.batched import Array, Generators, check_whole
from sb3_shm.envs.drawing import FACE_DOWN, INK, SUITS, hues, tiles
from sb3_shm.envs.popgym.batched import DECK, ONE_HOT, POPGymTask, count_cards


class Battleship(POPGymTask):
    """
    Battleship of POPGym (ids ``Battleship<Level>-v0``): sink four hidden ships of 2, 3, 3 and 4 cells.

    :param n_envs: N, number of copies
    :param board_size: b, cells along each side of the board, 5 or more so that the ships always find room
    :param previous_action: see ``POPGymTask``
    :raises ValueError: ``board_size`` is no whole number or below 5

    * Observation: hit (``[0, 1]``) or not (``[1, 0]``). Where the shot went only the previous action tells.
    * Action: MultiDiscrete([b, b]), row and column of a shot.
    * Reward: 1/12 for a hit, -1/(b² - 12) for a miss or a cell that was shot at before.
    * Length: terminates when all 12 ship cells are hit, is truncated after b² steps: 64, 100, 144.
    * Success: not defined.
    * Source: POPGym 1.0.7.
    """

    ships = (2, 3, 3, 4)

    def __init__(self, n_envs: int = 1, board_size: int = 8, previous_action: bool = False) -> None:
        self.board_size = check_whole("board_size", board_size, max(self.ships) + 1)
        super().__init__(n_envs, 2, spaces.MultiDiscrete([board_size, board_size]), previous_action)
        self.n_cells = board_size**2
        self._placements = {size: self._masks(size) for size in set(self.ships)}
        self.board = np.zeros((n_envs, self.n_cells), dtype=bool)
        self.shot_at = np.zeros((n_envs, self.n_cells), dtype=bool)
        self._hits = np.zeros(n_envs, dtype=np.int64)
        self._hit = np.zeros(n_envs, dtype=np.int64)
        self.t = np.zeros(n_envs, dtype=np.int64)
        self._shot = np.full(n_envs, -1)

    def _masks(self, size: int) -> list[int]:
        """The cells of a ship as bits, for each row, column, axis and direction; 0 if it does not fit on the board."""
        masks = []
        for row, column, axis, backwards in np.ndindex(self.board_size, self.board_size, 2, 2):
            steps = [-j if backwards else j for j in range(size)]
            cells = [(row, column + j) if axis else (row + j, column) for j in steps]
            inside = all(0 <= place < self.board_size for cell in cells for place in cell)
            masks.append(sum(1 << (y * self.board_size + x) for y, x in cells) if inside else 0)
        return masks

    def _begin(self, indices: Array, generators: Generators) -> None:
        n = self.board_size
        n_bytes = (self.n_cells + 7) // 8
        boards = bytearray()
        for i in indices.tolist():
            integers = generators[i].integers
            occupied = 0
            for size in self.ships:
                masks, ship = self._placements[size], 0
                # popgym draws anew until a ship fits, twice two numbers at once; one by one they are the same and come sooner
                while not ship or ship & occupied:
                    cell = int(integers(n)) * n + int(integers(n))
                    ship = masks[cell * 4 + int(integers(2)) * 2 + int(integers(2))]
                occupied |= ship
            boards += occupied.to_bytes(n_bytes, "little")
        bits = np.frombuffer(boards, dtype=np.uint8).reshape(-1, n_bytes)
        self.board[indices] = np.unpackbits(bits, axis=1, count=self.n_cells, bitorder="little")
        self.shot_at[indices] = False
        self._hits[indices] = 0
        self._hit[indices] = 0
        self.t[indices] = 0
        self._shot[indices] = -1

    def _observe(self) -> Array:
        return ONE_HOT[2][self._hit]

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        cells = actions[:, 0] * self.board_size + actions[:, 1]
        hit = self.board[self._rows, cells] & ~self.shot_at[self._rows, cells]
        self.shot_at[self._rows, cells] = True
        self._hits += hit
        self._hit = hit.astype(np.int64)
        self.t += 1
        self._shot = cells
        n_wanted = sum(self.ships)
        rewards = np.where(hit, np.float32(1 / n_wanted), np.float32(-1 / (self.n_cells - n_wanted)))
        return rewards, self._hits == n_wanted, self.t >= self.n_cells

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: water blue, ships dark, hits red, misses white, the latest shot framed; (height, width, 3)
        """
        palette = np.array([(90, 150, 210), (255, 255, 255), INK, (215, 40, 40)], dtype=np.uint8)
        colours = palette[2 * self.board[index] + self.shot_at[index]]
        frames = np.arange(self.n_cells) == self._shot[index]
        return tiles(colours.reshape(self.board_size, -1, 3), frames.reshape(self.board_size, -1))


class Concentration(POPGymTask):
    """
    Concentration of POPGym (ids ``Concentration<Level>-v0``): turn up cards two by two; equal ones stay face up.

    :param n_envs: N, number of copies
    :param n_decks: decks of 52 cards each, n in all, 1 or more
    :param match: what makes cards equal, "colour" (2 kinds) or "rank" (13 kinds)
    :param previous_action: see ``POPGymTask``
    :raises ValueError: unknown ``match``, or ``n_decks`` is no whole number or below 1

    * Observation: for each card its kind, or face down as the last kind; one-hot, 156, 312 or 728 numbers. Two unequal cards
      are on show until the next card is turned up.
    * Action: Discrete(n), which card to turn up.
    * Reward: 2/n for a pair; -2/L (L the length) for two cards that are unequal or the same; -1/L or -2/L, as it is the first
      or the second of two, for a card that stays face up already, which also ends the attempt; 0 for a first card.
    * Length: truncated after L = 104, 208 or 104 steps; terminates when all cards are face up.
    * Success: not defined.
    * Source: POPGym 1.0.7.
    """

    def __init__(self, n_envs: int = 1, n_decks: int = 1, match: str = "colour", previous_action: bool = False) -> None:
        if match not in ("colour", "rank"):
            raise ValueError(f"match must be 'colour' or 'rank', got {match!r}")
        n = self.n_cards = count_cards(n_decks)
        cards = np.arange(n)
        self._deck = (cards % 2 if match == "colour" else cards % DECK // 4).astype(np.int8)
        self.n_kinds = 2 if match == "colour" else 13
        super().__init__(n_envs, n * (self.n_kinds + 1), spaces.Discrete(n), previous_action)
        self.length = math.ceil(2 * n - n / (2 * n - 1))
        self.kinds = np.zeros((n_envs, n), dtype=np.int8)
        self.face_up = np.zeros((n_envs, n), dtype=bool)
        # The observation without the previous action
        self._table = np.zeros((n_envs, n, self.n_kinds + 1), dtype=np.float32)
        # The first card of a running attempt, or -1, and the one or two cards turned up in the latest attempt, or -1
        self.first = np.full(n_envs, -1)
        self._tried = np.full((n_envs, 2), -1)
        self.t = np.zeros(n_envs, dtype=np.int64)

    def _begin(self, indices: Array, generators: Generators) -> None:
        decks = np.empty((len(indices), self.n_cards), dtype=np.int8)
        decks[:] = self._deck
        for i, deck in zip(indices.tolist(), decks, strict=True):
            generators[i].shuffle(deck)
        self.kinds[indices] = decks
        self.face_up[indices] = False
        self._table[indices] = np.eye(self.n_kinds + 1, dtype=np.float32)[-1]
        self.first[indices] = -1
        self._tried[indices] = -1
        self.t[indices] = 0

    def _observe(self) -> Array:
        return self._table.reshape(self.n_envs, -1).copy()

    def _act(self, actions: Array) -> tuple[Array, Array, Array]:
        rows, first = self._rows, self.first
        second = first >= 0
        # With a new attempt the cards of the one before turn over, unless they were a pair. Where none must, the card that is
        # turned up next stands in.
        turns_over = ~second[:, None] & (self._tried >= 0) & ~self.face_up[rows[:, None], self._tried]
        self._show(np.where(turns_over, self._tried, actions[:, None]), face_up=False)
        self._show(actions[:, None], face_up=True)

        stuck = self.face_up[rows, actions]
        kinds = self.kinds
        pair = second & ~stuck & (kinds[rows, first] == kinds[rows, actions]) & (first != actions)
        failure = -1 / self.length
        unequal = np.where(second, np.float32(2 * failure), np.where(stuck, np.float32(failure), np.float32(0)))
        rewards = np.where(pair, np.float32(1 / (self.n_cards // 2)), unequal)

        self.face_up[rows[pair], first[pair]] = True
        self.face_up[rows[pair], actions[pair]] = True
        self._tried = np.stack((np.where(second, first, actions), actions), axis=1)
        self.first = np.where(second | stuck, -1, actions)
        self.t += 1
        terminated = np.zeros(self.n_envs, dtype=bool)
        terminated[pair] = self.face_up[pair].all(axis=1)
        return rewards, terminated, self.t >= self.length

    def _show(self, cards: Array, face_up: bool) -> None:
        """Turn cards (N, m) over."""
        rows = self._rows[:, None]
        kinds = self.kinds[rows, cards]
        self._table[rows, cards, kinds] = face_up
        self._table[rows, cards, self.n_kinds] = not face_up

    def render(self, index: int) -> NDArray[np.uint8]:
        """
        :param index: which copy
        :return: the table, the cards of the latest attempt framed; (height, width, 3)
        """
        palette = SUITS[[0, 3]] if self.n_kinds == 2 else hues(self.n_kinds)
        palette = np.concatenate((palette, np.array([FACE_DOWN], dtype=np.uint8)))
        frames = np.isin(np.arange(self.n_cards), self._tried[index])
        return tiles(palette[self._table[index].argmax(axis=1)].reshape(-1, 13, 3), frames.reshape(-1, 13))
