"""What a curve of returns is to be compared with: random actions, and a player that knows everything."""

from __future__ import annotations

from functools import cache

import numpy as np

from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.oracles import Oracle

# Successes in percent, as the paper's reviews quote them; they also say that of all memories SHM alone learns Key-to-Door
PAPER_CREDIT = {
    ("VisualMatch250-v0", "shm_paper"): "about 100",
    ("VisualMatch250-v0", "ffm"): "77",
    ("VisualMatch500-v0", "shm_paper"): "about 100",
    ("VisualMatch500-v0", "ffm"): "25",
}
META_NOTE = (
    "Success: the goal was reached at some step of the episode, over all evaluation tasks, which are none of those of the "
    "training. 11 of the 200 winds make the goal unreachable: 93.3% is the best on WindTrain50, 94.7% on WindTrain10. The "
    "paper's own numbers are not known to us. Random play reaches the goal in 9.9% of Point Robot's episodes (4,000, training "
    "tasks) and in 0.1% of Wind's."
)
_N_EPISODES = 64


@cache
def reference_returns(env_id: str) -> dict[str, float]:
    """
    :param env_id: id of an environment
    :return: mean returns of 64 episodes of "random" actions and of the "perfect" scripted player; nothing for an environment
        that is not one of ours
    """
    if env_id not in BATCHED_TASKS:
        return {}
    means = {}
    for player in ("random", "perfect"):
        env, oracle = make_batched_env(env_id, _N_EPISODES, seed=0), Oracle(env_id)
        env.action_space.seed(0)
        env.reset()
        returns, running = np.zeros(_N_EPISODES), np.ones(_N_EPISODES, dtype=bool)
        while running.any():
            drawn = [env.action_space.sample() for _ in range(_N_EPISODES)] if player == "random" else oracle.act(env)
            _, rewards, dones, _ = env.step(np.asarray(drawn))
            returns += rewards * running
            running &= ~dones
        means[player] = float(returns.mean())
    return means
