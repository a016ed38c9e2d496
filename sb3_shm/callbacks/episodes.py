"""An episode as its memory saw it: what is read, and what counts. Pictures of it: ``pictures``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm.memory import SHM, Memory
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.inside import calls_of, look_inside
from sb3_shm.policies.stateful import StatefulPolicy
from sb3_shm.training.masks import WithMasks

if TYPE_CHECKING:
    pass

Frame = NDArray[np.uint8]


@dataclass
class Episode:
    """What happened in one episode, outside and inside. T steps, H memory size; the matrices are float64."""

    frames: list[Frame]
    """What the agent saw at each step as a picture, (height, width, 3) each; empty if the environment draws none."""
    actions: list[Any]
    rewards: list[float]
    calibration: th.Tensor
    """C_t, (T, H, H)."""
    update: th.Tensor
    """U_t, (T, H, H)."""
    matrix: th.Tensor
    """M_t, (T, H, H), after the step's update."""
    query: th.Tensor
    """q_t, (T, H)."""
    clip: float | None
    """Bound of \\|M\\|."""
    influence: NDArray[np.float64]
    """How far each past input counts now, (T, T), see :func:`influence`."""

    def __len__(self) -> int:
        return len(self.actions)


def record_episode(
    model: BaseAlgorithm,
    env: gym.Env[Any, Any],
    seed: int | None = None,
    normalize: VecNormalize | None = None,
    max_steps: int = 1000,
) -> Episode:
    """
    Play one episode with the deterministic policy, and keep what the acting memory does.

    :param model: an :class:`~sb3_shm.SHMPPO` or :class:`~sb3_shm.SHMSAC` that acts with an SHM
    :param env: an environment; one with ``render_mode="rgb_array"`` is filmed, too
    :param seed: seed of the episode
    :param normalize: statistics of the model's training, if it had VecNormalize
    :param max_steps: stop then, if the episode has not ended
    :return: the episode
    :raises ValueError: the model does not act with an SHM
    """
    check_in_range("max_steps", max_steps, low=1, integer=True)
    memory = model.policy.pi_trunk.memory if isinstance(model.policy, StatefulPolicy) else None
    if not isinstance(memory, SHM):
        raise ValueError(f"The memory that acts must be an SHM to be looked into, got {type(memory or model.policy).__name__}")
    acting = WithMasks(model, env)
    obs, _ = env.reset(seed=seed)
    frames: list[Frame] = []
    actions: list[Any] = []
    rewards: list[float] = []
    state: Any = None
    over = False
    with calls_of(memory) as calls:
        while not over and len(actions) < max_steps:
            if env.render_mode == "rgb_array":
                frames.append(np.asarray(env.render(), dtype=np.uint8))
            seen = obs if normalize is None else normalize.normalize_obs(obs)
            action, state = acting.predict(seen, state, np.array([state is None]), deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            actions.append(action)
            rewards.append(float(reward))
            over = terminated or truncated

    with th.no_grad():
        steps = [look_inside(memory, call.x, call.state, call.episode_start, call.context) for call in calls]
    inside = HadamardInputs(*(th.cat(vectors, dim=1).double().cpu() for vectors in zip(*steps, strict=True)))
    matrices = th.cat([call.state_after[0] for call in calls]).double().cpu()
    calibration, update = inside.calibration()[0], inside.update()[0]
    inputs = th.cat([call.x for call in calls], dim=1)
    drawn = [call.context for call in calls if call.context is not None]
    counts = influence(memory, inputs, th.cat(drawn, dim=1) if drawn else None)
    return Episode(frames, actions, rewards, calibration, update, matrices, inside.q[0], memory.clip, counts)


def influence(memory: Memory, x: th.Tensor, context: th.Tensor | None, n_exchanges: int = 4) -> NDArray[np.float64]:
    """
    Which past input counts now, by intervention: how far the memory's output at step t moves when the input at step s is
    exchanged with that of another step.

    :param memory: a memory
    :param x: its inputs in one episode, (1, T, D)
    :param context: what it drew, (1, T, context_size) uint8; None if it draws nothing
    :param n_exchanges: other steps that each input is exchanged with, drawn, always the same ones
    :return: (T, T): row t has the mean distance for each s <= t, divided by their sum (0 if nothing moves it)
    """
    t = x.shape[1]
    others = th.randint(t, (n_exchanges,), generator=th.Generator().manual_seed(0)).to(x.device)
    starts = th.zeros(n_exchanges, t, dtype=th.bool, device=x.device)
    context = None if context is None else context.expand(n_exchanges, -1, -1)
    unchanged = x.expand(n_exchanges, t, -1)
    distances = []
    with th.no_grad():
        y, _ = memory(unchanged, memory.initial_state(n_exchanges), starts, context)
        for s in range(t):
            changed = unchanged.clone()
            changed[:, s] = x[0, others]
            moved, _ = memory(changed, memory.initial_state(n_exchanges), starts, context)
            distances.append((moved - y).norm(dim=-1).mean(dim=0))
    of_step = th.stack(distances, dim=1).double().cpu().tril()
    shares: NDArray[np.float64] = (of_step / of_step.sum(dim=1, keepdim=True).clamp(min=1e-30)).numpy()
    return shares


def contributions(episode: Episode) -> th.Tensor:
    """
    What each past step s adds to what is read at step t. As h_t = M_t q_t, and M_t is what is left of all updates::

        h_t = Σ_s (U_s ⊙ C_{s+1} ⊙ ... ⊙ C_t) q_t

    Where the bound of \\|M\\| cuts an entry off, all updates in it shrink by the same factor, so that the sum stays exact.

    :param episode: an episode of T steps
    :return: the parts of h_t by step t and past step s, (T, T, H) float64, 0 where s > t
    """
    t, h = episode.query.shape
    parts = episode.query.new_zeros(t, t, h)
    left = th.zeros_like(episode.update)  # of each update, after the calibrations so far
    for i in range(t):
        left[:i] *= episode.calibration[i]
        left[i] = episode.update[i]
        if episode.clip is not None:
            unbounded = left[: i + 1].sum(dim=0)
            left[: i + 1] *= th.where(unbounded.abs() > episode.clip, episode.clip / unbounded.abs(), 1)
        parts[i, : i + 1] = left[: i + 1] @ episode.query[i]
    return parts


def read_out_weights(episode: Episode) -> NDArray[np.float64]:
    """
    Which past step is remembered now: the norm of each part of :func:`contributions` by that of all parts.

    :param episode: an episode of T steps
    :return: (T, T): row t are the shares of the steps s <= t, which sum to 1 (0 if nothing is read)
    """
    norms = contributions(episode).norm(dim=-1)
    shares: NDArray[np.float64] = (norms / norms.sum(dim=1, keepdim=True).clamp(min=1e-30)).numpy()
    return shares
