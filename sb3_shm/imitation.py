"""Learning from demonstrations: behaviour cloning, before an algorithm goes on by itself."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.utils.rnn import pad_sequence

from sb3_shm.memory.checks import check_in_range
from sb3_shm.policies.sequences import flatten_sequences
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC
from sb3_shm.training.steps import LARGEST_REWARD, check_finite, check_keys, check_range


class _Read(NamedTuple):
    """An episode as the environment gives it."""

    obs: Any  # (T, ...), or a dict of such
    actions: np.ndarray  # (T, ...)
    returns: np.ndarray | None  # (T,), if they are known


class _Episode(NamedTuple):
    """An episode as the policy reads it."""

    obs: dict[str, th.Tensor]  # (T, ...) each, under "" if the observation is no dictionary
    actions: th.Tensor  # (T, ...)
    returns: th.Tensor | None  # (T,), if they are known


def clone(
    model: SHMPPO | SHMSAC,
    episodes: Iterable[Any],
    n_epochs: int = 10,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    validation_fraction: float = 0.1,
    max_grad_norm: float = 1.0,
    verbose: int = 0,
) -> list[dict[str, float]]:
    """
    Train a model's policy to do what was done in episodes: it maximises the log probabilities of their actions, where the
    memory reads each episode from its first step on. ``model.learn()`` goes on from there.

    Of SHMPPO the values are learned, too, from episodes with rewards that ended by themselves; without values PPO's first
    updates would spoil a memory that they share with the policy; with a VecNormalize that normalises rewards (``norm_reward``,
    its default) they are not learned, as then values are of normalised rewards. SHMSAC's critics are not touched.

    :param model: its policy is trained, in place
    :param episodes: at least two, each from its first step on: objects with ``obs``, ``acts``, ``terminal`` and perhaps
        ``rews``, as rollouts of the library imitation, or with ``observations``, ``actions``, ``terminations`` and
        ``rewards``, as Minari's. Of T steps, with T or T + 1 observations, as the environment gives them: they are normalised
        if the model's environment is in a VecNormalize, whose statistics, if they have seen nothing and are in training, begin
        with those of the episodes. Finite rewards, (T,) or (T, 1)
    :param n_epochs: passes over the episodes, 1 or more
    :param batch_size: episodes per update, 1 or more
    :param learning_rate: of an Adam of its own, above 0
    :param validation_fraction: part of the episodes, 0 to 0.99, that is left out to measure on; one at least unless it is 0
    :param max_grad_norm: bound of the gradient's norm, above 0
    :param verbose: 1 to print a line per epoch
    :return: per epoch "loss" and "validation_loss", the mean negative log probability of an action, and "validation_accuracy",
        the part of Discrete actions that the policy would have chosen, too; NaN where there is none
    :raises ValueError: an argument out of range, or an episode of another form or other spaces; names the episode
    """
    if not isinstance(model, SHMPPO | SHMSAC):
        raise ValueError(f"model must be a SHMPPO or SHMSAC, got {type(model).__name__}")
    check_in_range("n_epochs", n_epochs, low=1, integer=True)
    check_in_range("batch_size", batch_size, low=1, integer=True)
    check_in_range("learning_rate", learning_rate, above=0)
    check_in_range("max_grad_norm", max_grad_norm, above=0)
    check_in_range("validation_fraction", validation_fraction, low=0, high=0.99)
    given = [_read(model, episode, i) for i, episode in enumerate(episodes)]
    if len(given) < 2:
        raise ValueError(f"episodes must be two or more, got {len(given)}")
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.training and normalizer.norm_obs:
        _look_at(normalizer, given, model.observation_space)
    read = [_to_tensors(model, episode, i) for i, episode in enumerate(given)]
    n_validation = min(max(1, round(validation_fraction * len(read))), len(read) - 1) if validation_fraction else 0
    order = np.random.permutation(len(read))  # noqa: NPY002  # the generator that SB3 seeds
    held_out, kept = [read[i] for i in order[:n_validation]], [read[i] for i in order[n_validation:]]

    policy: Any = model.policy
    values = [episode.returns for episode in kept if episode.returns is not None]
    if values and model.normalize_values:  # type: ignore[union-attr]  # SHMPPO alone has values
        policy.scale_values(th.cat(values))
    parts = [policy] if isinstance(model, SHMPPO) else [policy.actor, policy.acting_body]
    parameters = list({id(p): p for part in parts for p in part.parameters()}.values())
    optimizer = th.optim.Adam(parameters, lr=learning_rate, eps=1e-5)
    history: list[dict[str, float]] = []
    for epoch in range(n_epochs):
        policy.set_training_mode(True)
        total = steps = 0.0
        shuffled = np.random.permutation(len(kept))  # noqa: NPY002
        for begin in range(0, len(kept), batch_size):
            batch = [kept[i] for i in shuffled[begin : begin + batch_size]]
            log_prob, value_loss, count = _evaluate(model, batch)
            loss = value_loss - log_prob / count
            optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            total, steps = total - log_prob.item(), steps + count
        policy.set_training_mode(False)
        row = {"loss": total / steps, **_validate(model, held_out, batch_size)}
        history.append(row)
        if verbose:
            print(f"epoch {epoch + 1}/{n_epochs}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    if isinstance(model, SHMSAC) and policy.actor.body is None:  # the memory that was trained is the critic's
        policy.critic_target.load_state_dict(policy.critic.state_dict())
    return history


def _evaluate(model: Any, batch: list[_Episode]) -> tuple[th.Tensor, th.Tensor | int, int]:
    """:return: sum of the log probabilities, loss of the values as in SHMPPO (0 if none are known), number of steps"""
    obs, actions, mask = _pad(batch)
    if isinstance(model, SHMSAC):
        return model.policy.log_prob(obs, actions)[mask].sum(), 0, int(mask.sum())
    values, log_prob, _ = model.policy.evaluate_actions(obs, actions)
    known = [i for i, episode in enumerate(batch) if episode.returns is not None]
    value_loss: th.Tensor | int = 0
    if known:
        returns = th.cat([batch[i].returns for i in known])  # type: ignore[misc]
        of_values = th.cat([values[i, : len(batch[i].actions)] for i in known])
        value_std = model.policy.value_statistics[-1] if model.normalize_values else 1
        value_loss = model.vf_coef * (of_values - returns).div(value_std).square().mean()
    return log_prob[mask].sum(), value_loss, int(mask.sum())


@th.no_grad()
def _validate(model: Any, episodes: list[_Episode], batch_size: int) -> dict[str, float]:
    total = right = steps = 0.0
    for begin in range(0, len(episodes), batch_size):
        batch = episodes[begin : begin + batch_size]
        log_prob, _, count = _evaluate(model, batch)
        total, steps = total - log_prob.item(), steps + count
        if isinstance(model.action_space, spaces.Discrete):
            obs, actions, mask = _pad(batch)
            right += float((_most_likely(model, obs) == actions.flatten())[mask.flatten()].sum())
    is_counted = steps > 0 and isinstance(model.action_space, spaces.Discrete)
    return {
        "validation_loss": total / steps if steps else float("nan"),
        "validation_accuracy": right / steps if is_counted else float("nan"),
    }


def _most_likely(model: Any, obs: Any) -> th.Tensor:
    """:return: the most likely actions in N episodes of T steps, (N T,)"""
    if isinstance(model, SHMPPO):
        return model.policy.get_distribution(obs)[0].mode()
    flat, starts = flatten_sequences(model.observation_space, obs)
    reading, _ = model.policy.acting_body(flat, model.policy.pi_trunk.initial_state(len(starts)), starts)
    chosen: th.Tensor = model.policy.actor(reading, deterministic=True).flatten()
    return chosen


def _pad(batch: list[_Episode]) -> tuple[Any, th.Tensor, th.Tensor]:
    """:return: observations and actions of N episodes, (N, longest, ...), and which steps there are"""
    obs: Any = {key: pad_sequence([e.obs[key] for e in batch], batch_first=True) for key in batch[0].obs}
    actions = pad_sequence([e.actions for e in batch], batch_first=True)
    mask = pad_sequence([th.ones(len(e.actions), dtype=th.bool) for e in batch], batch_first=True)
    return obs.get("", obs), actions, mask.to(actions.device)


def _first(episode: Any, *names: str) -> Any:
    return next((getattr(episode, name) for name in names if getattr(episode, name, None) is not None), None)


def _read(model: Any, episode: Any, i: int) -> _Read:
    """:raises ValueError: another form, or not of the model's spaces"""
    obs: Any = _first(episode, "obs", "observations")
    actions = _first(episode, "acts", "actions")
    if obs is None or actions is None:
        raise ValueError(
            f"Episode {i} must have obs, acts and terminal (as imitation's) or observations, actions and terminations (as "
            f"Minari's), got {type(episode).__name__}"
        )
    what, space = f"observation of episode {i}", model.observation_space
    count = len(actions)
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and hasattr(obs, "keys"):  # more keys than the space has are left out; imitation's dicts are indexed by step
        there = set(obs.keys())
        obs = {key: np.asarray(obs.get(key)) for key in space.spaces if key in there}
    check_keys(what, obs, space)
    obs = obs if is_dict else np.asarray(obs)
    lengths = {len(part) for part in (obs.values() if is_dict else [obs])}
    if not count or lengths not in ({count}, {count + 1}):
        raise ValueError(f"Episode {i} must have as many observations as actions, or one more, got {lengths} and {count}")
    obs = {key: part[:count] for key, part in obs.items()} if is_dict else obs[:count]
    check_finite(what, obs, rows="step")
    check_range(what, obs, space, rows="step")
    rewards, ends = _first(episode, "rews", "rewards"), _first(episode, "terminal", "terminations")
    has_ended = ends is not None and bool(np.atleast_1d(ends)[-1])
    normalizer = model.get_vec_normalize_env()
    has_values = (
        isinstance(model, SHMPPO) and rewards is not None and has_ended and not (normalizer and normalizer.norm_reward)
    )
    returns = _returns(rewards, count, model.gamma, i) if has_values else None
    return _Read(obs, _cast(actions, count, model.action_space, i), returns)


