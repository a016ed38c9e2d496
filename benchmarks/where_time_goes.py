"""
Where the time of ``learn()`` goes: the shares of its parts, SHMPPO on RepeatPreviousEasy, as a table in Markdown.

    python benchmarks/where_time_goes.py                          # SHM H=32, 16 and 64 environments, one thread
    python benchmarks/where_time_goes.py --n-envs 256 --batched --memory gru --memory-kwargs '{"hidden_size": 128}'

A stopwatch stands around each part, and what runs inside a part that is a part itself counts there alone. With one thread
the processor's seconds count, which other work on the machine changes little, with more the clock's. ``--profile`` prints
torch's own table of operations, too; for the functions of Python run it under ``py-spy record``.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch.profiler import ProfilerActivity, profile

from sb3_shm import SHMPPO
from sb3_shm.envs import make_batched_env
from sb3_shm.shm_ppo import shm_ppo


class Stopwatches:
    """
    Seconds by part.

    :param now: a clock
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = ["learn(): the rest"]
        self.since = now()

    def _count(self) -> None:
        now = self.now()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def call(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """:return: what the function returns"""
        self._count()
        self.running.append(part)
        try:
            return function(*args, **kwargs)
        finally:
            self._count()
            self.running.pop()

    def set(self, part: str, owner: Any, *names: str) -> None:
        """
        :param part: name of a part
        :param owner: has the functions
        :param names: which of them are the part, or the steps of the iterator that they return
        """
        for name in names:
            function = getattr(owner, name)

            def counted(*args: Any, function: Any = function, **kwargs: Any) -> Any:
                result = self.call(part, function, *args, **kwargs)
                return self._steps(part, result) if isinstance(result, Iterator) else result

            setattr(owner, name, counted)

    def _steps(self, part: str, iterator: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while (item := self.call(part, next, iterator, end)) is not end:
            yield item


def measure(n_envs: int, args: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """:return: environment steps per second, and seconds by part"""
    make_env: Any = make_batched_env if args.batched else make_vec_env
    model = SHMPPO(
        "MlpSHMPolicy",
        make_env(args.env, n_envs, seed=0),
        n_steps=args.n_steps,
        batch_size=args.batch_size,
        n_epochs=args.n_epochs,
        seed=0,
        device="cpu",
        policy_kwargs=dict(memory=args.memory, memory_kwargs=args.memory_kwargs),
    )
    n = args.n_steps * n_envs
    model.learn(n)
    if args.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model.learn(n, reset_num_timesteps=False)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=50))
    watches = Stopwatches(time.process_time if args.threads == 1 else time.perf_counter)
    watches.set("rollout: the rest", model, "collect_rollouts")
    watches.set("rollout: environments' steps", model.env, "step")
    watches.set("rollout: the policy's step", model.policy, "forward", "predict_values")
    watches.set("buffer", model.rollout_buffer, "reset", "add", "compute_returns_and_advantage", "get")
    watches.set("update: losses and the rest", model, "train")
    watches.set("update: forward", model.policy, "evaluate_actions")
    watches.set("update: backward", th.Tensor, "backward")
    watches.set("update: clip and optimiser", shm_ppo, "clip_gradient")
    watches.set("update: clip and optimiser", shm_ppo.Guard, "step")
    start = watches.now()
    model.learn(args.rollouts * n, reset_num_timesteps=False)
    return args.rollouts * n / (watches.now() - start), watches.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="RepeatPreviousEasy-v0")
    parser.add_argument("--n-envs", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batched", action="store_true", help="environments of make_batched_env, not of make_vec_env")
    parser.add_argument("--memory", default="shm")
    parser.add_argument("--memory-kwargs", type=json.loads, default=dict(memory_size=32), help="as JSON")
    parser.add_argument("--n-steps", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--n-epochs", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="torch's table of operations, too")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    originals = th.Tensor.backward, shm_ppo.clip_gradient, shm_ppo.Guard.step
    results = []
    for n_envs in args.n_envs:
        results.append(measure(n_envs, args))
        th.Tensor.backward, shm_ppo.clip_gradient, shm_ppo.Guard.step = originals  # type: ignore[method-assign]
    print(f"{args.env}, {args.memory} {args.memory_kwargs}, {args.n_steps} steps, batch {args.batch_size}, ", end="")
    print(f"{args.n_epochs} epochs, threads: {args.threads}, torch {th.__version__}\n")
    print("| part | " + " | ".join(f"{n} environments" for n in args.n_envs) + " |")
    print("|:--|" + "--:|" * len(args.n_envs))
    for part in results[0][1]:
        print(f"| {part} | " + " | ".join(f"{parts[part] / sum(parts.values()):.1%}" for _, parts in results) + " |")
    print("| environment steps/s | " + " | ".join(f"{speed:,.0f}" for speed, _ in results) + " |")


if __name__ == "__main__":
    main()
