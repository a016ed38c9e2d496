"""What the page shows of one step of a recording, as XHTML."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from sb3_shm.watch.marks import bars, columns, heat_map, image, line, number
from sb3_shm.watch.recording import Recording

# Numbers of an observation that are drawn one by one; more become a heat map
_MOST_BARS = 24
# Past steps of which the picture is shown, those that count most
_N_CAUSES = 3

STYLE = """
.watch { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.watch section { border: 1px solid #8884; border-radius: 8px; padding: 10px 14px; min-width: 0; }
.watch section.wide { grid-column: 1 / -1; }
.watch h3 { margin: 0 0 6px; font-size: 1rem; }
.watch p { margin: 4px 0; font-size: 0.85rem; }
.watch figure { margin: 0 0 10px; } .watch figcaption { font-size: 0.8rem; }
.watch img { display: inline-block; margin: 0; }
.watch img.picture { max-width: 100%; max-height: 300px; min-height: 96px; image-rendering: pixelated; }
.watch img.heat { image-rendering: pixelated; border: 1px solid #8884; }
.watch img.scale { width: 120px; height: 10px; vertical-align: middle; }
.watch img.cause { height: 72px; image-rendering: pixelated; display: block; }
.watch .legend { font-size: 0.75rem; } .watch .causes { display: flex; gap: 14px; font-size: 0.8rem; }
.watch table.bars { width: 100%; margin: 0; border: 0; border-collapse: collapse; font-size: 0.8rem; }
.watch table.bars th { text-align: right; font-weight: normal; padding-right: 6px; white-space: nowrap; }
.watch table.bars :is(td, th, tr, tbody) { border: 0; padding-top: 1px; padding-bottom: 1px; }
.watch td.track { width: 70%; background: #8882; padding: 0; } .watch .bar { height: 11px; }
.watch td.signed { background: linear-gradient(#8888, #8888) center / 1px 100% no-repeat #8882; }
.watch td.number { padding-left: 6px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.watch svg.chart { width: 100%; display: block; } .watch svg text { font-size: 11px; fill: currentColor; }
.watch svg .field { fill: #8881; }
"""


def show_summary(recording: Recording, title: str) -> str:
    """
    :param recording: an episode
    :param title: of what
    :return: a line about the episode as a whole
    """
    end = "" if recording.over else " (then the recording stopped: --steps)"
    return (
        f"<p><b>{escape(title)}</b> · {escape(recording.agent)} · return {number(sum(recording.rewards))} in "
        f"{len(recording)} steps{end}</p>"
    )


def show_step(recording: Recording, step: int) -> str:
    """
    :param recording: an episode of T steps
    :param step: from 0 to T - 1
    :return: what the agent saw, held and did at this step, and which past steps made it do so
    :raises ValueError: there is no such step
    """
    if not 0 <= step < len(recording):
        raise ValueError(f"step must be from 0 to {len(recording) - 1}, got {step}")
    parts = [
        _section("What the agent sees", _seen(recording, step)),
        _section("Its memory after this step", _memory(recording, step)),
        _section("What it does", _action(recording, step)),
        _section("What each past step contributes to this action", _counts(recording, step), wide=True),
    ]
    if recording.reads is not None:
        text = "<p>Share of what is read from the matrix now that each step wrote. What is read need not count.</p>"
        chart = columns(recording.reads[step], step, max(float(recording.reads[step].max()), 1e-9), "share")
        parts.append(_section("Which past step is read", text + chart, wide=True))
    values = line(recording.values, step, "expected return from each step on")
    parts.append(_section("What the agent expects from here on (value), over the episode", values, wide=True))
    return f'<div class="watch" data-step="{step}"><style>{STYLE}</style>{"".join(parts)}</div>'


def _section(title: str, content: str, wide: bool = False) -> str:
    css = ' class="wide"' if wide else ""
    return f"<section{css}><h3>{escape(title)}</h3>{content}</section>"


def _seen(recording: Recording, step: int) -> str:
    if recording.frames:
        picture = image(recording.frames[step], f"the environment before step {step}")
    else:
        picture = f"<p>{escape(recording.no_picture)}</p>"
    return picture + "".join(_observation(name, value) for name, value in recording.observations[step].items())


def _observation(name: str, value: Any) -> str:
    array = np.asarray(value)
    title = f"observation {name}".strip()
    if array.dtype == np.uint8 and array.ndim == 3:
        pixels = array if array.shape[-1] in (1, 3) else np.moveaxis(array, 0, -1)
        if pixels.shape[-1] in (1, 3):
            return image(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), title)
    flat = array.astype(np.float64).reshape(-1)
    top = max(float(np.abs(flat).max(initial=0)), 1e-9)
    caption = f"<figcaption>{escape(title)}, as the policy gets it</figcaption>"
    if flat.size <= _MOST_BARS:
        return f"<figure>{caption}{bars(flat, [str(i) for i in range(flat.size)], top, signed=True)}</figure>"
    return heat_map(flat.reshape(array.shape[0], -1) if array.ndim > 1 else flat[None], top, title)


def _memory(recording: Recording, step: int) -> str:
    pictures = []
    for part in recording.memory:
        table = part.tables[step]
        # Of this step alone, as what a memory holds may grow a thousand times; and one outlier must not make the rest pale
        pictures.append(heat_map(table, max(float(np.nanquantile(np.abs(table), 0.995)), 1e-6), part.name))
    return f"{''.join(pictures)}<p>{escape(recording.about_memory)}</p>"


def _action(recording: Recording, step: int) -> str:
    action = np.asarray(recording.actions[step]).reshape(-1)
    if recording.options is None:
        top = max(float(np.abs(recording.actions).max()), 1e-9)
        shown = bars(action.astype(np.float64), [f"action {i}" for i in range(action.size)], top, signed=True)
    else:
        many = len(recording.options) > 1
        shown = "".join(
            (f"<p>choice {i}</p>" if many else "")
            + bars(of_choice[step], [f"action {j}" for j in range(of_choice.shape[1])], 1.0, int(action[i]))
            for i, of_choice in enumerate(recording.options)
        )
        shown = f"<p>Probabilities; it takes the one with the mark.</p>{shown}"
    rewards = recording.rewards
    return (
        f"{shown}<p>reward <b>{number(rewards[step])}</b> · return so far <b>{number(sum(rewards[: step + 1]))}</b> · "
        f"value <b>{number(float(recording.values[step]))}</b></p>"
    )


def _counts(recording: Recording, step: int) -> str:
    counts = recording.counts[step]
    text = (
        "<p>How far the action moves when what was seen at a step is exchanged with what was seen at others: 0 not at all, 1 "
        f"from one {'bound' if recording.options is None else 'certain action'} to another.</p>"
    )
    chart = columns(counts, step, max(float(recording.counts.max()), 1e-9), "moves the action by")
    most = [s for s in np.argsort(-counts[: step + 1], kind="stable")[:_N_CAUSES].tolist() if counts[s] > 0.01]
    if not most:
        return f"{text}{chart}<p>No step counts: it would act like this whatever it had seen.</p>"
    causes = []
    for s in most:
        picture = image(recording.frames[s], f"step {s}", "cause", 100) if recording.frames else ""
        when = "now" if s == step else f"step {s}, {step - s} ago"
        causes.append(f"<div>{picture}{when}: {number(float(counts[s]))}</div>")
    return (
        f'{text}{chart}<p>What counts most, each as it looked at its own step:</p><div class="causes">{"".join(causes)}</div>'
    )
