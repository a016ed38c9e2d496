"""
Behaviour cloning, then PPO, beside PPO alone, with the same number of environment steps, those of the demonstrations included:

    python examples/clone_then_ppo.py --seed 0

A scripted player that knows the cards plays RepeatPreviousEasy 512 times; the policy learns to do the same, and PPO goes on.
"""

import argparse
from types import SimpleNamespace

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env
from sb3_shm.envs.oracles import Oracle
from sb3_shm.imitation import clone

ENV_ID = "RepeatPreviousEasy-v0"


def demonstrate(n_episodes: int, seed: int) -> list[SimpleNamespace]:
    """
    :param n_episodes: number of episodes
    :param seed: seed of the environments
    :return: the episodes, in the form of the library imitation
    """
    env = make_batched_env(ENV_ID, n_episodes, seed)
    oracle, obs = Oracle(ENV_ID), env.reset()
    seen, done, earned = [], [], []
    dones = np.zeros(n_episodes, dtype=bool)
    while not dones.any():  # all episodes are of one length
        actions = oracle.act(env)
        seen.append(obs)
        done.append(actions)
        obs, rewards, dones, _ = env.step(actions)
        earned.append(rewards)
    together = zip(np.stack(seen, axis=1), np.stack(done, axis=1), np.stack(earned, axis=1), strict=True)
    return [SimpleNamespace(obs=o, acts=a, rews=r, terminal=True) for o, a, r in together]


def make_model(seed: int) -> SHMPPO:
    """
    :param seed: seed of everything
    :return: a new agent
    """
    return SHMPPO(
        "MlpSHMPolicy",
        make_batched_env(ENV_ID, 64, seed),
        learning_rate=LinearSchedule(1e-3, 0, 1),
        n_steps=64,
        batch_size=1024,
        gae_lambda=0.5,
        vf_coef=0.1,
        ent_coef=0.01,
        seed=seed,
        policy_kwargs=dict(position="sine"),
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps in all, of either agent")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()
    th.set_num_threads(1)
    n_episodes, n_epochs, steps = (4, 1, 8192) if args.smoke else (512, 30, args.steps)

    def report(name: str, model: SHMPPO) -> None:
        mean, _ = evaluate_policy(model, make_batched_env(ENV_ID, 64, seed=1_000_000), n_eval_episodes=64)
        print(f"seed {args.seed}, {name}: mean return of 64 new episodes {mean:.2f}", flush=True)

    alone = make_model(args.seed).learn(steps)
    report("PPO alone", alone)
    episodes = demonstrate(n_episodes, seed=10_000 * (args.seed + 1))
    model = make_model(args.seed)
    clone(model, episodes, n_epochs=n_epochs, verbose=1)
    report("cloned", model)
    model.learn(steps - sum(len(episode.acts) for episode in episodes))
    report("cloned, then PPO", model)


if __name__ == "__main__":
    main()
