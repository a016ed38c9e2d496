"""What a Stable Hadamard Memory does while it trains, for TensorBoard."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat

from sb3_shm.memory import SHM, State, hadamard_recurrence
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.base import map_state, steps_in_episode
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.inside import calls_of, look_inside
from sb3_shm.memory.stack import kind_of
from sb3_shm.policies.trunk import MemoryTrunk
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC

LAGS = (0, 1, 4, 16, 64, 256)
_N_ROWS = 2  # environments looked at
_N_STEPS = 256  # at most
_N_SAMPLES = 16  # steps at which the matrices themselves are looked at


class Sequence(NamedTuple):
    """What one trunk read, and with what state before."""

    trunk: MemoryTrunk
    features: th.Tensor  # (N, T, F)
    state: State
    episode_start: th.Tensor  # (N, T) bool
    context: th.Tensor | None  # (N, T, context_size) uint8


class MemoryDiagnosticsCallback(BaseCallback):
    """
    Records what Stable Hadamard Memories do, for TensorBoard and every other output of the logger but the printed table,
    after the first rollout and each ``frequency`` rollouts from there: of :class:`~sb3_shm.SHMPPO` on the latest rollout,
    of :class:`~sb3_shm.SHMSAC` on the end of the tape, where the memory is empty at first and reads the rows of θ of
    deterministic use. Two environments, at most 256 steps of each. It draws nothing from the global random generators:
    training is the same, bit for bit, with it and without.

    Keys begin with ``memory/``, or if there are several memories with ``memory_pi/`` and ``memory_vf/`` (PPO), or with
    ``memory_actor/`` and ``memory_critic/`` (SAC); those that are not SHM are left out, with a word.

    ========================================= ==========================================================================
    ``C_mean``, ``C_std``, ``C_min``,         calibration C, which lies between 0 and 2
    ``C_max``
    ``C_near_0``, ``C_near_2``                share of its entries below 0.1 and above 1.9
    ``log10_product_max``, ``..._mean``,      log10 of ∏C from the first step looked at, or the episode's first, to each step
    ``..._min``
    ``M_norm``, ``U_norm``                    mean Frobenius norm of the matrix and of its update
    ``clipped``                               share of M's entries at the bound ``clip``
    ``k_entropy``, ``q_entropy``              entropy as a part of the greatest, log H: 0 for one entry, 1 for all alike;
                                              of the squares of keys of unit length
    ``grad_lag_<n>``                          norm of the derivative of the memory's output by its input n steps before: a
                                              random projection of the Jacobian whose mean square is its Frobenius norm's
    ========================================= ==========================================================================

    :param frequency: rollouts between records; None for 10 of PPO and 1,000 of SAC, of which a rollout is ``train_freq`` steps
    :param verbose: 1 to say which memories are left out
    :raises ValueError: at the beginning of training: no SHM among the model's memories, or another algorithm
    """

    def __init__(self, frequency: int | None = None, verbose: int = 1) -> None:
        super().__init__(verbose)
        if frequency is not None:
            check_in_range("frequency", frequency, low=1, integer=True)
        self.frequency = frequency
        self._n_rollouts = 0

    def _init_callback(self) -> None:
        if not isinstance(self.model, SHMPPO | SHMSAC):
            raise ValueError(f"MemoryDiagnosticsCallback is for SHMPPO and SHMSAC, got {type(self.model).__name__}")
        trunks = self._trunks()
        others = {name: kind_of(trunk.memory) for name, trunk in trunks.items() if not isinstance(trunk.memory, SHM)}
        if len(others) == len(trunks):
            raise ValueError(
                "MemoryDiagnosticsCallback looks into SHM memories of one layer (memory_layers=1), this model has "
                f"{', '.join(others.values())}"
            )
        if others and self.verbose:
            print("MemoryDiagnosticsCallback leaves out " + ", ".join(f"{name} ({kind})" for name, kind in others.items()))
        self._interval = self.frequency or (10 if isinstance(self.model, SHMPPO) else 1000)

    def _on_training_start(self) -> None:
        if all(isinstance(output, HumanOutputFormat) for output in self.logger.output_formats):
            warnings.warn(
                "MemoryDiagnosticsCallback writes to TensorBoard, CSV and JSON, and this model logs to none of them: give it "
                "tensorboard_log=..., or set_logger(configure(folder, ['csv']))",
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._n_rollouts += 1
        if (self._n_rollouts - 1) % self._interval:
            return
        self.model.policy.set_training_mode(False)
        sequences = self._of_ppo() if isinstance(self.model, SHMPPO) else self._of_sac()
        for name, sequence in sequences.items():
            if isinstance(sequence.trunk.memory, SHM):
                for key, value in measure(sequence).items():
                    self.logger.record(f"{name}/{key}", value, exclude="stdout")

    def _trunks(self) -> dict[str, MemoryTrunk]:
        """The model's memories by the prefix of their keys."""
        if isinstance(self.model, SHMPPO):
            trunks = self.model.policy.trunks
            return {"memory": trunks[0]} if len(trunks) == 1 else {"memory_pi": trunks[0], "memory_vf": trunks[1]}
        assert isinstance(self.model, SHMSAC)
        policy = self.model.policy
        if policy.actor.body is None:
            return {"memory": policy.critic.body.trunk}
        return {"memory_actor": policy.actor.body.trunk, "memory_critic": policy.critic.body.trunk}

    def _of_ppo(self) -> dict[str, Sequence]:
        """What the memories read in the first steps of the rollout."""
        model = self.model
        assert isinstance(model, SHMPPO)
        buffer = model.rollout_buffer

        def first(array: np.ndarray) -> np.ndarray:
            return array[:_N_STEPS, :_N_ROWS].swapaxes(0, 1)

        starts = th.as_tensor(first(buffer.episode_starts), device=model.device).bool()
        contexts = th.as_tensor(first(buffer.contexts), device=model.device)
        features = model.policy.extract_features(self._flat(buffer.observations, first))
        own_contexts = contexts.split([trunk.context_size for trunk in model.policy.trunks], dim=-1)
        sequences = {}
        for i, (name, trunk) in enumerate(self._trunks().items()):
            own = features[i] if isinstance(features, tuple) else features
            state = map_state(lambda tensor: tensor[:_N_ROWS], buffer.states[0][i])
            context = own_contexts[i] if trunk.context_size else None
            sequences[name] = Sequence(trunk, own.view(*starts.shape, -1), state, starts, context)
        return sequences

    def _of_sac(self) -> dict[str, Sequence]:
        """What the memories would read of the last rows of the tape."""
        model = self.model
        assert isinstance(model, SHMSAC)
        buffer = model.replay_buffer
        if not buffer.size():
            return {}
        n = min(model.n_envs, _N_ROWS)
        t = int(min(buffer.written[:n].min(), buffer.buffer_size, _N_STEPS))
        rows = (buffer.written[:n, None] - t + np.arange(t)) % buffer.buffer_size

        def last(array: np.ndarray) -> np.ndarray:
            chosen: np.ndarray = array[np.arange(n)[:, None], rows]
            return chosen

        steps = th.as_tensor(last(buffer.steps), device=model.device).long()
        tape: Any = buffer.tape if len(buffer.tape) > 1 or "" not in buffer.tape else buffer.tape[""]
        obs: Any = self._flat(tape, last)
        sequences = {}
        for name, trunk in self._trunks().items():
            body = model.critic.body if model.critic.body.trunk is trunk else model.policy.acting_body
            assert body.features_extractor is not None
            features = body.extract_features(obs, body.features_extractor).view(n, t, -1)
            # All counters begin at the true step, by which a memory chooses the rows of deterministic use
            empty = trunk.initial_state(n)
            state = map_state(lambda tensor: tensor if tensor.is_floating_point() else steps[:, 0], empty)
            context = trunk.draw_context(state, steps == 0, deterministic=True)
            sequences[name] = Sequence(trunk, features, state, steps == 0, context)
        return sequences

    def _flat(self, observations: Any, choose: Callable[[np.ndarray], np.ndarray]) -> Any:
        """
        :param observations: array of observations, or a dict of them
        :param choose: takes (N, T, ...) of an array
        :return: observations as tensors, (N T, ...); a tape's are normalised by VecNormalize, as a rollout's are already
        """
        chosen = map_observations(choose, observations)
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None and isinstance(self.model, SHMSAC):
            chosen = normalize.normalize_obs(chosen)
        return map_observations(lambda o: th.as_tensor(o, device=self.model.device).flatten(0, 1), chosen)


