"""
Draw the learning curves of several runs of train_popgym.py, seeds of one setting together, and print a table of the results.

    python examples/plot_learning_curves.py logs/RepeatPreviousEasy-v0_* --output curves.png
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from stable_baselines3.common.monitor import load_results

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, <environment>_<setting>_<seed>")
parser.add_argument("--output", type=Path, default=Path("learning_curves.png"))
parser.add_argument("--points", type=int, default=100, help="points of a curve; each is the mean of the episodes in between")
args = parser.parse_args()

runs: dict[str, list[Path]] = defaultdict(list)
for folder in sorted(args.folders):
    environment, _, rest = folder.name.partition("_")
    setting, _, _ = rest.rpartition("_")
    if not (folder / "results.json").is_file():
        parser.error(f"{folder} is no folder of a run that has ended: it has no results.json")
    runs[setting].append(folder)


def interval(values: np.ndarray) -> np.ndarray:
    """Half the 95% confidence interval of the mean over seeds (Student's t), along the first axis."""
    n = len(values)
    return stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(values.shape[1:])


plt.figure(figsize=(7, 4.2))
print("| setting | seeds | steps | mean return after training, 95% interval | per seed | steps/s |\n|---|---|---|---|---|---|")
for setting, folders in runs.items():
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    edges = np.linspace(0, min(result["steps"] for result in results), args.points + 1)
    curves = []
    for folder in folders:
        episodes = load_results(str(folder))
        steps, returns = episodes["l"].cumsum().to_numpy(), episodes["r"].to_numpy()
        total, count = np.histogram(steps, edges, weights=returns)[0], np.histogram(steps, edges)[0]
        curves.append(np.divide(total, count, out=np.full(args.points, np.nan), where=count > 0))
    mean, half = np.mean(curves, axis=0), interval(np.array(curves))
    (line,) = plt.plot(edges[1:], mean, label=f"{setting}, {len(folders)} seeds")
    plt.fill_between(edges[1:], mean - half, mean + half, color=line.get_color(), alpha=0.2)
    scores = np.array([result["mean"] for result in results])
    spread = f" ± {interval(scores):.3f}" if len(scores) > 1 else ""
    speed = np.mean([result["steps"] / result["seconds"] for result in results])
    print(
        f"| {setting} | {len(scores)} | {results[0]['steps']:,} | {scores.mean():.3f}{spread} "
        f"| {', '.join(f'{score:.3f}' for score in scores)} | {speed:,.0f} |"
    )
plt.xlabel("environment steps")
plt.ylabel("episode return while training")
plt.title(environment)
plt.grid(alpha=0.3)
plt.legend()
plt.tight_layout()
plt.savefig(args.output, dpi=120)
print(f"\nPicture: {args.output}")
