"""
How fast is one recurrence? Time, tokens per second and peak memory of each backend, against a plain loop in autograd.

    python benchmarks/recurrence.py --threads 2 --n 8 --t 1024 --sizes 32 128 --repeats 5
    python benchmarks/recurrence.py --n 1 --t 64 1024 65536 --sizes 16 256 --clip none     (all backends: scan knows no clip)

Every row is measured in a process of its own, after a small call that compiles. Times are the best of the repeats; the peak
is what forward and backward add to the process (on the CPU Linux only: from /proc/self). What would need more than
``--memory`` is left out. Two shares say how far away the limits are:

* of tanh: the time for 2 N T H² values of C alone (forward, and again backward) by the CPU kernels' own function, all in the
  cache and with as many threads, in percent of the time for forward and backward;
* of bytes: the time that copying takes for the least that must be moved (forward reads 5 and writes 1, backward reads 6 and
  writes 5 tensors (N, T, H), and M_0, M_T and their gradients), in percent of the same.

Run it on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch as th
from numba import njit

from sb3_shm.memory import HadamardInputs
from sb3_shm.memory.backends import cuda
from sb3_shm.memory.backends.cpu_numba import calibration
from sb3_shm.memory.hadamard import BACKENDS, hadamard_recurrence


def loop(
    theta: th.Tensor,
    vc: th.Tensor,
    v: th.Tensor,
    k: th.Tensor,
    q: th.Tensor,
    memory: th.Tensor,
    episode_start: th.Tensor,
    clip: float | None,
) -> tuple[th.Tensor, th.Tensor]:
    """The straightforward way: C and U for all steps at once, (N, T, H, H), then a walk over them."""
    calibrations = 1 + th.tanh(theta[..., :, None] * vc[..., None, :])
    updates = v[..., :, None] * k[..., None, :]
    outputs = []
    for start, c, u, query in zip(
        episode_start.unbind(1), calibrations.unbind(1), updates.unbind(1), q.unbind(1), strict=True
    ):
        memory = th.where(start[:, None, None], 0.0, memory) * c + u
        if clip is not None:
            memory = memory.clamp(-clip, clip)
        outputs.append((memory @ query[..., None]).squeeze(-1))
    return th.stack(outputs, dim=1), memory


def make_inputs(n: int, t: int, h: int, device: str) -> tuple[list[th.Tensor], th.Tensor]:
    theta, vc, v, k, q = (0.5 * th.randn(n, t, h, device=device) for _ in range(5))
    tensors = [theta, vc, v, k.relu(), q / h, th.zeros(n, h, h, device=device)]
    return [x.requires_grad_() for x in tensors], th.rand(n, t, device=device) < 0.01


def best_time(function: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device == "cuda":
            th.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def memory_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(function: Callable[[], object], device: str) -> int:
    """:return: bytes that the function needs for a time"""
    if device == "cuda":
        th.cuda.reset_peak_memory_stats()
        before = th.cuda.memory_allocated()
        function()
        return th.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_kib("VmRSS")
    function()
    return 1024 * (memory_kib("VmHWM") - before)


def measure(backend: str, n: int, t: int, h: int, clip: float | None, repeats: int) -> dict[str, float]:
    device = "cuda" if backend == "cuda" or (backend != "cpu" and th.cuda.is_available()) else "cpu"

    def forward(tensors: list[th.Tensor], episode_start: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if backend == "loop":
            return loop(*tensors, episode_start, clip=clip)
        return hadamard_recurrence(HadamardInputs(*tensors[:5]), tensors[5], episode_start, clip=clip, backend=backend)

    def both(tensors: list[th.Tensor], episode_start: th.Tensor, weights: th.Tensor) -> None:
        out, memory = forward(tensors, episode_start)
        th.autograd.grad([out, memory], tensors, [weights, th.ones_like(memory)])

    small = make_inputs(2, 2, h, device)
    both(*small, th.ones(2, 2, h, device=device))
    inputs = make_inputs(n, t, h, device)
    weights = th.randn(n, t, h, device=device)
    peak = peak_of(lambda: both(*inputs, weights), device)
    step = make_inputs(32, 1, h, device)
    with th.no_grad():
        latency = best_time(lambda: forward(*step), 200 * repeats, device)
    return {
        "forward": best_time(lambda: forward(*inputs), repeats, device),
        "both": best_time(lambda: both(*inputs, weights), repeats, device),
        "peak": peak,
        "step": latency,
    }


@njit(nogil=True, error_model="numpy")
def calibrations(values: np.ndarray, out: np.ndarray, times: int) -> None:
    for _ in range(times):
        for i in range(len(values)):
            out[i] = calibration(values[i])


def limits(threads: int) -> tuple[float, float]:
    """:return: on the CPU, seconds for one value of C and for one byte read or written, with so many threads"""
    values, times = np.linspace(-2, 2, 4096, dtype=np.float32), 2000
    calibrations(values, values.copy(), 1)
    with ThreadPoolExecutor(threads) as pool:

        def all_of_them() -> None:
            list(pool.map(lambda _: calibrations(values, np.empty_like(values), times), range(threads)))

        per_value = best_time(all_of_them, 5) / (threads * times * len(values))
    source = th.zeros(2**26)
    target = th.empty_like(source).fill_(1)
    per_byte = best_time(lambda: target.copy_(source), 5) / (2 * 4 * len(source))
    return per_value, per_byte


def clip_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def runs_here(backend: str) -> bool:
    return backend != "cuda" or (th.cuda.is_available() and cuda.missing() is None)


def plot(page: Path, picture: Path) -> None:
    """Tokens per second over T, a panel for each H, from the tables of a page."""
    import matplotlib.pyplot as plt

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines() if "|" in line]
    rates: dict[int, dict[str, dict[int, float]]] = {}
    for row in rows:
        if len(row) == 11 and row[1].isdigit():
            t, h, backend, rate = int(row[0].replace(",", "")), int(row[1]), row[2], float(row[5].replace(",", ""))
            rates.setdefault(h, {}).setdefault(backend, {})[t] = rate
    figure, axes = plt.subplots(1, len(rates), figsize=(3.2 * len(rates), 3.2), sharey=True, layout="constrained")
    for axis, (h, of_backend) in zip(axes, sorted(rates.items()), strict=True):
        for backend in ("reference", "loop", "scan", "cpu"):
            points = sorted(of_backend.get(backend, {}).items())
            axis.plot([t for t, _ in points], [rate for _, rate in points], "o-", label=backend)
        axis.set(xscale="log", yscale="log", xlabel="T", title=f"H = {h}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s, forward + backward, N = 1")
    axes[-1].legend()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--n", type=int, default=8, help="sequences")
    parser.add_argument("--t", type=int, nargs="+", default=[1024], help="steps of each")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128], help="memory sizes H")
    parser.add_argument("--clip", type=clip_or_none, default=100.0, help="bound of M, or none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, default=6.0, help="GB that a backend may take, as estimated")
    parser.add_argument("--backends", nargs="+", default=[*BACKENDS, "loop"], choices=[*BACKENDS, "loop"])
    parser.add_argument("--measure", nargs=3, metavar=("BACKEND", "T", "H"), help="one measurement in this process, as JSON")
    parser.add_argument("--plot", nargs=2, type=Path, metavar=("PAGE", "PNG"), help="only draw the tables of a page")
    args = parser.parse_args()
    if args.plot:
        plot(*args.plot)
        return
    th.set_num_threads(args.threads)
    th.manual_seed(0)
    if args.measure:
        backend, t, h = args.measure[0], *map(int, args.measure[1:])
        print(json.dumps(measure(backend, args.n, t, h, args.clip, args.repeats)))
        return

    per_value, per_byte = limits(args.threads)
    print(
        f"N = {args.n}, clip {args.clip}, {args.threads} threads, torch {th.__version__}, best of {args.repeats}; limits of "
        f"the CPU: {1e-9 / per_value:.2f} billion C/s, {1e-9 / per_byte:.1f} GB/s\n"
    )
    print(
        "| T | H | backend | forward ms | forward + backward ms | tokens/s | × loop | peak extra MB | tanh % | bytes % "
        "| step (N = 32, T = 1) µs |\n|--:|--:|:--|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    backends = [name for name in args.backends if runs_here(name) and not (name == "scan" and args.clip is not None)]
    options = [f"--threads={args.threads}", f"--n={args.n}", f"--repeats={args.repeats}", f"--clip={args.clip or 'none'}"]
    for t in args.t:
        for h in args.sizes:
            rows: dict[str, dict[str, float]] = {}
            for backend in backends:
                if backend not in ("cpu", "cuda") and 40 * args.n * t * h * h > args.memory * 1e9:
                    continue  # some ten matrices for each step
                command = [sys.executable, __file__, *options, "--measure", backend, str(t), str(h)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                rows[backend] = json.loads(output.splitlines()[-1])
            for backend, row in rows.items():
                ratio = f"{rows['loop']['both'] / row['both']:.1f}" if "loop" in rows else ""
                least = 4 * (17 * args.n * t * h + 4 * args.n * h * h)
                shares = "| |"
                if backend != "cuda" and not th.cuda.is_available():
                    tanh = 2 * args.n * t * h * h * per_value / row["both"]
                    shares = f"| {100 * tanh:.0f} | {100 * least * per_byte / row['both']:.1f} |"
                times = f"{row['forward'] * 1e3:.1f} | {row['both'] * 1e3:.1f} | {args.n * t / row['both']:,.0f}"
                rest = f"{row['peak'] / 1e6:,.0f} {shares} {row['step'] * 1e6:,.0f}"
                print(f"| {t:,} | {h} | {backend} | {times} | {ratio} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
