"""
Latency of one step of one environment: `predict`, `torch.export` and ONNX Runtime.

Needs the extra `export`. Prints a row per algorithm and memory, the median of all steps in the best of several rounds.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.sharing.export import ExportedPolicy, export_onnx, export_torch

MODELS = {
    "SHMPPO, SHM H=32": (SHMPPO, dict(memory_kwargs=dict(memory_size=32))),
    "SHMPPO, SHM H=128": (SHMPPO, dict(memory_kwargs=dict(memory_size=128))),
    "SHMPPO, GRU 128": (SHMPPO, dict(memory="gru", memory_kwargs=dict(hidden_size=128))),
    "SHMSAC, SHM H=32": (SHMSAC, dict(memory_kwargs=dict(memory_size=32))),
    "SHMSAC, GRU 128": (SHMSAC, dict(memory="gru", memory_kwargs=dict(hidden_size=128))),
}

Step = Callable[[np.ndarray, Any, np.ndarray], tuple[Any, Any]]


def steps(model: BaseAlgorithm, folder: Path) -> dict[str, tuple[Step, Any]]:
    """The ways to make a step, each with its first state."""
    import onnxruntime

    policy = ExportedPolicy(model)
    module = export_torch(model).module()
    export_onnx(model, folder / "policy.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options, providers=["CPUExecutionProvider"])
    state = policy.initial_state(1)
    arrays = tuple(tensor.numpy() for tensor in state)

    def by_predict(obs: np.ndarray, state: Any, start: np.ndarray) -> tuple[Any, Any]:
        return model.predict(obs, state, start, deterministic=True)

    def by_torch(obs: np.ndarray, state: Any, start: np.ndarray) -> tuple[Any, Any]:
        with th.no_grad():
            return module(th.from_numpy(obs), state, th.from_numpy(start))

    def by_onnx(obs: np.ndarray, state: Any, start: np.ndarray) -> tuple[Any, Any]:
        feed = {f"state.{i}": array for i, array in enumerate(state)}
        action, *after = session.run(None, {"obs": obs, "episode_start": start, **feed})
        return action, after

    return {"predict": (by_predict, None), "torch.export": (by_torch, state), "ONNX Runtime": (by_onnx, arrays)}


def median_ms(obs: np.ndarray, step: Step, state: Any, n_steps: int) -> float:
    """Median time of a step in milliseconds."""
    start = np.zeros(1, dtype=bool)
    times = []
    for _ in range(n_steps):
        before = time.perf_counter()
        _, state = step(obs, state, start)
        times.append(time.perf_counter() - before)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| model | predict, ms | torch.export, ms | ONNX Runtime, ms |\n|---|---|---|---|")
    for name, (algorithm, policy_kwargs) in MODELS.items():
        env = "CartPole-v1" if algorithm is SHMPPO else "PendulumNoVel-v0"
        model = algorithm("MlpSHMPolicy", env, seed=0, policy_kwargs=policy_kwargs)
        obs = model.observation_space.sample()[None]
        with TemporaryDirectory() as folder:
            ways = steps(model, Path(folder))
            rounds = [[median_ms(obs, *way, args.steps) for way in ways.values()] for _ in range(args.rounds)]
        print(f"| {name} | " + " | ".join(f"{best:.2f}" for best in np.min(rounds, axis=0)) + " |", flush=True)


if __name__ == "__main__":
    main()