def map_observations(fn: Callable[[Any], Any], observations: Any) -> Any:
    """
    :param fn: function of an array
    :param observations: array, or a dict of them
    :return: the result, or a dict of them
    """
    return {k: fn(o) for k, o in observations.items()} if isinstance(observations, dict) else fn(observations)


def measure(sequence: Sequence) -> dict[str, float]:
    """
    :param sequence: what an SHM read
    :return: the values of :class:`MemoryDiagnosticsCallback` by key
    """
    trunk, features, state, starts, context = sequence
    memory = trunk.memory
    assert isinstance(memory, SHM)
    with th.no_grad():
        with calls_of(memory) as calls:
            trunk(features, state, starts, context)
        inside = look_inside(memory, calls[0].x, calls[0].state, starts, context)
        values = {**_of_calibration(inside, starts), **_of_matrix(memory, inside, calls[0].state, starts)}
        for name, p in (("k", inside.k), ("q", inside.q)):
            p = p.square() if memory.keys == "unit" else p  # what sums to 1
            entropy = -th.xlogy(p, p).sum(dim=-1).mean().item()
            values[f"{name}_entropy"] = entropy / max(math.log(memory.memory_size), 1e-9)
    return {**values, **_of_gradients(memory, calls[0].x, calls[0].state, starts, context)}


