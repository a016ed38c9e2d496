"""
Balance a pole without seeing velocities: a run that checkpoints, resumes when it was killed, and shows its progress.

    python examples/train_cartpole_novel.py                # start it, kill it, start it again: it goes on
    python examples/train_cartpole_novel.py --memory gru

The settings are those of sb3-contrib's test of RecurrentPPO, and every memory has its defaults. Reported are the best of ten
checkpoints, chosen on 20 episodes, and the last one, each on 20 other episodes, deterministic policy.
"""

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO
from sb3_shm.memory import MEMORIES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--memory", default="shm", choices=MEMORIES)
parser.add_argument("--steps", type=int, default=50_000, help="environment steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder for the checkpoints")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
if args.smoke:
    args.steps = 2048

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
    model = SHMPPO(
        "MlpSHMPolicy",
        VecNormalize(env),
        learning_rate=7e-4,
        n_steps=128,
        batch_size=256,
        gae_lambda=0.98,
        max_grad_norm=1.0,
        policy_kwargs=dict(memory=args.memory),
        seed=args.seed,
    )
# Every tenth part of the run; the callback counts steps of all environments at once
save = CheckpointCallback(max(args.steps // 10 // 8, 1), str(folder), name_prefix="shm_ppo", save_vecnormalize=True)
model.learn(max(args.steps - model.num_timesteps, 0), callback=save, progress_bar=True, reset_num_timesteps=False)


def evaluate(path: Path, seed: int) -> float:
    eval_env = make_vec_env("CartPoleNoVel-v0", n_envs=10, seed=seed)
    eval_env = VecNormalize.load(str(folder / f"shm_ppo_vecnormalize_{steps_done(path)}_steps.pkl"), eval_env)
    eval_env.training = eval_env.norm_reward = False
    mean, _ = evaluate_policy(SHMPPO.load(path), eval_env, n_eval_episodes=20)
    return float(mean)


# PPO's last update need not be its best: the best checkpoint is tested on episodes that did not choose it
checkpoints = sorted(folder.glob("shm_ppo_*_steps.zip"), key=steps_done)
best = max(checkpoints, key=lambda path: evaluate(path, seed=args.seed + 1000))
print(
    f"{args.memory}, seed {args.seed}, mean return of 20 episodes: {evaluate(best, args.seed + 2000):.1f} "
    f"(best checkpoint {best}), {evaluate(checkpoints[-1], args.seed + 2000):.1f} (the last)"
)
