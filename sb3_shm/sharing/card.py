"""What a shared model says of itself: results, learning curve, video, and the page that shows them."""

import json
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.files import save_figure
from sb3_shm.policies.predictor import StatefulPredictor
from sb3_shm.sharing.manifest import Model
from sb3_shm.training.masks import WithMasks

CURVE, VIDEO = "learning_curve.png", "replay.mp4"


def evaluate(model: Model, env: VecEnv, n_eval_episodes: int) -> dict[str, Any]:
    """
    :param model: a model
    :param env: environments as the model wants them
    :param n_eval_episodes: number of episodes, at least 1
    :return: what results.json holds, under the names that rl-zoo3 uses
    """
    returns: Any
    lengths: Any
    returns, lengths = evaluate_policy(
        WithMasks(model, env), env, n_eval_episodes, deterministic=True, return_episode_rewards=True
    )
    return {
        "mean_reward": float(np.mean(returns)),
        "std_reward": float(np.std(returns)),
        "is_deterministic": True,
        "n_eval_episodes": len(returns),
        "eval_datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mean_ep_length": float(np.mean(lengths)),
        "episode_rewards": [float(episode) for episode in returns],
    }


def plot_learning_curve(logs: Path, path: Path) -> None:
    """
    Draw the evaluations during the training (``evaluations.npz``) or, without them, the training's own episodes
    (``*.monitor.csv``).

    :param logs: folder with one of these
    :param path: picture to write
    :raises ValueError: the folder holds neither
    :raises ImportError: matplotlib or pandas is not installed
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, and no backend of the user's changed
    except ImportError as error:
        raise ImportError("Learning curves need further packages: pip install 'sb3-shm[plots]'") from error
    if (logs / "evaluations.npz").is_file():
        with np.load(logs / "evaluations.npz") as data:
            steps, results = data["timesteps"], data["results"]
        mean, std = results.mean(axis=1), results.std(axis=1)
        label = f"return, mean and standard deviation of {results.shape[1]} evaluation episodes"
    elif any(logs.glob("*monitor.csv")):
        frame = load_results(str(logs))
        if frame.empty:
            raise ValueError(f"The monitor files in {logs} hold no episode")
        window = max(1, min(100, len(frame) // 10))
        rolling = frame["r"].rolling(window)
        steps = frame["l"].cumsum().to_numpy()[window - 1 :]
        mean, std = (values.to_numpy()[window - 1 :] for values in (rolling.mean(), rolling.std(ddof=0)))
        label = f"return, mean and standard deviation of {window} training episodes"
    else:
        raise ValueError(f"{logs} must hold evaluations.npz or *.monitor.csv, of an EvalCallback or a Monitor")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, mean - std, mean + std, alpha=0.25, linewidth=0)
    axes.plot(steps, mean, marker="." if len(steps) < 30 else None)
    axes.set(xlabel="environment steps", ylabel=label.partition(",")[0], title=label)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def record_video(model: Model, env: VecEnv, length: int, path: Path) -> None:
    """
    Film the first environment; a warning instead if the environment has no pictures, or moviepy is not installed.

    :param model: a model
    :param env: environments as the model wants them, made with ``render_mode="rgb_array"``
    :param length: number of steps
    :param path: film to write
    """
    try:
        from moviepy import ImageSequenceClip  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        warnings.warn("No video: it needs moviepy, pip install moviepy", stacklevel=3)
        return
    if env.render_mode != "rgb_array":
        warnings.warn(
            f'No video: the environment must have the render_mode "rgb_array", not {env.render_mode!r}', stacklevel=3
        )
        return
    predictor, done, frames = StatefulPredictor(WithMasks(model, env)), None, []
    obs: Any = env.reset()
    for _ in range(length):
        frames.append(env.get_images()[0])
        obs, _, done, _ = env.step(predictor.act(obs, done))
    fps = env.get_attr("metadata")[0].get("render_fps", 30)
    ImageSequenceClip([frame for frame in frames if frame is not None], fps=fps).write_videofile(str(path), logger=None)


def _environment_module(env_id: str) -> str:
    entry_point: Any = gym.registry[env_id].entry_point if env_id in gym.registry else "gymnasium"
    module: str = entry_point if isinstance(entry_point, str) else entry_point.__module__
    return module.partition(":")[0]


def _environment_package(env_id: str) -> str | None:
    """The package that registers the environment, unless this one or Gymnasium does."""
    package = _environment_module(env_id).partition(".")[0]
    return None if package in ("gymnasium", "sb3_shm", "__main__") else package


def usage_code(repo_id: str | None, environment: dict[str, Any]) -> str:
    """
    :param repo_id: "user/name" of the model on the Hub, None for a model in this folder
    :param environment: id and further arguments, ``dict(id=..., kwargs=...)``
    :return: a program that loads the model and evaluates it
    """
    kwargs = f", env_kwargs={environment['kwargs']!r}" if environment["kwargs"] else ""
    module, load, place = ("sb3_shm", "load_from_hub", repo_id)
    if repo_id is None:
        module, load, place = ("sb3_shm.sharing.folder", "load_model_folder", ".")
    package = _environment_package(environment["id"])
    register = f"import {package}  # registers the environment\n" if package else ""
    return f"""\
{register}from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from {module} import {load}

