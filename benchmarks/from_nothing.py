"""
What a user waits for, each in a process of its own: the import, the first use of a new size, and the way to a solved task.

    python benchmarks/from_nothing.py                 # import and first use: seconds
    python benchmarks/from_nothing.py --solve         # and RepeatPreviousEasy to 0.95, beside RecurrentPPO: minutes

The first use compiles kernels, so numba's cache is an empty folder there, and the second process finds it filled. The task is
solved when the last 100 training episodes return 0.95 on average. Seconds are the clock's, so the machine must be quiet.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

FIRST_USE = """
import time, torch as th
from sb3_shm.memory import make_memory
memory = make_memory({name!r}, 64, {kwargs!r})
x, starts = th.randn(4, 64, 64), th.zeros(4, 64, dtype=th.bool)
begin = time.perf_counter()
memory(x, memory.initial_state(4), starts)[0].sum().backward()
print(time.perf_counter() - begin)
"""
SIZES = {"SHM H=40": ("shm", dict(memory_size=40)), "GRU 40": ("gru", dict(hidden_size=40))}
ALGORITHMS = ["SHMPPO", "SHMPPO-gru", "SHMPPO-lstm", "RecurrentPPO"]
STEPS = 1_000_000


def run(*command: str, **environment: str) -> tuple[float, str]:
    """:return: seconds of a Python process, and what it printed"""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - start, result.stdout


def solve(algorithm: str, n_envs: int, target: float, limit: int) -> None:
    """Train until the task is solved, and print seconds, steps, return and memory."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.utils import LinearSchedule, safe_mean

    from sb3_shm import SHMPPO  # which registers the task

    class Until(BaseCallback):
        latest = float("nan")

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.latest = safe_mean([episode["r"] for episode in self.model.ep_info_buffer or ()])

        def _on_rollout_start(self) -> None:  # where all steps are learned from
            if self.latest >= target:
                raise StopIteration

    common = dict(learning_rate=LinearSchedule(1e-3, 0, 1.0), n_steps=64, batch_size=1024, gae_lambda=0.5, ent_coef=0.01)
    env = make_vec_env("RepeatPreviousEasy-v0", n_envs, seed=0)
    name, _, memory = algorithm.partition("-")
    if name == "SHMPPO":
        policy_kwargs = dict(position="sine", memory=memory or "shm")
        model: OnPolicyAlgorithm = SHMPPO(
            "MlpSHMPolicy", env, policy_kwargs=policy_kwargs, vf_coef=0.1, seed=0, device="cpu", **common
        )
    else:
        from sb3_contrib import RecurrentPPO

        model = RecurrentPPO("MlpLstmPolicy", env, seed=0, device="cpu", **common)
    until, start = Until(), time.perf_counter()
    try:
        model.learn(limit, callback=until)
        how = "not solved"
    except StopIteration:
        how = "solved"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"| {algorithm} | {time.perf_counter() - start:,.0f} s of training, {model.num_timesteps:,} steps, {how} "
        f"({until.latest:.2f}), peak {peak:,.0f} MiB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the imports, whose median counts")
    parser.add_argument("--solve", action="store_true", help="train, too")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.95, help="mean return of the last 100 episodes")
    parser.add_argument("--limit", type=int, default=STEPS, help="steps after which training ends unsolved")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return solve(args.child, args.n_envs, args.target, args.limit)
    print("| what | how long |\n|:--|:--|")
    seconds: dict[str, list[float]] = {"stable_baselines3": [], "sb3_shm": []}
    for _ in range(args.rounds):
        for module, times in seconds.items():
            times.append(run("-c", f"import {module}")[0])
    theirs, ours = map(median, seconds.values())
    print(f"| import of sb3_shm | {ours:.2f} s, {ours - theirs:+.2f} s beside stable_baselines3's {theirs:.2f} s |")
    for size, (name, kwargs) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            code = FIRST_USE.format(name=name, kwargs=kwargs)
            first, again = (float(run("-c", code, NUMBA_CACHE_DIR=folder)[1]) for _ in range(2))
        print(f"| first use of {size}, forward and backward | {first:.1f} s, from the cache {again:.2f} s |", flush=True)
    for algorithm in args.algorithms if args.solve else ():
        options = ("--n-envs", str(args.n_envs), "--target", str(args.target), "--limit", str(args.limit))
        total, line = run(__file__, "--child", algorithm, *options)
        print(f"{line.rstrip().removesuffix(' |')}; {total:,.0f} s with imports |", flush=True)


if __name__ == "__main__":
    main()
