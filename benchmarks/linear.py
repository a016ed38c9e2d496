"""
Is a linear layer of many rows faster than torch's? Forward and backward, and with a tanh behind it, microseconds.

    python benchmarks/linear.py --threads 1

Both compute in turns, and the best of the rounds counts; with one thread the processor's seconds, with more the clock's.
Where MKL is no slower than oneDNN (not AMD with AVX-512) both are torch's, and the gain is about 1.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.backends.cpu_linear import linear, onednn_is_faster

# (rows, inputs, outputs) of SHMPPO with minibatches of 1,024 and 16,384 steps, of SHMSAC's heads, and of an LSTM
LAYERS = [(1024, 32, 64), (1024, 128, 64), (1024, 128, 161), (1024, 64, 1024), (6400, 192, 128)]
LAYERS += [(16384, 32, 64), (16384, 128, 64), (16384, 128, 161)]


def torchs(x: th.Tensor, weight: th.Tensor, bias: th.Tensor, tanh: bool) -> th.Tensor:
    y = F.linear(x, weight, bias)
    return y.tanh() if tanh else y


def best_times(functions: list[Callable[[], object]], rounds: int, now: Callable[[], float]) -> list[float]:
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = now()
            function()
            best[i] = min(best[i], now() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    now = time.process_time if args.threads == 1 else time.perf_counter
    print(f"threads: {args.threads}, torch {th.__version__}, faster than MKL here: {'yes' if onednn_is_faster() else 'no'}\n")
    print("| rows × inputs → outputs | torch | here | gain | torch, tanh | here, tanh | gain |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for rows, n_in, n_out in LAYERS:
        tensors = [x.requires_grad_() for x in (th.randn(rows, n_in), th.randn(n_out, n_in), th.randn(n_out))]
        weights = th.randn(rows, n_out)

        def both(function: Callable[..., th.Tensor], tanh: bool) -> None:
            th.autograd.grad(function(*tensors, tanh=tanh), tensors, weights)  # noqa: B023  # called before the next turn

        cells = []
        for tanh in (False, True):
            theirs, ours = best_times([partial(both, function, tanh) for function in (torchs, linear)], args.rounds, now)
            cells += [f"{1e6 * theirs:,.0f}", f"{1e6 * ours:,.0f}", f"{theirs / ours:.2f}"]
        print(f"| {rows:,} × {n_in} → {n_out:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
