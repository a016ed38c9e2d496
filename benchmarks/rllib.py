"""
Environment steps per second of RLlib's PPO with the policy of this package, beside RLlib's own LSTM and SHMPPO, on the same
task in the same run, with the same rollouts, minibatches and epochs.

    python benchmarks/rllib.py                            # RepeatPreviousEasy-v0, 32 envs x 94 steps, 4 minibatches, 10 epochs
    python benchmarks/rllib.py --env-runners 0 1 2
    python benchmarks/rllib.py --env-runners 1 2 4 8 --sleep 4 --n-envs 16 --only shm     # a slow simulator: 4 ms a step

0 env runners is all in one process. Each run is timed over whole iterations, after a first one that warms everything up; the
best counts. Needs the extra rllib.
"""

import argparse
import time
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env

try:
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune import register_env

    from sb3_shm.rllib import module_spec
except ImportError as error:
    print(f'Left out, RLlib cannot be imported ({error}): pip install "sb3-shm[rllib]"')
    raise SystemExit from error  # without an error: `make benchmark` goes on

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0")
parser.add_argument("--n-envs", type=int, default=32)
parser.add_argument("--n-steps", type=int, default=94)
parser.add_argument("--max-seq-len", type=int, default=48)
parser.add_argument("--n-epochs", type=int, default=10)
parser.add_argument("--rollouts", type=int, default=4, help="timed rollouts")
parser.add_argument("--env-runners", type=int, nargs="+", default=[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--sleep", type=float, default=0, help="milliseconds that each step of each environment waits, in RLlib")
parser.add_argument("--only", help="leave out all but RLlib's PPO with this memory")
args = parser.parse_args()

batch_size = args.n_envs * args.n_steps


class Slow(gym.Wrapper):
    """An environment whose steps take longer."""

    def step(self, action: Any) -> Any:
        time.sleep(args.sleep / 1e3)
        return super().step(action)


def make_env(_: Any) -> gym.Env:
    env = gym.make(f"sb3_shm:{args.env}")  # the workers have not imported the package
    return Slow(env) if args.sleep else env


def rllib(env_runners: int, **module: Any) -> tuple[float, float]:
    """:return: seconds of the fastest iteration, and those of them in which it learned"""
    config = (
        PPOConfig()
        .environment("task")
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=args.n_envs // max(env_runners, 1),
            rollout_fragment_length=args.n_steps,
        )
        .training(
            train_batch_size_per_learner=batch_size,
            minibatch_size=batch_size // 4,
            num_epochs=args.n_epochs,
            use_kl_loss=False,
        )
        .rl_module(**module)
    )
    algorithm = config.build_algo()
    update = algorithm.learner_group.update
    learning: list[float] = []

    def timed_update(**kwargs: Any) -> Any:
        start = time.perf_counter()
        results = update(**kwargs)
        learning.append(time.perf_counter() - start)
        return results

    algorithm.learner_group.update = timed_update
    whole = []
    for _ in range(args.rollouts + 1):
        start = time.perf_counter()
        algorithm.train()
        whole.append(time.perf_counter() - start)
    algorithm.stop()
    return min(zip(whole[1:], learning[1:], strict=True))


def shm_ppo(memory: str, batched: bool) -> float:
    """:return: seconds of the fastest rollout with its update"""
    env = make_batched_env(args.env, args.n_envs) if batched else make_vec_env(args.env, args.n_envs)
    kwargs = dict(n_steps=args.n_steps, batch_size=batch_size // 4, seq_len=args.n_steps // 2, n_epochs=args.n_epochs)
    model = SHMPPO("MlpSHMPolicy", env, policy_kwargs=dict(memory=memory), **kwargs)
    seconds = []
    for _ in range(args.rollouts + 1):
        start = time.perf_counter()
        model.learn(batch_size, reset_num_timesteps=False)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


th.set_num_threads(args.threads)
register_env("task", make_env)
ray.init(num_cpus=max(args.env_runners) + 1, include_dashboard=False, log_to_driver=False)
print(
    f"{args.env}, {args.n_envs} envs x {args.n_steps} steps, 4 minibatches, {args.n_epochs} epochs, {args.threads} thread(s)"
)
print("\n| agent | env runners | env steps/s | sampling, s | learning, s |\n|---|---|---|---|---|")
for memory in () if args.only else ("shm", "lstm"):
    for batched, kind in ((False, "one environment after the other"), (True, "batched environments")):
        print(f"| SHMPPO, {memory}, {kind} | | {batch_size / shm_ppo(memory, batched):,.0f} | | |", flush=True)
own_lstm = DefaultModelConfig(use_lstm=True, lstm_cell_size=64, fcnet_hiddens=[128, 64], max_seq_len=args.max_seq_len)
modules: dict[str, dict[str, Any]] = {
    "RLlib's PPO, shm": dict(rl_module_spec=module_spec(args.max_seq_len, memory="shm")),
    "RLlib's PPO, lstm": dict(rl_module_spec=module_spec(args.max_seq_len, memory="lstm")),
    "RLlib's PPO, RLlib's LSTM": dict(model_config=own_lstm),
}
if args.only:
    modules = {f"RLlib's PPO, {args.only}": dict(rl_module_spec=module_spec(args.max_seq_len, memory=args.only))}
for env_runners in args.env_runners:
    for name, module in modules.items():
        seconds, learning = rllib(env_runners, **module)
        sampling = seconds - learning
        print(f"| {name} | {env_runners} | {batch_size / seconds:,.0f} | {sampling:.2f} | {learning:.2f} |", flush=True)
