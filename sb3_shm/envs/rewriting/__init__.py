"""
Tasks in which a memory must forget and write anew, or hold on for very long:

* ``EndlessTMaze-v0``, ``EndlessTMazeUniform-v0``, ``EndlessTMaze50-v0``, ``EndlessTMazeUniform50-v0``: each corridor has its
  own cue, which makes all earlier ones worthless;
* ``ColorCubesEasy-v0``, ``ColorCubesMedium-v0``, ``ColorCubesHard-v0``: cubes move one at a time, so that a part of what is
  known becomes wrong while the rest stays true;
* ``RepeatFirst1000-v0``, ``RepeatFirst10000-v0``: nothing to rewrite, one symbol to keep for 1,000 or 10,000 steps.

The first two follow the idea of "Memory Retention Is Not Enough to Master Memory Tasks in Reinforcement Learning"
(Shchendrigin et al., AAMAS 2026, arXiv 2601.15086), which finds SHM among the memories that rewrite badly. Its text was not at
hand; what each class takes from public material, and what is of this package's own making, is under "Source".
"""

from __future__ import annotations

from typing import Any

_T_MAZE = "sb3_shm.envs.rewriting.t_maze:EndlessTMaze"
_COLOR_CUBES = "sb3_shm.envs.rewriting.color_cubes:ColorCubes"
_REPEAT_FIRST = "sb3_shm.envs.rewriting.repeat_first:LongRepeatFirst"
REWRITING_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "EndlessTMaze-v0": (_T_MAZE, dict(n_corridors=5, max_length=10)),
    "EndlessTMazeUniform-v0": (_T_MAZE, dict(n_corridors=5, max_length=10, uniform=True)),
    "EndlessTMaze50-v0": (_T_MAZE, dict(n_corridors=20, max_length=50)),
    "EndlessTMazeUniform50-v0": (_T_MAZE, dict(n_corridors=20, max_length=50, uniform=True)),
    "ColorCubesEasy-v0": (_COLOR_CUBES, dict(n_cubes=2, board_size=2, n_events=100)),
    "ColorCubesMedium-v0": (_COLOR_CUBES, dict(n_cubes=4, board_size=3, n_events=200)),
    "ColorCubesHard-v0": (_COLOR_CUBES, dict(n_cubes=8, board_size=4, n_events=400)),
    "RepeatFirst1000-v0": (_REPEAT_FIRST, dict(n_steps=1_000)),
    "RepeatFirst10000-v0": (_REPEAT_FIRST, dict(n_steps=10_000)),
}
"""Id -> where the task's class is, and its arguments."""
