"""
Recurrent SAC, with continuous and with discrete actions, and SAC without a memory to compare with.

    python examples/train_sac.py                                            # SHM on PendulumNoVel-v0
    python examples/train_sac.py --memory none                              # Stable-Baselines3's SAC
    python examples/train_sac.py --env RepeatFirstEasy-v0 --memory gru
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMSAC

# Environment: steps, number of environments, discount factor, further arguments
SETTINGS: dict[str, tuple[int, int, float, dict[str, Any]]] = {
    "PendulumNoVel-v0": (12_000, 1, 0.99, dict(train_freq=2, batch_size=16, seq_len=64)),
    # The reward follows from the current action and the first observation: a short horizon, whole episodes
    "RepeatFirstEasy-v0": (
        60_000,
        4,
        0.5,
        dict(train_freq=4, gradient_steps=2, batch_size=32, seq_len=None, ent_coef="auto_0.1", target_entropy=0.1),
    ),
    "CartPoleNoVel-v0": (
        50_000,
        4,
        0.98,
        dict(
            learning_rate=lambda remaining: 1e-3 * remaining,
            train_freq=4,
            gradient_steps=4,
            ent_coef="auto_0.1",
            target_entropy=0.4,
            tau=0.01,
            n_steps=5,  # with 1 the pole is not balanced after 50,000 steps
        ),
    ),
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="PendulumNoVel-v0", choices=SETTINGS)
parser.add_argument(
    "--memory", default="shm", choices=["shm", "shm_paper", "gru", "lstm", "none"], help="none: SAC, for continuous actions"
)
parser.add_argument("--steps", type=int, help="environment steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder for model and result")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()

th.set_num_threads(1)
in_terminal = sys.stdout.isatty()
sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows each line at once, too
steps, n_envs, gamma, arguments = SETTINGS[args.env]
steps = 640 if args.smoke else args.steps or steps
name, number = f"{args.env}_sac-{args.memory}_{args.seed}", 1
folder = args.output / name
while folder.exists():  # nothing of an earlier run is overwritten, or passes for this one's
    number += 1
    folder = args.output / f"{name}-{number}"
folder.mkdir(parents=True)


def make_env(n: int, seed: int, training: bool) -> VecNormalize:
    env = make_vec_env(args.env, n_envs=n, seed=seed)
    is_cartpole = args.env == "CartPoleNoVel-v0"  # whose angles are small numbers
    normalise_reward = training and args.env != "PendulumNoVel-v0"
    return VecNormalize(env, training=training, norm_obs=is_cartpole, norm_reward=normalise_reward, gamma=gamma)


env = make_env(n_envs, args.seed, training=True)
common: dict[str, Any] = dict(gamma=gamma, seed=args.seed, verbose=int(not in_terminal))  # tables in a log file
model: OffPolicyAlgorithm
if args.memory == "none":
    common |= dict(learning_rate=1e-3, train_freq=arguments["train_freq"])
    model = SAC("MlpPolicy", env, learning_starts=1000, batch_size=256, **common)
else:
    policy_kwargs: dict[str, Any] = dict(memory=args.memory)
    if args.env != "PendulumNoVel-v0":
        policy_kwargs["net_arch"] = [64, 64]
    model = SHMSAC("MlpSHMPolicy", env, policy_kwargs=policy_kwargs, **{"learning_rate": 1e-3, **common, **arguments})
start = time.perf_counter()
try:
    model.learn(steps, log_interval=50, progress_bar=in_terminal)
except KeyboardInterrupt:  # what has been learned is saved and evaluated
    print(f"Interrupted after {model.num_timesteps:,} of {steps:,} steps: saves and evaluates; Ctrl-C again ends that, too")
seconds = time.perf_counter() - start
model.save(folder / "model")
env.save(str(folder / "vecnormalize.pkl"))

eval_env = make_env(10, args.seed + 1000, training=False)
if env.norm_obs:
    eval_env.obs_rms = env.obs_rms
episodes = 20 if args.smoke else 100
mean, std = evaluate_policy(model, eval_env, n_eval_episodes=episodes)
print(
    f"{args.memory} on {args.env}, seed {args.seed}, {model.num_timesteps:,} steps, {model._n_updates:,} updates, "
    f"{seconds:.0f} s: mean return of {episodes} episodes {mean:.2f} (std {std:.2f})"
)
results = dict(mean=mean, std=std, episodes=episodes, steps=model.num_timesteps, seconds=round(seconds), command=sys.argv)
(folder / "results.json").write_text(json.dumps(results, indent=1))
print(f"Model: {folder / 'model.zip'}")
