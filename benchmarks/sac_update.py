"""
Gradient steps per second of ``SHMSAC.train`` on whole episodes, one memory against another, and the share of sampling.

    python benchmarks/sac_update.py                     # 64 episodes of 100 steps, 3 observations and 2 actions as in Wind
    python benchmarks/sac_update.py --threads 1 --updates 50 --profile
    python benchmarks/sac_update.py --pictures 64 --batch-size 4 --steps 64 --episodes 20 --buffer-size 2000

The memories take turns, and the best of the rounds counts: what else runs on the machine then hits all of them alike. With one
thread the processor's seconds count, with more the clock's. The tape holds 1,000 episodes. The last table, with ``--profile``,
says where an update's time goes.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from gymnasium import Env, spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from torch.profiler import ProfilerActivity, profile

from sb3_shm import SHMSAC
from sb3_shm.shm_sac.tape import MemoryReplayBuffer
from sb3_shm.training.heap import keep_freed_memory

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--batch-size", type=int, default=64, help="episodes in a batch")
parser.add_argument("--steps", type=int, default=100, help="steps of an episode")
parser.add_argument("--episodes", type=int, default=1000, help="episodes on the tape")
parser.add_argument("--buffer-size", type=int, default=1_000_000)
parser.add_argument("--updates", type=int, default=20, help="timed updates of each memory in each round")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--pictures", type=int, help="height and width of pictures with three channels, observed instead")
parser.add_argument("--only", nargs="+", help="of the memories these, by name")
parser.add_argument("--profile", action="store_true", help="say where the time of an update goes")
args = parser.parse_args()


class Shape(Env):
    """Has the spaces of Wind, or pictures; never played."""

    observation_space = (
        spaces.Box(0, 255, (3, args.pictures, args.pictures), np.uint8)
        if args.pictures
        else spaces.Box(-np.inf, np.inf, (3,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)


def make(memory: str, **memory_kwargs: int) -> SHMSAC:
    model = SHMSAC(
        "CnnSHMPolicy" if args.pictures else "MlpSHMPolicy",
        make_vec_env(Shape, 1),
        buffer_size=args.buffer_size,
        batch_size=args.batch_size,
        seq_len=None,
        seed=0,
        device="cpu",
        policy_kwargs=dict(memory=memory, memory_kwargs=memory_kwargs),
    )
    model.set_logger(Logger(None, []))
    return model


def fill(tape: MemoryReplayBuffer) -> None:
    rng = np.random.default_rng(0)
    for t in range(args.episodes * args.steps):
        shape = (2, 1, *Shape.observation_space.shape)
        obs, following = rng.integers(256, size=shape) if args.pictures else rng.normal(size=shape)
        done = np.array([t % args.steps == args.steps - 1])
        info = {"TimeLimit.truncated": True}
        tape.add(obs, following, rng.uniform(-1, 1, size=(1, 2)), rng.normal(size=1), done, [info])


class Stopwatch:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Any) -> None:
        self.function, self.seconds, self.now = function, 0.0, time.perf_counter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = self.now()
        result = self.function(*args, **kwargs)
        self.seconds += self.now() - start
        return result


memories = {
    "SHM H=24": dict(memory="shm", memory_size=24),
    "GRU 64": dict(memory="gru", hidden_size=64),
    "LSTM 64": dict(memory="lstm", hidden_size=64),
}
if set(args.only or ()) - memories.keys():
    parser.error(f"--only {args.only}: choose of {list(memories)}")
keep_freed_memory()  # as learn() does, which is not called here
models = {name: make(**kwargs) for name, kwargs in memories.items() if args.only is None or name in args.only}
tape = next(iter(models.values())).replay_buffer
fill(tape)
tape.sample = Stopwatch(tape.sample)  # type: ignore[method-assign]
for model in models.values():
    model.replay_buffer = tape

print(
    f"{args.batch_size} episodes x {args.steps} steps, {tape.size():,} rows on a tape for {tape.buffer_size:,}, "
    f"torch {th.__version__}, numpy {np.__version__}\n"
)
print("| memories | threads | updates/s | of them sampling |\n|---|---|---|---|")
for threads in args.threads:
    th.set_num_threads(threads)
    tape.sample.now = now = time.process_time if threads == 1 else time.perf_counter  # type: ignore[attr-defined]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for model in models.values():
        model.train(3, args.batch_size)
    for _ in range(args.rounds):
        for name, model in models.items():
            tape.sample.seconds, start = 0.0, now()  # type: ignore[attr-defined]
            model.train(args.updates, args.batch_size)
            seconds[name].append((now() - start, tape.sample.seconds))  # type: ignore[attr-defined]
    for name, rounds in seconds.items():
        total, sampling = min(rounds)
        print(f"| {name} | {threads} | {args.updates / total:.2f} | {sampling / total:.1%} |", flush=True)

if args.profile:
    for name, model in models.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model.train(args.updates, args.batch_size)
        print(f"\n{name}, {args.threads[-1]} threads\n")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
