"""
Train an agent with memory by RLlib's PPO on a laptop or a Ray cluster, and make a model of SHMPPO of it.

    python examples/train_rllib.py                                      # SHM on RepeatPreviousEasy-v0, all in this process
    python examples/train_rllib.py --env-runners 2                      # environments in two processes
    python examples/train_rllib.py --address auto --env-runners 64      # on the cluster to which this machine belongs
    python examples/train_rllib.py --resume logs/rllib_RepeatPreviousEasy-v0_shm_0/checkpoint
"""

import argparse
import time
from pathlib import Path

import ray
from ray.rllib.algorithms import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_shm.envs import make_batched_env
from sb3_shm.memory import MEMORIES
from sb3_shm.rllib import load_shm_ppo, module_spec

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0", metavar="ID", help="environment id")
parser.add_argument("--memory", default="shm", choices=MEMORIES)
parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps")
parser.add_argument("--address", help='of a Ray cluster, "auto" for the one that runs here; without it Ray starts one')
parser.add_argument("--env-runners", type=int, default=0, help="processes with environments; 0 for this one")
parser.add_argument("--learners", type=int, default=0, help="processes that learn; 0 for this one")
parser.add_argument("--n-envs", type=int, default=32, help="environments in all, an equal part in each env runner")
parser.add_argument(
    "--n-steps", type=int, default=94, help="steps per environment and rollout: two episodes of RepeatPreviousEasy"
)
parser.add_argument(
    "--max-seq-len", type=int, default=48, help="an episode of RepeatPreviousEasy and the step that RLlib adds"
)
parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the beginning, falls to 0")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder for checkpoint and model")
parser.add_argument("--resume", type=Path, help="go on from this checkpoint; its settings count")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
try:
    make_batched_env(args.env, 1)
except ValueError as error:  # which names the nearest ids
    parser.error(str(error))
if args.smoke:
    args.steps, args.n_envs = 1000, 4

batch_size = args.n_envs * args.n_steps
config = (
    PPOConfig()
    .environment(args.env)
    .env_runners(
        num_env_runners=args.env_runners,
        num_envs_per_env_runner=args.n_envs // max(args.env_runners, 1),
        rollout_fragment_length=args.n_steps,
    )
    .learners(num_learners=args.learners)
    .training(
        train_batch_size_per_learner=batch_size // max(args.learners, 1),
        minibatch_size=batch_size // max(args.learners, 1) // 4,
        num_epochs=10,
        lr=[[0, args.learning_rate], [args.steps, 0.0]],
        lambda_=0.5,  # a reward depends on the latest action only: a short horizon has less noise
        entropy_coeff=0.01,
        clip_param=0.2,
        use_kl_loss=False,
        grad_clip=0.5,
    )
    .rl_module(rl_module_spec=module_spec(args.max_seq_len, memory=args.memory, position="sine"))
    .debugging(seed=args.seed)
)

ray.init(address=args.address, log_to_driver=False)
algorithm = Algorithm.from_checkpoint(args.resume.absolute()) if args.resume else config.build_algo()
folder = args.output / f"rllib_{args.env}_{args.memory}_{args.seed}"
steps, start = 0, time.perf_counter()
while steps < args.steps:
    result = algorithm.train()
    steps = int(result["num_env_steps_sampled_lifetime"])
    if result["training_iteration"] % 10 == 0 or steps >= args.steps:
        mean = result["env_runners"]["episode_return_mean"]
        print(f"{steps:,} steps, {time.perf_counter() - start:.0f} s: mean return {mean:.3f} while exploring", flush=True)
        algorithm.save_to_path((folder / "checkpoint").absolute())
algorithm.stop()

model = load_shm_ppo(folder / "checkpoint")
model.save(folder / "model")
episodes = 20 if args.smoke else 200
mean, std = evaluate_policy(model, make_batched_env(args.env, 20, args.seed + 10_000), n_eval_episodes=episodes)
print(f"Deterministic policy, {episodes} new episodes: mean return {mean:.3f} (std {std:.3f})")
print(f"Checkpoint: {folder / 'checkpoint'}\nModel of SHMPPO: {folder / 'model.zip'}")
