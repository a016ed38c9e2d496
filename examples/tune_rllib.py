"""
Search settings of a memory with Ray Tune, on a laptop or a Ray cluster: one trial per CPU, the worse ones are stopped early.
Tasks and all other settings are those of the experiment `defaults`. Needs the extras rllib and experiments.

    python examples/tune_rllib.py --trials 20                           # SHM on RepeatPreviousEasy-v0
    python examples/tune_rllib.py --memory gru --env RepeatFirstEasy-v0 --steps 200_000
    python examples/tune_rllib.py --address auto --trials 500           # on the cluster to which this machine belongs
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from experiments.defaults import TASKS, settings
from sb3_shm.rllib import load_shm_ppo, module_spec

SPACES: dict[str, dict[str, Any]] = {
    "shm": dict(
        memory_size=tune.choice([16, 32, 64]),
        n_theta=tune.choice([1, 16, 128]),
        calibration_scale=tune.choice([0.03, 0.1, 0.3, 1.0]),
        read_gain=tune.choice([0.3, 1.0, 3.0]),
    ),
    "gru": dict(hidden_size=tune.choice([32, 64, 128])),
    "lstm": dict(hidden_size=tune.choice([32, 64, 128])),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0", choices=[env for env in TASKS if not env.startswith("CartPole")])
parser.add_argument("--memory", default="shm", choices=SPACES)
parser.add_argument("--trials", type=int, default=20)
parser.add_argument("--steps", type=int, help="environment steps of a trial, default the experiment's")
parser.add_argument("--n-envs", type=int, default=32)
parser.add_argument("--max-seq-len", type=int, default=64)
parser.add_argument("--address", help='of a Ray cluster, "auto" for the one that runs here; without it Ray starts one')
parser.add_argument("--output", type=Path, default=Path("logs"), help="folder that all machines see")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
if args.smoke:
    args.trials, args.steps, args.n_envs = 2, 500, 4
of_task = settings(args.env)
model = of_task["model"]
n_steps, all_steps = args.steps or of_task["n_timesteps"], args.n_envs * model["n_steps"]


def trial(parameters: dict[str, Any]) -> None:
    """Train once, and report after each iteration."""
    config = (
        PPOConfig()
        .environment(args.env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=args.n_envs, rollout_fragment_length=model["n_steps"])
        .training(
            train_batch_size_per_learner=all_steps,
            minibatch_size=all_steps // 4,
            num_epochs=model.get("n_epochs", 10),
            lr=[[0, parameters["learning_rate"]], [n_steps, 0.0]],
            gamma=model.get("gamma", 0.99),
            lambda_=model["gae_lambda"],
            entropy_coeff=model["ent_coef"],
            clip_param=0.2,
            use_kl_loss=False,
            grad_clip=0.5,
        )
        .rl_module(
            rl_module_spec=module_spec(
                args.max_seq_len, memory=args.memory, memory_kwargs=parameters["memory_kwargs"], **model["policy_kwargs"]
            )
        )
    )
    algorithm = config.build_algo()
    steps = 0
    while steps < n_steps:
        result = algorithm.train()
        steps = int(result["num_env_steps_sampled_lifetime"])
        report = {"steps": steps, "mean_return": result["env_runners"].get("episode_return_mean", float("-inf"))}
        with tempfile.TemporaryDirectory() as folder:
            algorithm.save_to_path(folder)
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
    algorithm.stop()


ray.init(address=args.address, log_to_driver=False)
tuner = tune.Tuner(
    trial,
    param_space=dict(learning_rate=tune.loguniform(3e-4, 3e-3), memory_kwargs=SPACES[args.memory]),
    tune_config=tune.TuneConfig(
        metric="mean_return",
        mode="max",
        num_samples=args.trials,
        scheduler=tune.schedulers.ASHAScheduler(time_attr="steps", max_t=n_steps, grace_period=max(n_steps // 8, 1)),
    ),
    run_config=tune.RunConfig(
        name=f"tune_{args.env}_{args.memory}",
        storage_path=str(args.output.absolute()),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),  # of each trial the latest, the stopped ones included
        verbose=1,
    ),
)
best = tuner.fit().get_best_result()
print(
    f"Best: {best.config}, mean return {best.metrics['mean_return']:.3f} while exploring after {best.metrics['steps']:,} steps"
)
with best.checkpoint.as_directory() as folder:
    load_shm_ppo(folder).save(args.output / f"tune_{args.env}_{args.memory}" / "model")