env = make_vec_env({environment["id"]!r}{kwargs})
model = {load}({place!r}, env=env)
print(evaluate_policy(model, model.get_env(), n_eval_episodes=10))
"""


def write_card(folder: Path, repo_id: str | None, manifest: dict[str, Any], results: dict[str, Any], algorithm: str) -> None:
    """
    Write README.md with the metadata that the Hub reads.

    :param folder: the model's folder; a learning curve and a video that are in it are shown
    :param repo_id: "user/name" of the model on the Hub, None for a model in this folder
    :param manifest: what ``sb3_shm.json`` says
    :param results: what ``results.json`` says
    :param algorithm: name of the algorithm's class
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    environment = manifest["environment"]
    env_id = environment["id"]
    reward = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    metadata = ModelCardData(
        model_name=algorithm,
        library_name="sb3-shm",
        pipeline_tag="reinforcement-learning",
        tags=[env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-shm", "memory"],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=env_id,
                dataset_name=env_id,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=reward,
            )
        ],
    )
    settings = {name: manifest[name] for name in ("policy", "policy_kwargs", "arguments", "n_envs", "num_timesteps")}
    versions = ", ".join(
        f"{name} {version}" for name, version in {"sb3-shm": manifest["version"], **manifest["versions"]}.items()
    )
    curve = f"\n![Learning curve]({CURVE})\n" if (folder / CURVE).is_file() else ""
    video = f'\n<video src="{VIDEO}" controls></video>\n' if (folder / VIDEO).is_file() else ""
    normalised = " The observations are normalised with the statistics of the training." * bool(manifest["vec_normalize"])
    extras = "hub,popgym" if _environment_module(env_id) == "sb3_shm.envs.popgym.single" else "hub"
    arguments = f" with `{json.dumps(environment['kwargs'])}`" if environment["kwargs"] else ""
    package = _environment_package(env_id)
    packages = f" --gym-packages {package}" if package else ""
    go_on, fetch, logs, where = "", "", ".", "    # in the folder of this file"
    if repo_id is not None:
        go_on = f"""\
 To go on with the
training, with the state of the optimizer, `load_from_hub({repo_id!r}, env=env, trust=True)` unpickles `model.zip`."""
        fetch, logs, where = f"sb3-shm hub load {repo_id} -f logs\n", "logs", ""
    body = f"""
# {algorithm} on {env_id}

A reinforcement learning agent with memory, trained for {manifest["num_timesteps"]:,} steps by sb3-shm, which gives
[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) recurrent PPO and SAC with the Stable Hadamard Memory
([arXiv 2410.10132](https://arxiv.org/abs/2410.10132)) or other memories. It acts in `{env_id}`{arguments}.{normalised}

The deterministic policy reaches:

| evaluated | episodes | return, mean +/- standard deviation | mean length |
|---|---|---|---|
| {results["eval_datetime"][:10]} | {results["n_eval_episodes"]} | {reward} | {results["mean_ep_length"]:.1f} |
{curve}{video}
## Use

In a clone of sb3-shm's repository:

```bash
pip install -c constraints.txt torch
pip install -c constraints.txt -e '.[{extras}]'
```

```python
{usage_code(repo_id, environment)}```

Nothing is unpickled: the weights are read from `model.safetensors`, everything else from `sb3_shm.json`.{go_on}

With rl-zoo3's commands:

```bash
pip install -c constraints.txt -e '.[{extras},zoo]'    # in the clone
{fetch}python -m sb3_shm.zoo enjoy --algo {manifest["algorithm"]} --env {env_id}{packages} -f {logs}{where}
```

## Made with

{versions}

<details><summary>Settings</summary>

```json
{json.dumps(settings, indent=2)}
```

</details>
"""
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}").save(folder / "README.md")
