"""
Visual Match and Key-to-Door by their rules, one cell at a time and in characters, as pycolab plays them: slow, and with no
code of what it is compared with.
"""

from typing import Any

import numpy as np

COLOURS = {
    "+": (898, 584, 430),
    "#": (100, 100, 100),
    " ": (800, 800, 800),
    "k": (627, 321, 176),
    "d": (529, 808, 922),
    "a": (550, 700, 0),
    "i": (1000, 1000, 1000),
    "R": (1000, 0, 0),
    "G": (0, 1000, 0),
    "B": (0, 0, 1000),
}
APPLES = """
###########
#         #
#         #
#         #
#         #
#         #
###########"""
RING = """
...........
....###....
....# #....
....###....
...........
...........
..........."""
MATCH = """
###########
#         #
#         #
#         #
####   ####
...#   #...
...#####..."""
KEY = """
..#######..
..#     #..
..#     #..
..##   ##..
..#     #..
..#     #..
..#######.."""
DOOR = """
...........
...## ##...
...#   #...
...#   #...
...#   #...
...#####...
..........."""
STEPS = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}


def place(number: int) -> tuple[int, int]:
    """:return: row and column of a task's cell, whose boards have a rim of two cells"""
    return int(number) // 15 - 2, int(number) % 15 - 2


class Game:
    """:param task: one copy, just reset, whose random choices are taken over"""

    def __init__(self, task: Any) -> None:
        self.phases, self.reward = task.phases, task.reward
        self.visual = type(task).__name__ == "VisualMatch"
        self.apples = {place(number) for number in task._apples[0]}
        self.won = self.has_key = False
        self.phase, self.frame = 0, 0
        self.objects: dict[tuple[int, int], str] = {}
        self.last_pickup: dict[tuple[int, int], int] = {}
        self.player = place(task.positions[0])
        if self.visual:
            self.target = "RGB"[task.colours[0]]
            self.tiles = ["RGB"[colour] for colour in task.orders[0]]
            self.objects = {place(task._sign_cells[0]): self.target}
        else:
            self.objects = {place(task.key_cells[0]): "k"}
        self.load(RING if self.visual else KEY)
        # What a player cannot walk on
        self.solid = "#id" + (self.target if self.visual else "")

    def load(self, room: str) -> None:
        self.backdrop = [row.replace(".", " ") for row in room.strip("\n").split("\n")]
        assert len(self.backdrop) == 7 and all(len(row) == 11 for row in self.backdrop)

    def enter(self) -> None:
        self.phase, self.frame = self.phase + 1, 0
        if self.phase == 1:
            self.load(APPLES)
            self.player, self.solid = (5, 5), "#id"
            self.objects = dict.fromkeys(self.apples, "a")
        elif self.visual:
            self.load(MATCH)
            self.player = (5, 5)
            self.objects = dict(zip([(1, 2), (1, 5), (1, 8)], self.tiles, strict=True))
        else:
            self.load(DOOR)
            self.player = (3, 5)
            self.objects = {(1, 5): "d"}
            if self.has_key:
                self.solid = "#i"

    def at(self, row: int, column: int, with_player: bool) -> str:
        if not (0 <= row < 7 and 0 <= column < 11):
            return " "
        thing = self.objects.get((row, column))
        if with_player and (row, column) == self.player:
            # Doors and colours are in front of the player
            return thing if thing is not None and thing in "dRGB" else "+"
        return thing or self.backdrop[row][column]

    def step(self, action: int) -> tuple[float, bool]:
        self.frame += 1
        self.objects = {where: thing for where, thing in self.objects.items() if thing != "i"}
        row, column = (a + b for a, b in zip(self.player, STEPS[action], strict=True))
        if 0 <= row < 7 and 0 <= column < 11 and self.at(row, column, with_player=False) not in self.solid:
            self.player = (row, column)
        here, reward = self.objects.get(self.player), 0.0
        if here == "a":
            reward, self.last_pickup[self.player] = 1.0, self.frame
            del self.objects[self.player]
        elif here == "k":
            self.has_key = True
            self.objects = {(0, 5): "i"}
        elif here == "d" and self.has_key:
            reward, self.has_key = self.reward, False
        elif here is not None and here in "RGB":
            reward = self.reward if here == self.target else 0.0
            self.objects = {}
        if self.phase == 1:
            for where, frame in self.last_pickup.items():
                if self.frame > frame + 20:
                    self.objects[where] = "a"
        if self.phase == 2 and reward:
            self.won = True
        if self.frame == self.phases[self.phase]:
            if self.phase == 2:
                return reward, True
            self.enter()
        return reward, False

    def picture(self) -> np.ndarray:
        """:return: (3, 5, 5) uint8"""
        row, column = self.player
        picture = np.zeros((3, 5, 5), dtype=np.uint8)
        for i in range(5):
            for j in range(5):
                colour = COLOURS[self.at(row - 2 + i, column - 2 + j, with_player=True)]
                for channel in range(3):
                    picture[channel, i, j] = int(colour[channel] * 255 / 1000)
        return picture