def _of_calibration(inside: HadamardInputs, starts: th.Tensor) -> dict[str, float]:
    c = inside.calibration()
    log_product = inside.log_calibration().cumsum(dim=1)
    # The calibration of an episode's first step finds nothing to calibrate: the product begins after it
    time = th.arange(starts.shape[1], device=starts.device)
    started = th.where(starts, time, -1).cummax(dim=1).values
    before = th.stack([row[index.clamp(min=0)] for row, index in zip(log_product, started, strict=True)])
    log_product = (log_product - th.where(started[..., None, None] >= 0, before, 0)) / math.log(10)
    return {
        "C_mean": c.mean().item(),
        "C_std": c.std(correction=0).item(),
        "C_min": c.min().item(),
        "C_max": c.max().item(),
        "C_near_0": (c < 0.1).float().mean().item(),
        "C_near_2": (c > 1.9).float().mean().item(),
        "log10_product_max": log_product.max().item(),
        "log10_product_mean": log_product.mean().item(),
        "log10_product_min": log_product.min().item(),
    }


def _of_matrix(memory: SHM, inside: HadamardInputs, state: State, starts: th.Tensor) -> dict[str, float]:
    matrix: Any = state[0]
    matrices = []
    length = -(-starts.shape[1] // _N_SAMPLES)
    for begin in range(0, starts.shape[1], length):
        part = slice(begin, begin + length)
        inputs = HadamardInputs(*(vectors[:, part] for vectors in inside))
        _, matrix = hadamard_recurrence(inputs, matrix, starts[:, part], memory.clip, memory.backend)
        matrices.append(matrix)
    m = th.stack(matrices)
    clip = math.inf if memory.clip is None else memory.clip
    return {
        "M_norm": m.flatten(2).norm(dim=-1).mean().item(),
        "U_norm": (inside.v.norm(dim=-1) * inside.k.norm(dim=-1)).mean().item(),
        "clipped": (m.abs() >= clip).float().mean().item(),
    }


def _of_gradients(memory: SHM, x: th.Tensor, state: State, starts: th.Tensor, context: th.Tensor | None) -> dict[str, float]:
    n = len(x)
    rows = th.arange(n, device=x.device)
    index, _ = steps_in_episode(th.zeros(n, dtype=th.int64, device=x.device), starts)
    end = index.argmax(dim=1)  # of each row, the step with the longest past
    x = x.detach().requires_grad_()
    y, _ = memory(x, state, starts, context)
    generator = th.Generator().manual_seed(0)  # of its own, and the same projection each time
    signs = (th.randint(2, (n, memory.output_size), generator=generator) * 2 - 1).to(y)
    (gradient,) = th.autograd.grad((y[rows, end] * signs).sum(), x)
    values = {}
    for lag in LAGS:
        reach = index[rows, end] >= lag
        if reach.any():
            at_lag = gradient[rows, (end - lag).clamp(min=0)][reach]
            values[f"grad_lag_{lag}"] = at_lag.square().sum(dim=-1).mean().sqrt().item()
    return values
