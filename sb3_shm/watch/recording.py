"""One episode, recorded: what the agent saw and did, its memory after each step, and what made it act so. Any memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import BernoulliDistribution, CategoricalDistribution, MultiCategoricalDistribution
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.callbacks.episodes import Frame, drawn_in, exchange_inputs, inside_of, read_out_weights
from sb3_shm.memory import SHM
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.inside import calls_of
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC
from sb3_shm.shm_sac.body import Reading
from sb3_shm.training.masks import check_masks, mask_sizes, masks_of
from sb3_shm.watch.states import Part, about, describe, parts_of

Floats = NDArray[np.floating[Any]]


@dataclass
class Recording:
    """What happened in one episode of T steps."""

    agent: str
    """Algorithm and memory, in words."""
    about_memory: str
    """What there is to see of this memory, and what is not."""
    over: bool
    """Whether the episode ended; False if the recording stopped first."""
    frames: list[Frame]
    """The environment's picture before each step, (height, width, 3) each; empty if it draws none."""
    no_picture: str
    """Why there are no frames."""
    observations: list[dict[str, Any]]
    """What the policy was given, by name; the name is empty if the observation is no dictionary."""
    actions: list[Any]
    rewards: list[float]
    values: Floats
    """What the agent expects from here on: SHMPPO's value, the lowest Q of SHMSAC's critics for the action; (T,)."""
    options: list[Floats] | None
    """Probabilities of the options of each choice, (T, n) each; None if actions are a Box."""
    memory: list[Part]
    """What the memory that acts holds after each step."""
    counts: Floats
    """How far the action at step t moves when what was seen at step s is exchanged, (T, T); :func:`influence_on_action`."""
    reads: Floats | None
    """Of an SHM, the share of what is read at step t that step s wrote, (T, T)."""

    def __len__(self) -> int:
        return len(self.actions)


def record(model: SHMPPO | SHMSAC, env: VecEnv, max_steps: int = 200) -> Recording:
    """
    Play one episode with the deterministic policy, and keep what happens.

    :param model: a trained model
    :param env: one environment as the model was trained in, with its VecNormalize and frames stacked; if its render mode is
        "rgb_array" its pictures are kept
    :param max_steps: stop then, if the episode has not ended; 1 or more
    :return: the episode
    :raises ValueError: another model, several environments or no VecEnv, or a number of steps out of range
    """
    if not isinstance(model, SHMPPO | SHMSAC):
        raise ValueError(f"The agent must be an SHMPPO or an SHMSAC, got a {type(model).__name__}")
    if not isinstance(env, VecEnv):
        raise ValueError(f"env must be a VecEnv, got {env}: write DummyVecEnv([lambda: env])")
    if env.num_envs != 1:
        raise ValueError(f"env must be one environment, got {env.num_envs}")
    check_in_range("max_steps", max_steps, low=1, integer=True)
    trunk = model.policy.pi_trunk
    ask_masks = masks_of(env)
    seen: list[Any] = []
    frames: list[Frame] = []
    no_picture = ""
    actions: list[Any] = []
    rewards: list[float] = []
    masks: list[NDArray[np.bool_]] = []
    obs: Any = env.reset()
    state: Any = None
    over = False
    with calls_of(trunk) as calls, calls_of(trunk.memory) as inner_calls:
        while not over and len(actions) < max_steps:
            if env.render_mode is None:
                no_picture = "The environment draws no picture"
            elif not no_picture:
                try:
                    frame = np.array(env.get_images()[0], dtype=np.uint8)
                    if frame.ndim != 3 or frame.shape[-1] != 3:
                        raise ValueError(f"it has the shape {frame.shape}, not (height, width, 3)")
                    frames.append(frame)
                except Exception as error:  # for example a package that it draws with: all the rest can be shown
                    no_picture = f"The environment draws no picture: {error}"
                    frames = []
            given: dict[str, Any] = {name: check_masks(mask, model.action_space, 1) for name, mask in ask_masks().items()}
            masks += given.values()
            action, state = model.predict(obs, state, np.array([state is None]), deterministic=True, **given)
            seen.append(deepcopy(obs))
            obs, reward, dones, _ = env.step(action)
            actions.append(action[0])
            rewards.append(float(reward[0]))
            over = bool(dones[0])

    observations = [part if isinstance(part, dict) else {"": part} for part in seen]
    stacked = {key: np.concatenate([part[key] for part in observations]) for key in observations[0]}
    is_dict = isinstance(seen[0], dict)
    legal = th.as_tensor(np.concatenate(masks), device=model.device) if masks else None
    features, context = th.cat([call.x for call in calls], dim=1), drawn_in(calls)

    def act(inputs: th.Tensor) -> th.Tensor:
        n, t = inputs.shape[:2]
        starts = _starts(n, t, inputs.device)
        own = None if context is None else context.expand(n, -1, -1)
        y, _ = trunk(inputs, trunk.initial_state(n), starts, own)
        return _choices(model, Reading(inputs, y), None if legal is None else legal.repeat(n, 1))

    with th.no_grad():
        choices = act(features)
        tensors, _ = model.policy.obs_to_tensor(stacked if is_dict else stacked[""])
        values = _values(model, tensors, np.stack(actions), legal)
    memory = trunk.memory
    is_box = isinstance(model.action_space, spaces.Box)
    return Recording(
        agent=f"{type(model).__name__}, {describe(memory)}",
        about_memory=f"{about(memory)} {_whose(model)}".strip(),
        over=over,
        frames=frames,
        no_picture=no_picture,
        observations=[{key: value[0] for key, value in part.items()} for part in observations],
        actions=actions,
        rewards=rewards,
        values=values.cpu().numpy(),
        options=None if is_box else [p.cpu().numpy() for p in choices[0].split(mask_sizes(model.action_space), dim=-1)],
        memory=parts_of(memory, [call.state_after for call in inner_calls]),
        counts=influence_on_action(act, features, model.action_space),
        reads=read_out_weights(inside_of(memory, inner_calls)) if isinstance(memory, SHM) else None,
    )


