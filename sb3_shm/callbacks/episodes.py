"""An episode as its memory saw it: what is read, and what counts. Pictures of it: ``pictures``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_shm.memory import SHM, Memory
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.inside import Call, calls_of, look_inside
from sb3_shm.memory.stack import kind_of
from sb3_shm.policies.stateful import StatefulPolicy
from sb3_shm.training.masks import WithMasks

Frame = NDArray[np.uint8]


@dataclass
class Inside:
    """What happened in a Stable Hadamard Memory in one episode. T steps, H memory size; everything is float64."""

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


@dataclass
class Episode(Inside):
    """What happened in one episode, outside and inside."""

    frames: list[Frame]
    """What the agent saw at each step as a picture, (height, width, 3) each; empty if the environment draws none."""
    actions: list[Any]
    rewards: list[float]
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
    :param normalize: statistics of the model's training, if it had VecNormalize; None for those of the model's own
        environment, which a model that was loaded without one does not have
    :param max_steps: stop then, if the episode has not ended
    :return: the episode
    :raises ValueError: the model does not act with an SHM of one layer, or a VecEnv
    """
    check_in_range("max_steps", max_steps, low=1, integer=True)
    memory = model.policy.pi_trunk.memory if isinstance(model.policy, StatefulPolicy) else None
    if not isinstance(memory, SHM):
        got = type(model.policy).__name__ if memory is None else kind_of(memory)
        raise ValueError(f"The memory that acts must be an SHM of one layer (memory_layers=1) to be looked into, got {got}")
    if isinstance(env, VecEnv):
        raise ValueError("env must be a single gymnasium environment, got a VecEnv: give what it was made of, gym.make(...)")
    normalize = normalize or model.get_vec_normalize_env()
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

    x = th.cat([call.x for call in calls], dim=1)
    counts = influence(memory, x, drawn_in(calls))
    return Episode(**vars(inside_of(memory, calls)), frames=frames, actions=actions, rewards=rewards, influence=counts)


def drawn_in(calls: Sequence[Call]) -> th.Tensor | None:
    """
    :param calls: of a memory, one after the other
    :return: what it drew in all of them, (N, T, context_size); None if it draws nothing
    """
    drawn = [call.context for call in calls if call.context is not None]
    return th.cat(drawn, dim=1) if drawn else None


def inside_of(memory: SHM, calls: Sequence[Call]) -> Inside:
    """
    :param memory: a memory
    :param calls: its calls in one episode, a step each
    :return: what happened in it
    """
    with th.no_grad():
        steps = [look_inside(memory, call.x, call.state, call.episode_start, call.context) for call in calls]
    vectors = HadamardInputs(*(th.cat(parts, dim=1).double().cpu() for parts in zip(*steps, strict=True)))
    matrix = th.cat([call.state_after[0] for call in calls]).double().cpu()
    return Inside(vectors.calibration()[0], vectors.update()[0], matrix, vectors.q[0], memory.clip)


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

    def output(inputs: th.Tensor) -> th.Tensor:
        n, t = inputs.shape[:2]
        starts = th.zeros(n, t, dtype=th.bool, device=inputs.device)
        own = None if context is None else context.expand(n, -1, -1)
        y, _ = memory(inputs, memory.initial_state(n), starts, own)
        return y

    distances = exchange_inputs(output, x, n_exchanges)
    shares: NDArray[np.float64] = distances / np.maximum(distances.sum(axis=1, keepdims=True), 1e-30)
    return shares


def exchange_inputs(
    react: Callable[[th.Tensor], th.Tensor], x: th.Tensor, n_exchanges: int = 4, order: float = 2
) -> NDArray[np.float64]:
    """
    How far a reaction at step t moves when the input at step s is exchanged with that of another step.

    :param react: from inputs, (N, T, D), to the reaction at each step, (N, T, K)
    :param x: the inputs of one episode, (1, T, D)
    :param n_exchanges: other steps that each input is exchanged with, drawn, always the same ones from it on
    :param order: of the norm of what it moves by
    :return: (T, T): row t has the mean distance for each s <= t, 0 for s > t
    """
    t = x.shape[1]
    generator = th.Generator().manual_seed(0)
    offsets = th.randint(1, max(t, 2), (n_exchanges,), generator=generator).to(x.device)  # never to the step itself
    unchanged = x.expand(n_exchanges, t, -1)
    distances = []
    with th.no_grad():
        y = react(unchanged)
        for s in range(t):
            changed = unchanged.clone()
            changed[:, s] = x[0, (s + offsets) % t]
            distances.append((react(changed) - y).norm(p=order, dim=-1).mean(dim=0))
    of_step: NDArray[np.float64] = th.stack(distances, dim=1).double().cpu().tril().numpy()
    return of_step


def _parts(inside: Inside) -> Iterator[th.Tensor]:
    """:return: for each step t the parts of h_t by past step, (t + 1, H)"""
    left = th.zeros_like(inside.update)  # of each update, after the calibrations so far
    for i in range(len(left)):
        left[:i] *= inside.calibration[i]
        left[i] = inside.update[i]
        if inside.clip is not None:
            unbounded = left[: i + 1].sum(dim=0)
            left[: i + 1] *= th.where(unbounded.abs() > inside.clip, inside.clip / unbounded.abs(), 1)
        yield left[: i + 1] @ inside.query[i]


def contributions(inside: Inside) -> th.Tensor:
    """
    What each past step s adds to what is read at step t. As h_t = M_t q_t, and M_t is what is left of all updates::

        h_t = Σ_s (U_s ⊙ C_{s+1} ⊙ ... ⊙ C_t) q_t

    Where the bound of \\|M\\| cuts an entry off, all updates in it shrink by the same factor, so that the sum stays exact.

    :param inside: an episode of T steps
    :return: the parts of h_t by step t and past step s, (T, T, H) float64, 0 where s > t
    """
    t, h = inside.query.shape
    parts = inside.query.new_zeros(t, t, h)
    for i, of_step in enumerate(_parts(inside)):
        parts[i, : i + 1] = of_step
    return parts


def read_out_weights(inside: Inside) -> NDArray[np.float64]:
    """
    Which past step is remembered now: the norm of each part of :func:`contributions` by that of all parts.

    :param inside: an episode of T steps
    :return: (T, T): row t are the shares of the steps s <= t, which sum to 1 (0 if nothing is read)
    """
    shares = np.zeros((len(inside.query),) * 2)
    for i, of_step in enumerate(_parts(inside)):
        norms = of_step.norm(dim=-1)
        shares[i, : i + 1] = (norms / norms.sum().clamp(min=1e-30)).numpy()
    return shares
