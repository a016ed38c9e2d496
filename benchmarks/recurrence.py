"""
How fast is one recurrence? Tokens per second and peak memory of each backend, against a plain loop in autograd.

    python benchmarks/recurrence.py --threads 2 --n 8 --t 1024 --sizes 32 128 --repeats 5

Every row is measured in a process of its own, after a small call that compiles. Times are the best of the repeats; the peak
is what forward and backward add to the process (Linux only: from /proc/self). Run it on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch as th

from sb3_shm.memory.hadamard import BACKENDS, hadamard_recurrence


def loop(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    memory: th.Tensor,
    episode_start: th.Tensor,
    clip: float,
) -> tuple[th.Tensor, th.Tensor]:
    """The straightforward way: C and U for all steps at once, (N, T, H, H), then a walk over them."""
    calibrations = 1 + th.tanh(theta[..., :, None] * vc[..., None, :])
    updates = v[..., :, None] * k[..., None, :]
    outputs = []
    for start, c, u, query in zip(
        episode_start.unbind(1), calibrations.unbind(1), updates.unbind(1), q.unbind(1), strict=True
    ):
        memory = th.where(start[:, None, None], 0.0, memory) * c + u
        memory = memory.clamp(-clip, clip)
        outputs.append((memory @ query[..., None]).squeeze(-1))
    return th.stack(outputs, dim=1), memory


def make_inputs(n: int, t: int, h: int) -> tuple[list[th.Tensor], th.Tensor]:
    theta, vc, v, k, q = (0.5 * th.randn(n, t, h) for _ in range(5))
    tensors = [theta, vc, v, k.relu(), q / h, th.zeros(n, h, h)]
    return [x.requires_grad_() for x in tensors], th.rand(n, t) < 0.01


def best_time(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def memory_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(backend: str, n: int, t: int, h: int, repeats: int) -> dict[str, float]:
    def forward(tensors: list[th.Tensor], episode_start: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if backend == "loop":
            return loop(*tensors, episode_start, clip=100.0)
        return hadamard_recurrence(*tensors, episode_start, clip=100.0, backend=backend)

    def both(tensors: list[th.Tensor], episode_start: th.Tensor, weights: th.Tensor) -> None:
        out, memory = forward(tensors, episode_start)
        th.autograd.grad([out, memory], tensors, [weights, th.ones_like(memory)])

    small = make_inputs(2, 2, h)
    both(*small, th.ones(2, 2, h))
    inputs = make_inputs(n, t, h)
    weights = th.randn(n, t, h)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_kib("VmRSS")
    both(*inputs, weights)
    peak = memory_kib("VmHWM") - before
    step = make_inputs(32, 1, h)
    with th.no_grad():
        latency = best_time(lambda: forward(*step), 200 * repeats)
    return {
        "forward": best_time(lambda: forward(*inputs), repeats),
        "both": best_time(lambda: both(*inputs, weights), repeats),
        "peak": peak * 1024,
        "step": latency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--n", type=int, default=8, help="sequences")
    parser.add_argument("--t", type=int, default=1024, help="steps of each")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128], help="memory sizes H")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=[*BACKENDS, "loop"], choices=[*BACKENDS, "loop"])
    parser.add_argument("--measure", nargs=2, metavar=("BACKEND", "H"), help="one measurement in this process, as JSON")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    th.manual_seed(0)
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.n, args.t, int(args.measure[1]), args.repeats)))
        return

    print(f"N = {args.n}, T = {args.t}, {args.threads} threads, torch {th.__version__}, best of {args.repeats}\n")
    print("| H | backend | forward ms | forward + backward ms | tokens/s | × loop | peak extra MB | step (N = 32, T = 1) µs |")
    print("|--:|:--------|-----------:|----------------------:|---------:|-------:|--------------:|------------------------:|")
    options = [f"--{name}={getattr(args, name)}" for name in ("threads", "n", "t", "repeats")]
    for h in args.sizes:
        rows = {}
        for backend in args.backends:
            command = [sys.executable, __file__, *options, "--measure", backend, str(h)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows[backend] = json.loads(output.splitlines()[-1])
        for backend, row in rows.items():
            ratio = f"{rows['loop']['both'] / row['both']:.1f}" if "loop" in rows else ""
            rate = args.n * args.t / row["both"]
            print(
                f"| {h} | {backend} | {row['forward'] * 1e3:.1f} | {row['both'] * 1e3:.1f} | {rate:,.0f} | {ratio} "
                f"| {row['peak'] / 1e6:,.0f} | {row['step'] * 1e6:,.0f} |"
            )


if __name__ == "__main__":
    main()
