"""
Environment steps per second of ``learn()``: SHMPPO against sb3-contrib's RecurrentPPO, in the same run on the same task.

    python benchmarks/throughput.py                       # RepeatPreviousEasy-v0, 16 envs x 256 steps, batch 1024, 10 epochs
    python benchmarks/throughput.py --n-envs 64 --batch-size 4096 --no-peer

Each run is timed over whole rollouts with their updates, after a first one that warms everything up; the best counts.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_shm import SHMPPO

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0")
parser.add_argument("--n-envs", type=int, default=16)
parser.add_argument("--n-steps", type=int, default=256)
parser.add_argument("--batch-size", type=int, default=1024)
parser.add_argument("--n-epochs", type=int, default=10)
parser.add_argument("--rollouts", type=int, default=5, help="timed rollouts of SHMPPO; the peer runs two")
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--device", default="cpu")
parser.add_argument("--backend", default="auto", help="of SHM's recurrence")
parser.add_argument("--no-peer", action="store_true", help="leave RecurrentPPO out")
args = parser.parse_args()


class Clock(BaseCallback):
    """Seconds spent collecting the latest rollout."""

    def _on_rollout_start(self) -> None:
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seconds = time.perf_counter() - self.start


def measure(make: Any, rollouts: int, threads: int) -> tuple[float, float]:
    """:return: environment steps per second of ``learn()``, and milliseconds of one vectorised step while collecting"""
    th.set_num_threads(threads)
    env = make_vec_env(args.env, n_envs=args.n_envs, seed=0)
    kwargs = dict(n_steps=args.n_steps, batch_size=args.batch_size, n_epochs=args.n_epochs, seed=0, device=args.device)
    model: OnPolicyAlgorithm = make(env, kwargs)
    n = args.n_steps * args.n_envs
    model.learn(n)
    speeds, collecting = [], []
    for _ in range(rollouts):
        clock, start = Clock(), time.perf_counter()
        model.learn(n, callback=clock, reset_num_timesteps=False)
        speeds.append(n / (time.perf_counter() - start))
        collecting.append(clock.seconds / args.n_steps * 1e3)
    return max(speeds), min(collecting)


def shm(memory: str, **memory_kwargs: Any) -> Any:
    return lambda env, kwargs: SHMPPO(
        "MlpSHMPolicy", env, policy_kwargs=dict(memory=memory, memory_kwargs=memory_kwargs), **kwargs
    )


def recurrent_ppo(env: Any, kwargs: Any) -> OnPolicyAlgorithm:
    from sb3_contrib import RecurrentPPO

    return RecurrentPPO("MlpLstmPolicy", env, **kwargs)


recurrence = dict(backend=args.backend, clip=None if args.backend == "scan" else 100.0)  # scan cannot clip
candidates = {
    "SHMPPO, SHM H=32": shm("shm", memory_size=32, **recurrence),
    "SHMPPO, SHM H=128": shm("shm", memory_size=128, **recurrence),
    "SHMPPO, GRU 128": shm("gru", hidden_size=128),
    "SHMPPO, LSTM 256": shm("lstm", hidden_size=256),
}
print(
    f"{args.env}, {args.n_envs} envs x {args.n_steps} steps, batch {args.batch_size}, {args.n_epochs} epochs, {args.device}, "
    f"torch {th.__version__}, numpy {np.__version__}\n"
)
print("| algorithm | threads | env steps/s | collecting, ms per step of all envs | ratio |\n|---|---|---|---|---|")
for threads in args.threads:
    peer = float("nan")
    if not args.no_peer:
        peer, collecting = measure(recurrent_ppo, 2, threads)
        print(f"| RecurrentPPO, LSTM 256 | {threads} | {peer:,.0f} | {collecting:.2f} | 1 |", flush=True)
    for name, make in candidates.items():
        speed, collecting = measure(make, args.rollouts, threads)
        print(
            f"| {name} | {threads} | {speed:,.0f} | {collecting:.2f} | {'' if args.no_peer else f'{speed / peer:.1f}'} |",
            flush=True,
        )