def influence_on_action(
    act: Callable[[th.Tensor], th.Tensor], x: th.Tensor, action_space: spaces.Space[Any], n_exchanges: int = 4
) -> Floats:
    """
    What each past step contributes to an action, by intervention: how far the action moves when what was seen at step s is
    exchanged with what was seen at another step. 0: not at all. 1: as far as can be, from one action for certain to another
    for certain, or from one bound of a Box to the other; the mean over several choices or dimensions.

    :param act: from features, (N, T, D), to probabilities of all options, or Box actions, (N, T, K)
    :param x: the features of one episode, (1, T, D)
    :param action_space: the action space; what has no bounds in it counts in its own units
    :param n_exchanges: other steps that each is exchanged with, drawn, always the same ones
    :return: (T, T): row t has the mean for each s <= t, 0 for s > t
    """
    if isinstance(action_space, spaces.Box):
        reach = np.where(np.isfinite(action_space.high - action_space.low), action_space.high - action_space.low, 1.0)
        scale = th.as_tensor(1 / (reach.reshape(-1) * reach.size), dtype=x.dtype, device=x.device)
        return exchange_inputs(lambda features: act(features) * scale, x, n_exchanges, order=1)
    # Half the sum of what probabilities change by is their total variation
    return exchange_inputs(act, x, n_exchanges, order=1) / (2 * len(mask_sizes(action_space)))


def _starts(n: int, t: int, device: th.device) -> th.Tensor:
    """:return: an episode from the first step on, (n, t) bool"""
    starts = th.zeros(n, t, dtype=th.bool, device=device)
    starts[:, 0] = True
    return starts


def _choices(model: SHMPPO | SHMSAC, reading: Reading, legal: th.Tensor | None) -> th.Tensor:
    """:return: probabilities of all options, side by side, or the most likely Box actions, (N, T, K)"""
    shape = reading.memory.shape[:2]
    policy: Any = model.policy
    space: Any = model.action_space
    if isinstance(model, SHMSAC):
        if policy.actor.is_discrete:
            _, _, probabilities = policy.actor.options(reading, legal)
            return probabilities  # type: ignore[no-any-return]
        actions = policy.actor(reading, deterministic=True)
        low, high = (th.as_tensor(bound.reshape(-1), device=actions.device) for bound in (space.low, space.high))
        return low + (actions + 1) / 2 * (high - low)  # type: ignore[no-any-return]
    latent = policy.mlp_extractor.forward_actor(reading.memory.flatten(0, 1))
    distribution = policy._get_action_dist_from_latent(latent, legal)
    match distribution:
        case CategoricalDistribution():
            result = distribution.distribution.logits.softmax(dim=-1)
        case MultiCategoricalDistribution():
            result = th.cat([choice.logits.softmax(dim=-1) for choice in distribution.distribution], dim=-1)
        case BernoulliDistribution():
            p = distribution.distribution.probs
            result = th.stack((1 - p, p), dim=-1).flatten(1)
        case _:
            result = distribution.mode()
            low, high = (th.as_tensor(bound.reshape(-1), device=result.device) for bound in (space.low, space.high))
            result = low + (result + 1) / 2 * (high - low) if policy.squash_output else th.clamp(result, low, high)
    return result.view(*shape, -1)


def _values(model: SHMPPO | SHMSAC, obs: Any, actions: NDArray[Any], legal: th.Tensor | None) -> th.Tensor:
    """:return: what the agent expects at each step, (T,)"""
    policy: Any = model.policy
    t = len(actions)
    starts = _starts(1, t, model.device)
    if isinstance(model, SHMPPO):
        drawn = [trunk.draw_context(trunk.initial_state(1), starts, deterministic=True) for trunk in policy.trunks]
        contexts = [context for context in drawn if context is not None]
        sequence = {key: part[None] for key, part in obs.items()} if isinstance(obs, dict) else obs[None]
        values, _, _ = policy.evaluate_actions(
            sequence,
            th.as_tensor(actions, device=model.device)[None],
            episode_starts=starts,
            context=th.cat(contexts, dim=-1) if contexts else None,
            action_masks=None if legal is None else legal[None],
        )
        return values[0]  # type: ignore[no-any-return]
    body = policy.critic.body
    state = body.trunk.initial_state(1)
    reading, _ = body(obs, state, starts, body.trunk.draw_context(state, starts, deterministic=True))
    taken = actions if policy.actor.is_discrete else policy.scale_action(actions)
    q_values = policy.critic.of_taken(reading, th.as_tensor(taken, device=model.device).view(1, t, -1))
    return q_values.min(dim=0).values[0]  # type: ignore[no-any-return]


def _whose(model: SHMPPO | SHMSAC) -> str:
    """:return: whose memory is shown, if there is another"""
    policy: Any = model.policy
    if isinstance(model, SHMPPO):
        return "" if len(policy.trunks) == 1 else "This is the memory that acts; the value has another, which is not shown."
    if policy.actor.body is None:
        return "Actor and critics read this memory."
    return "This is the actor's memory; the critics have another, which is not shown."
