"""POPGym's tasks: ``single`` makes popgym's own environments, ``batched`` and ``boards`` step N copies of five of them."""

from __future__ import annotations

from typing import Any

LEVELS = ("Easy", "Medium", "Hard")
_TASKS: dict[str, list[dict[str, Any]]] = {
    "Autoencode": [dict(n_decks=1), dict(n_decks=2), dict(n_decks=3)],
    "Battleship": [dict(board_size=8), dict(board_size=10), dict(board_size=12)],
    "Concentration": [dict(n_decks=1, match="colour"), dict(n_decks=2, match="colour"), dict(n_decks=1, match="rank")],
    "RepeatFirst": [dict(n_decks=1), dict(n_decks=8), dict(n_decks=16)],
    "RepeatPrevious": [dict(n_decks=1, k=4), dict(n_decks=2, k=32), dict(n_decks=3, k=64)],
}
_MODULES = {name: "boards" if name in ("Battleship", "Concentration") else "batched" for name in _TASKS}
POPGYM_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}{level}{suffix}-v0": (
        f"sb3_shm.envs.popgym.{_MODULES[name]}:{name}",
        {**arguments, "previous_action": bool(suffix)},
    )
    for name, levels in _TASKS.items()
    for level, arguments in zip(LEVELS, levels, strict=True)
    for suffix in ("", "PrevAction")
}
"""Id -> where the task's class is, and its arguments."""
