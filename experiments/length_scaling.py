"""
What happens in episodes of 64 to 65,536 steps? Speed and memory of a training step by length, and recall: memories that
learned on short sequences to name the first token at the end, tested on sequences up to a thousand times as long.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from torch import nn
from torch.nn import functional as F

from experiments.base import Experiment, Rows, Run
from experiments.figures import make_plots, save, style, table
from sb3_shm.memory import Memory, State, make_memory

if TYPE_CHECKING:
    from pandas import DataFrame

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SHM, θ random": ("shm", dict(theta="random")),
    "SHM, θ fixed": ("shm", dict(theta="fixed")),
    "SHM, θ neural": ("shm", dict(theta="neural")),
    "SHM, C = 1": ("shm", dict(calibration="none")),
    "SHM published, θ random": ("shm_paper", dict(theta="random")),
    "SHM published, θ neural": ("shm_paper", dict(theta="neural")),
    "GRU": ("gru", {}),
    "FFM": ("ffm", {}),
    "GPT, window 64": ("gpt", dict(window=64)),
}
N_CUES, N_DISTRACTORS = 8, 8
N_FEATURES = 32
_LONG = 5.0  # seconds
_CHUNK = 4096  # steps that a test reads at once
_TOKENS = N_CUES + N_DISTRACTORS + 1  # the last one asks


class Recaller(nn.Module):
    """
    Embedding of tokens, memory, and a linear layer that names the cue.

    :param model: one of ``MODELS``
    :param memory_size: H of SHM, number of FFM's traces; GRU and GPT have twice as many features
    """

    def __init__(self, model: str, memory_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_TOKENS, N_FEATURES)
        name, kwargs = MODELS[model]
        size = dict(memory_size=memory_size) if name in ("shm", "shm_paper", "ffm") else dict(hidden_size=2 * memory_size)
        self.memory: Memory = make_memory(name, N_FEATURES, {**kwargs, **size})
        self.head = nn.Linear(self.memory.output_size, N_CUES)

    def forward(self, tokens: th.Tensor, state: State, deterministic: bool = False) -> tuple[th.Tensor, State]:
        """
        :param tokens: (N, T) int64
        :param state: state of the memory
        :param deterministic: nothing is drawn at random in the memory
        :return: logits after the last token, (N, N_CUES), and the state
        """
        starts = th.zeros(tokens.shape, dtype=th.bool)
        context = self.memory.draw_context(state, starts, deterministic)
        y, state = self.memory(self.embedding(tokens), state, starts, context)
        return self.head(y[:, -1]), state


def draw_tokens(n: int, t: int) -> th.Tensor:
    """
    :param n: number of sequences
    :param t: their length, at least 2
    :return: (n, t) int64: a cue, distractors drawn at random, and the token that asks for the cue
    """
    tokens = th.randint(N_CUES, N_CUES + N_DISTRACTORS, (n, t))
    tokens[:, 0] = th.randint(N_CUES, (n,))
    tokens[:, -1] = _TOKENS - 1
    return tokens


def recall(model: str, memory_size: int, train_length: int, steps: int, longest: int, n_test: int, seed: int) -> Rows:
    """
    Train on lengths drawn from 2 to ``train_length`` (Adam, 3e-3 falling to 0, batches of 32, gradients
    limited to norm 1), then test on lengths from ``train_length`` on, each 4 times the one before.

    :param model: one of ``MODELS``
    :param memory_size: H of SHM
    :param train_length: greatest length in training
    :param steps: gradient steps
    :param longest: greatest length in the test
    :param n_test: sequences of each length in the test
    :param seed: seed of weights and sequences
    :return: a row per length: share of right answers; chance is 1 / N_CUES
    """
    th.manual_seed(seed)
    recaller = Recaller(model, memory_size)
    optimizer = th.optim.Adam(recaller.parameters(), lr=3e-3)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        tokens = draw_tokens(32, int(th.randint(2, train_length + 1, ())))
        logits, _ = recaller(tokens, recaller.memory.initial_state(32))
        loss = F.cross_entropy(logits, tokens[:, 0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(recaller.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    rows: Rows = []
    length = train_length
    while length <= longest:
        tokens = draw_tokens(n_test, length)
        state = recaller.memory.initial_state(n_test)
        with th.no_grad():
            for part in tokens.split(_CHUNK, dim=1):
                logits, state = recaller(part, state, deterministic=True)
        accuracy = (logits.argmax(dim=-1) == tokens[:, 0]).double().mean().item()
        rows.append(dict(part="recall", model=model, seed=seed, length=length, accuracy=accuracy, n_test=n_test))
        length *= 4
    return rows


def _memory_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset) of this process; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def speed(model: str, memory_size: int, n: int, longest: int, seed: int) -> Rows:
    """
    :param model: one of ``MODELS``
    :param memory_size: H of SHM
    :param n: number of sequences
    :param longest: greatest length; the lengths begin at 64, each is 4 times the one before
    :param seed: seed of weights and sequences
    :return: a row per length: tokens per second of forward and backward pass (best of three, unless one takes seconds), and
        the peak of what they add to the process in MB (Linux only, else None)
    """
    th.manual_seed(seed)
    recaller = Recaller(model, memory_size)

    def both(tokens: th.Tensor) -> float:
        start = time.perf_counter()
        logits, _ = recaller(tokens, recaller.memory.initial_state(n))
        F.cross_entropy(logits, tokens[:, 0]).backward()
        return time.perf_counter() - start

    both(draw_tokens(n, 64))  # compiles
    is_linux = Path("/proc/self/clear_refs").exists()
    rows: Rows = []
    length = 64
    while length <= longest:
        tokens = draw_tokens(n, length)
        peak = None
        if is_linux:
            ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier passes freed
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            before = _memory_kib("VmRSS")
        seconds = both(tokens)
        if is_linux:
            peak = (_memory_kib("VmHWM") - before) * 1024 / 1e6
        if seconds < _LONG:
            seconds = min(seconds, both(tokens), both(tokens))
        rows.append(
            dict(part="speed", model=model, seed=seed, length=length, tokens_per_second=n * length / seconds, peak_mb=peak)
        )
        length *= 4
    return rows


def _runs(budget: str, seeds: int) -> list[Run]:
    sizes: dict[str, dict[str, dict[str, int]]] = {
        "smoke": dict(
            recall=dict(memory_size=8, train_length=8, steps=10, longest=32, n_test=4),
            speed=dict(memory_size=8, n=2, longest=256),
        ),
        "small": dict(
            recall=dict(memory_size=32, train_length=64, steps=2000, longest=65_536, n_test=64),
            speed=dict(memory_size=32, n=4, longest=65_536),
        ),
        "paper": dict(
            recall=dict(memory_size=128, train_length=64, steps=10_000, longest=65_536, n_test=256),
            speed=dict(memory_size=128, n=4, longest=65_536),
        ),
    }
    return [
        Run(
            f"{part}-{''.join(c for c in model.replace('θ', '').replace(' = ', '') if c.isalnum())}-{seed}",
            f"experiments.length_scaling:{part}",
            dict(model=model, seed=seed, **sizes[budget][part]),
        )
        for part in ("speed", "recall")
        for model in MODELS
        for seed in range(seeds if part == "recall" else 1)
    ]


def _report(rows: DataFrame, folder: Path) -> str:
    figure, axes = make_plots(3, width=4.4, sharex=True)
    columns = {"accuracy": "share of right answers", "tokens_per_second": "tokens per second", "peak_mb": "peak memory in MB"}
    present = [model for model in MODELS if (rows.model == model).any()]
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for i, model in enumerate(present):
            of_length = rows[(rows.model == model) & rows[column].notna()].groupby("length")[column]
            ax.plot(of_length.mean(), label=model, **style(i))
            ax.fill_between(of_length.min().index, of_length.min(), of_length.max(), color=style(i)["color"], alpha=0.12)
        ax.set(xscale="log", xlabel="length of the sequence", ylabel=label)
    axes[0].axhline(1 / N_CUES, color="grey", linestyle="--", label="chance")
    axes[0].set_title("Recall of the first token")
    axes[2].legend(handles=axes[0].lines, fontsize=8)
    axes[1].set_title("Forward and backward pass: speed")
    axes[1].set_yscale("log")
    axes[2].set_title("Forward and backward pass: memory")
    axes[2].set_yscale("log")
    picture = save(figure, folder, "length_scaling")

    lengths = sorted(rows.length.unique())
    cells = []
    for model in present:
        for column, text in (("accuracy", "{:.2f}"), ("tokens_per_second", "{:,.0f}"), ("peak_mb", "{:,.1f}")):
            mean = rows[rows.model == model].groupby("length")[column].mean()
            cells.append([model, columns[column], *(text.format(mean[t]) if mean[t] == mean[t] else "" for t in lengths)])
    return f"{picture}\n\n{table(['memory', '', *(f'{t:,}' for t in lengths)], cells)}\n"


EXPERIMENT = Experiment(
    "length_scaling", "Speed, memory and recall in sequences of 64 to 65,536 steps, trained on 64", _runs, _report
)
