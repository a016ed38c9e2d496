"""
Environment steps per second of ``learn()``: SHMPPO against sb3-contrib's RecurrentPPO, in the same run on the same task.

    python benchmarks/throughput.py                       # RepeatPreviousEasy-v0, 16 envs x 256 steps, batch 1024, 10 epochs
    python benchmarks/throughput.py --n-envs 64 --batch-size 4096 --no-peer
    python benchmarks/throughput.py --n-envs 256 --batch-size 16384 --batched --no-peer --only "SHMPPO, SHM H=32"

Each run is timed over whole rollouts with their updates, after a first one that warms everything up; the best counts. Each
runs in a process of its own, whose peak of memory (resident set, imports included) is the last column. With one thread the
processor's seconds count, which other work on the machine changes little, with more the clock's.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env

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
parser.add_argument("--batched", action="store_true", help="environments of make_batched_env, not of make_vec_env")
parser.add_argument("--no-peer", action="store_true", help="leave RecurrentPPO out")
parser.add_argument("--only", nargs="+", help="of the rows of SHMPPO these, by name")
args = parser.parse_args()


class Clock(BaseCallback):
    """Seconds spent collecting the latest rollout."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.now = now

    def _on_rollout_start(self) -> None:
        self.start = self.now()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seconds = self.now() - self.start


def measure(name: str, rollouts: int, threads: int) -> tuple[float, float, float]:
    """
    :return: environment steps per second of ``learn()``, milliseconds of one vectorised step while collecting, and MiB of the
        process's peak
    """
    th.set_num_threads(threads)
    now = time.process_time if threads == 1 and args.device == "cpu" else time.perf_counter
    make_env: Any = make_batched_env if args.batched else make_vec_env
    env = make_env(args.env, args.n_envs, seed=0)
    kwargs = dict(n_steps=args.n_steps, batch_size=args.batch_size, n_epochs=args.n_epochs, seed=0, device=args.device)
    model: OnPolicyAlgorithm = candidates[name](env, kwargs)
    n = args.n_steps * args.n_envs
    model.learn(n)
    speeds, collecting = [], []
    for _ in range(rollouts):
        clock, start = Clock(now), now()
        model.learn(n, callback=clock, reset_num_timesteps=False)
        speeds.append(n / (now() - start))
        collecting.append(clock.seconds / args.n_steps * 1e3)
    return max(speeds), min(collecting), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def shm(memory: str, **memory_kwargs: Any) -> Any:
    return lambda env, kwargs: SHMPPO(
        "MlpSHMPolicy", env, policy_kwargs=dict(memory=memory, memory_kwargs=memory_kwargs), **kwargs
    )


def recurrent_ppo(env: Any, kwargs: Any) -> OnPolicyAlgorithm:
    from sb3_contrib import RecurrentPPO

    return RecurrentPPO("MlpLstmPolicy", env, **kwargs)


recurrence = dict(backend=args.backend, clip=None if args.backend == "scan" else 100.0)  # scan cannot clip
PEER = "RecurrentPPO, LSTM 256"
candidates = {
    PEER: recurrent_ppo,
    "SHMPPO, SHM H=32": shm("shm", memory_size=32, **recurrence),
    "SHMPPO, SHM H=128": shm("shm", memory_size=128, **recurrence),
    "SHMPPO, GRU 128": shm("gru", hidden_size=128),
    "SHMPPO, LSTM 256": shm("lstm", hidden_size=256),
}


def main() -> None:
    print(
        f"{args.env}, {args.n_envs} envs x {args.n_steps} steps, batch {args.batch_size}, {args.n_epochs} epochs, "
        f"{args.device}, torch {th.__version__}, numpy {np.__version__}\n"
    )
    print("| algorithm | threads | env steps/s | collecting, ms per step of all envs | ratio | peak, MiB |")
    print("|---|---|---|---|---|---|")
    names = [name for name in candidates if name != PEER and (args.only is None or name in args.only)]
    if args.only and (unknown := set(args.only) - candidates.keys()):
        parser.error(f"--only {sorted(unknown)}: choose of {list(candidates)}")
    context = multiprocessing.get_context("spawn")
    for threads in args.threads:
        peer = None
        for name in names if args.no_peer else [PEER, *names]:
            with ProcessPoolExecutor(1, context) as pool:
                rollouts = 2 if name == PEER else args.rollouts
                speed, collecting, peak = pool.submit(measure, name, rollouts, threads).result()
            peer = speed if name == PEER else peer
            ratio = "" if peer is None else f"{speed / peer:.1f}"
            print(f"| {name} | {threads} | {speed:,.0f} | {collecting:.2f} | {ratio} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
