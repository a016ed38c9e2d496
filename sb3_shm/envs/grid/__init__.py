"""
What Visual Match and Key-to-Door share: a player that walks through three rooms, one after the other, and sees 5×5 cells
around itself. In the second room it eats apples, which is a distraction: what counts is what it saw or did in the first room
when it comes to the third.

The tasks are those of Hung et al., *Optimizing agent behavior over long time scales by transporting value* (Nature
Communications 2019), whose code runs on pycolab; of "Memory-RL", Ni et al., *When do transformers shine in RL?* (NeurIPS
2023); and of Le et al., *Stable Hadamard Memory* (ICLR 2025), whose constants are the default here.
"""

from __future__ import annotations

from typing import Any

DISTRACTOR_STEPS = (60, 100, 250, 500, 1000)


def _grid_tasks() -> dict[str, tuple[str, dict[str, Any]]]:
    tasks: dict[str, tuple[str, dict[str, Any]]] = {}
    # Steps in the first and in the third room, reward: as in SHM's code, then as in Memory-RL's
    variants = {
        ("VisualMatch", "visual_match", ""): (15, 10, 10.0),
        ("KeyToDoor", "key_to_door", ""): (10, 3, 10.0),
        ("VisualMatch", "visual_match", "MemoryRL"): (15, 15, 5.0),
        ("KeyToDoor", "key_to_door", "MemoryRL"): (15, 10, 5.0),
    }
    for (task, module, variant), (first, third, reward) in variants.items():
        for steps in DISTRACTOR_STEPS:
            for suffix, image in (("", False), ("Image", True)):
                kwargs = {"phases": (first, steps, third), "reward": reward, "image": image}
                tasks[f"{task}{steps}{variant}{suffix}-v0"] = (f"sb3_shm.envs.grid.{module}:{task}", kwargs)
    return tasks


GRID_TASKS = _grid_tasks()
