"""
Train an agent with memory on a POPGym task, evaluate it, save it, and draw its learning curve.

    python examples/train_popgym.py                                     # SHM on RepeatPreviousEasy-v0
    python examples/train_popgym.py --memory gru --seed 1
    python examples/train_popgym.py --env AutoencodeEasy-v0 --steps 5_000_000 --n-steps 128
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy, window_func
from stable_baselines3.common.vec_env import VecMonitor

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env
from sb3_shm.memory import MEMORIES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0", metavar="ID", help="environment id")
parser.add_argument("--memory", default="shm", choices=MEMORIES)
parser.add_argument("--no-position", action="store_true", help="leave out the sine table of the step within the episode")
parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps")
parser.add_argument("--n-envs", type=int, default=64)
parser.add_argument("--n-steps", type=int, default=64, help="steps per environment and rollout")
parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the beginning, falls to 0")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1, help="torch threads; 2 are faster on a machine with nothing else to do")
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder for model, episode log and picture")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
try:
    make_batched_env(args.env, 1)
except ValueError as error:  # which names the nearest ids
    parser.error(str(error))
if args.smoke:
    args.steps, args.n_envs = 2048, 4

th.set_num_threads(args.threads)
in_terminal = sys.stdout.isatty()
sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows each line at once, too
name, number = f"{args.env}_{args.memory}_{args.seed}", 1
folder = args.output / name
while folder.exists():  # nothing of an earlier run is overwritten, or passes for this one's
    number += 1
    folder = args.output / f"{name}-{number}"
folder.mkdir(parents=True)

# It counts by itself, but writes no file
warnings.filterwarnings("ignore", message="The environment is already wrapped with a `Monitor` wrapper")
env = VecMonitor(make_batched_env(args.env, args.n_envs, args.seed), str(folder / "monitor.csv"))
model = SHMPPO(
    "MlpSHMPolicy",
    env,
    learning_rate=lambda remaining: args.learning_rate * remaining,
    n_steps=args.n_steps,
    batch_size=None if args.smoke else 1024,
    gae_lambda=0.5,  # a reward depends on the latest action only: a short horizon has less noise
    vf_coef=0.1,  # and values matter little
    ent_coef=0.01,
    policy_kwargs=dict(memory=args.memory, position=None if args.no_position else "sine"),
    seed=args.seed,
    verbose=int(not in_terminal),  # a log file gets tables where a terminal gets a progress bar
)
print(f"Training {args.memory} on {args.env} for {args.steps:,} steps in {args.n_envs} environments, results in {folder}")
start = time.perf_counter()
try:
    model.learn(args.steps, log_interval=5, progress_bar=in_terminal)
except KeyboardInterrupt:  # what has been learned is saved and evaluated
    print(
        f"Interrupted after {model.num_timesteps:,} of {args.steps:,} steps: saves and evaluates; Ctrl-C again ends that, too"
    )
seconds = time.perf_counter() - start
model.save(folder / "model")

eval_env = make_batched_env(args.env, 20, args.seed + 10_000)
episodes = 20 if args.smoke else 200
mean, std = evaluate_policy(model, eval_env, n_eval_episodes=episodes)
print(f"Deterministic policy, {episodes} new episodes: mean return {mean:.3f} (std {std:.3f})")
results = dict(mean=mean, std=std, episodes=episodes, steps=model.num_timesteps, seconds=round(seconds), command=sys.argv)
(folder / "results.json").write_text(json.dumps(results, indent=1))

x, y = ts2xy(load_results(str(folder)), "timesteps")
window = max(len(y) // 50, 1)
if len(y) >= window:
    x, y = window_func(x, y, window, lambda values, axis: values.mean(axis=axis))
plt.figure(figsize=(6, 4))
plt.plot(x, y, label=f"{args.memory}, mean of {window} episode(s)")
plt.axhline(mean, linestyle="--", color="grey", label=f"evaluation after training: {mean:.2f}")
plt.xlabel("environment steps")
plt.ylabel("episode return")
plt.title(args.env)
plt.legend()
plt.tight_layout()
plt.savefig(folder / "learning_curve.png", dpi=120)
print(f"Model: {folder / 'model.zip'}\nLearning curve: {folder / 'learning_curve.png'}")
