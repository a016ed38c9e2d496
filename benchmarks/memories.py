"""
State, parameters and speed of every memory, as a table in Markdown.

    python benchmarks/memories.py                                # 8 sequences of 1,024 steps, 1 and 2 threads
    python benchmarks/memories.py --memories shm gru --memory-kwargs '{"shm": {"memory_size": 64}}'

Sizes are the memories' defaults, for 64 input features as the policies' encoder has; an episode starts at every 100th step
on average. Tokens per second, without gradients and with a backward pass to parameters and inputs, of one call with all
steps; the latency is that of one step in 32 environments, as in a rollout, with one thread. With one thread the
processor's seconds count, which other work on the machine changes little, with more the clock's: measure those on a machine
that does nothing else. The memories take turns, and the best of the rounds counts.

    python benchmarks/memories.py --memories gru lstm --against-torch --n 4 --t 256 \\
        --memory-kwargs '{"gru": {"hidden_size": 128}, "lstm": {"hidden_size": 256}}'

``--against-torch`` puts torch's own nn.GRU and nn.LSTM of the same weights beside them, on the whole sequences without any
start of an episode, which is all that they can; × is how much more tokens per second, forward and backward, the memory makes
with the starts.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch as th

from sb3_shm.memory import MEMORIES, Memory, make_memory
from sb3_shm.memory.recurrent import TorchRecurrent

INPUT_SIZE, ENVIRONMENTS = 64, 32


def seconds(function: Callable[[], object], threads: int = 1, calls: int = 1) -> float:
    """Of the clock, or with one thread of the processor."""
    now = time.process_time if threads == 1 else time.perf_counter
    start = now()
    for _ in range(calls):
        function()
    return (now() - start) / calls


def measure(memory: Memory, n: int, t: int, threads: list[int], against_torch: bool = False) -> dict[str, float]:
    """
    :param memory: the memory
    :param n: number of sequences
    :param t: steps of each
    :param threads: numbers of torch threads
    :param against_torch: measure the torch layer of GRU and LSTM, too
    :return: seconds of one call by name: ``forward``, ``both`` and ``torch`` with the number of threads, and ``step``
    """
    x = th.randn(n, t, INPUT_SIZE, requires_grad=True)
    starts = th.rand(n, t) < 0.01
    state = memory.initial_state(n)
    sources = [x, *(parameter for parameter in memory.parameters())]

    @th.no_grad()
    def forward() -> None:
        memory(x, state, starts)

    def both() -> None:
        y, _ = memory(x, state, starts)
        th.autograd.grad(y.sum(), sources, allow_unused=True)

    step_x, step_starts = th.randn(ENVIRONMENTS, 1, INPUT_SIZE), th.zeros(ENVIRONMENTS, 1, dtype=th.bool)
    step_state = memory.initial_state(ENVIRONMENTS)

    @th.no_grad()
    def step() -> None:
        memory(step_x, step_state, step_starts)

    def torch_both() -> None:
        y, _ = memory.layer(x)
        th.autograd.grad(y.sum(), sources)

    times = {}
    for number in threads:
        th.set_num_threads(number)
        if against_torch and isinstance(memory, TorchRecurrent):
            times[f"torch {number}"] = seconds(torch_both, number)
        times[f"forward {number}"] = seconds(forward, number)
        times[f"both {number}"] = seconds(both, number)
    th.set_num_threads(1)
    times["step"] = seconds(step, calls=50)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=list(MEMORIES), choices=list(MEMORIES), metavar="NAME")
    parser.add_argument("--memory-kwargs", type=json.loads, default={}, help="arguments by memory, as JSON")
    parser.add_argument("--n", type=int, default=8, help="sequences")
    parser.add_argument("--t", type=int, default=1024, help="steps of each")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads")
    parser.add_argument("--against-torch", action="store_true", help="torch's own GRU and LSTM beside those of this package")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    th.manual_seed(0)
    memories = {name: make_memory(name, INPUT_SIZE, args.memory_kwargs.get(name)) for name in args.memories}
    for memory in memories.values():
        measure(memory, args.n, args.t, args.threads, args.against_torch)  # compiles, and fills caches
    best: dict[str, dict[str, float]] = {name: {} for name in memories}
    for _ in range(args.rounds):
        for name, memory in memories.items():
            for key, value in measure(memory, args.n, args.t, args.threads, args.against_torch).items():
                best[name][key] = min(value, best[name].get(key, float("inf")))

    print(f"{args.n} sequences of {args.t} steps, torch {th.__version__}, best of {args.rounds} rounds\n")
    columns = [f"{what}, {number} threads" for number in args.threads for what in ("forward", "forward + backward")]
    columns = [column.replace("1 threads", "1 thread") for column in columns]
    print(f"| memory | state | parameters | {' | '.join(columns)} | step (32 environments) |")
    print("|:--|--:|--:|" + "--:|" * len(columns) + "--:|")
    for name, memory in memories.items():
        keys = [f"{what} {number}" for number in args.threads for what in ("forward", "both")]
        rates = " | ".join(f"{args.n * args.t / best[name][key]:,.0f}" for key in keys)
        step = best[name]["step"] * 1e6
        print(f"| {name} | {memory.state_size():,} | {memory.parameter_count:,} | {rates} | {step:,.0f} µs |")
    for name, memory in memories.items():
        for number in args.threads if f"torch {args.threads[0]}" in best[name] else ():
            layer, own = best[name][f"torch {number}"], best[name][f"both {number}"]
            layer_name, rate = type(memory.layer).__name__, f"{args.n * args.t / layer:,.0f} tokens/s"
            print(f"\ntorch's own {layer_name}, threads: {number}, forward + backward {rate}; × {layer / own:.2f}")


if __name__ == "__main__":
    main()
