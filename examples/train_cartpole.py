"""
The shortest training: CartPole-v1 with every default, 20,000 steps of one environment, then 20 new episodes.

    python examples/train_cartpole.py
    python examples/train_cartpole.py --memory gru --seed 1
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_shm import SHMPPO
from sb3_shm.memory import MEMORIES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--memory", default="shm", choices=MEMORIES)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()

th.set_num_threads(1)  # one small environment: a second thread costs more than it gives
model = SHMPPO("MlpSHMPolicy", "CartPole-v1", seed=args.seed, policy_kwargs=dict(memory=args.memory))
model.learn(1024 if args.smoke else 20_000, progress_bar=True)
mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", 10, seed=args.seed + 1000), n_eval_episodes=20)
print(f"{args.memory}, seed {args.seed}: mean return of 20 new episodes {mean:.1f} (std {std:.1f}), 500 is perfect")