def _cast(actions: Any, count: int, space: Any, i: int) -> np.ndarray:
    """
    :return: actions of the space's shape and type, (T, ...)
    :raises ValueError: others than the space has
    """
    try:
        given = np.asarray(actions).reshape(count, *(space.shape or ()))
        with np.errstate(invalid="ignore"):
            cast = given.astype(space.dtype)
        fits = isinstance(space, spaces.Box) or np.array_equal(given, cast)  # no fractions, nor NaN, become numbers
    except (TypeError, ValueError):
        fits = False
    if not fits or not all(space.contains(action) for action in cast):
        raise ValueError(f"The actions of episode {i} must be of the action space {space}, got {actions}")
    return cast


def _returns(rewards: Any, count: int, gamma: float, i: int) -> np.ndarray:
    """
    :return: discounted sums of the rewards from each step on, (T,)
    :raises ValueError: not one finite reward per step
    """
    try:
        with np.errstate(over="ignore"):
            sums = np.array(rewards, dtype=np.float32)
    except (TypeError, ValueError):  # texts, or rows of several lengths
        sums = np.array(np.nan)
    sums = sums.reshape(count) if sums.shape == (count, 1) else sums
    if sums.shape != (count,) or not (np.abs(sums) <= LARGEST_REWARD).all():
        raise ValueError(f"The rewards of episode {i} must be {count} finite numbers, got {rewards}")
    for t in range(count - 2, -1, -1):
        sums[t] += gamma * sums[t + 1]
    return sums


