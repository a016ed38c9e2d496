"""
Meta-reinforcement learning on the plane: a point must reach a goal, and something about the task is hidden and stays the same
for an episode. In Wind it is the wind, in Point Robot the place of the goal; a memory can find it out from what happens.

=========================================  ==========================================================================
``WindTrain50-v0``, ``WindTrain10-v0``     the 50 or 10 training tasks of the release, one at random each episode
``WindEval150-v0``, ``WindEval190-v0``     its 150 or 190 evaluation tasks, in turn
``WindUniform-v0``                         a fresh wind each episode, from the distribution of the release
``WindUpstream-v0``                        a fresh wind each episode, with the constants of pomdp-baselines
``PointRobot...-v0``                       the same six for Point Robot
=========================================  ==========================================================================

"The release" is the code of Stable Hadamard Memory (Le et al., ICLR 2025), whose tasks go back to pomdp-baselines (Ni et al.,
ICML 2022) and from there to off-policy variBAD. Its agents also see the previous action in Wind and the previous reward in
Point Robot: :class:`~sb3_shm.envs.wrappers.MemoryInputs` adds them.

Evaluation tasks are visited by a rule that looks at nothing but the copy's own seed. The copy with seed s begins with task s
and goes on in strides of ten: s, s + 10, s + 20, ... until all are passed, then s + 1, s + 11, ..., each modulo the number of
tasks n. So every task is visited once by n copies of consecutive seeds in one episode, by 10 copies in n / 10 episodes and by
one copy in n episodes:

.. code-block:: python

    env = make_batched_env("WindEval150-v0", n_envs=150, seed=0)  # without a seed the copies begin anywhere
    evaluate_policy(model, env, n_eval_episodes=150)

An episode that is left before its first step does not count, since Stable-Baselines3 resets once more than it plays.
"""

from __future__ import annotations

from typing import Any

_KINDS: dict[str, dict[str, Any]] = {
    "Train50": {"split": "train", "n_tasks": 50},
    "Train10": {"split": "train", "n_tasks": 10},
    "Eval150": {"split": "eval", "n_tasks": 150},
    "Eval190": {"split": "eval", "n_tasks": 190},
    "Uniform": {},
}
META_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"Wind{kind}-v0": ("sb3_shm.envs.meta.tasks:Wind", kwargs) for kind, kwargs in _KINDS.items()},
    "WindUpstream-v0": ("sb3_shm.envs.meta.tasks:Wind", {"max_wind": 0.08, "goal_radius": 0.03, "rollout_steps": 75}),
    **{f"PointRobot{kind}-v0": ("sb3_shm.envs.meta.tasks:PointRobot", kwargs) for kind, kwargs in _KINDS.items()},
    "PointRobotUpstream-v0": ("sb3_shm.envs.meta.tasks:PointRobot", {"goal_radius": 0.2, "rollout_steps": 60}),
}
"""Id -> where the task's class is, and its arguments."""
