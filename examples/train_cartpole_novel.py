"""
Balance a pole without seeing velocities: a run that checkpoints, resumes when it was killed, and shows its progress.

    python examples/train_cartpole_novel.py                # start it, kill it, start it again: it goes on
    python examples/train_cartpole_novel.py --memory gru
"""

import argparse
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--memory", default="shm", choices=["shm", "gru", "lstm"])
parser.add_argument("--steps", type=int, default=50_000, help="environment steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder for the checkpoints")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
if args.smoke:
    args.steps = 1024

th.set_num_threads(1)  # eight small environments: a second thread costs more than it gives
folder = args.output / f"CartPoleNoVel-v0_{args.memory}_{args.seed}"
env = make_vec_env("CartPoleNoVel-v0", n_envs=8, seed=args.seed)


def steps_done(path: Path) -> int:
    return int(path.stem.split("_")[-2])


checkpoints = sorted(folder.glob("shm_ppo_*_steps.zip"), key=steps_done)
if checkpoints:
    latest = checkpoints[-1]
    print(f"Resuming from {latest}")
    normalized = VecNormalize.load(str(folder / f"shm_ppo_vecnormalize_{steps_done(latest)}_steps.pkl"), env)
    model = SHMPPO.load(latest, env=normalized)
else:
    normalized = VecNormalize(env, gamma=0.98)
    model = SHMPPO(
        "MlpSHMPolicy",
        normalized,
        learning_rate=lambda remaining: 1e-3 * remaining,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        policy_kwargs=dict(memory=args.memory, position="sine"),
        seed=args.seed,
    )
save = CheckpointCallback(args.steps // 40, str(folder), name_prefix="shm_ppo", save_vecnormalize=True)
model.learn(max(args.steps - model.num_timesteps, 0), callback=save, progress_bar=True, reset_num_timesteps=False)
model.save(folder / "model")
normalized.save(str(folder / "vecnormalize.pkl"))

eval_env = VecNormalize(make_vec_env("CartPoleNoVel-v0", n_envs=10, seed=args.seed + 1000), training=False, norm_reward=False)
eval_env.obs_rms = normalized.obs_rms
returns, _ = evaluate_policy(model, eval_env, n_eval_episodes=20, return_episode_rewards=True)
print(f"{args.memory}, seed {args.seed}, {model.num_timesteps:,} steps: mean return of 20 episodes {np.mean(returns):.1f}")