def _look_at(normalizer: VecNormalize, episodes: list[_Read], space: Any) -> None:
    """
    Statistics that have seen nothing would cut off what is not of about their scale, 1, so they begin with the episodes.

    :raises ValueError: observations of another shape, or frames that are stacked after they are normalised
    """
    rms = normalizer.obs_rms
    for key, statistics in rms.items() if isinstance(rms, dict) else [("", rms)]:
        if statistics.mean.shape != (space[key] if key else space).shape:
            raise ValueError("Stack frames first, VecNormalize(VecFrameStack(env)): then demonstrations can be normalised")
        parts = [episode.obs[key] if key else episode.obs for episode in episodes]
        for i, part in enumerate(parts):
            if part.shape[1:] != statistics.mean.shape:
                raise ValueError(
                    f"Observations must be of {statistics.mean.shape}, in episode {i} they are of {part.shape[1:]}"
                )
        if statistics.count < 1:
            statistics.update(np.concatenate(parts))


def _to_tensors(model: Any, episode: _Read, i: int) -> _Episode:
    """:raises ValueError: observations of another shape"""
    obs, actions, returns = episode
    try:
        if (normalizer := model.get_vec_normalize_env()) is not None:
            obs = normalizer.normalize_obs(obs)
        tensors, _ = model.policy.obs_to_tensor(obs)
    except ValueError as error:
        raise ValueError(f"The observations of episode {i} do not fit the space {model.observation_space}: {error}") from error
    if isinstance(model.action_space, spaces.Box) and model.policy.squash_output:
        actions = model.policy.scale_action(actions)
    if not isinstance(model.action_space, spaces.Box):
        actions = actions.astype(np.int64)
    return _Episode(
        tensors if isinstance(tensors, dict) else {"": tensors},
        th.as_tensor(actions, device=model.device),
        None if returns is None else th.as_tensor(returns, device=model.device),
    )
