"""MemoryRolloutBuffer: what goes in comes out in whole sequences, and it takes the memory that it says."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_shm.shm_ppo.rollout import MemoryRolloutBuffer

BOX = spaces.Box(-1, 1, (3,), np.float32)


def filled(buffer: MemoryRolloutBuffer, rng: np.random.Generator, peer: RolloutBuffer | None = None) -> MemoryRolloutBuffer:
    """Step t of environment e observes 1000 e + t; the state before it is the same number."""
    n = buffer.n_envs
    for t in range(buffer.buffer_size):
        number = 1000.0 * np.arange(n) + t
        obs = np.repeat(number[:, None], 3, axis=1)
        shared = (
            {"a": obs, "b": number.astype(np.uint8)} if isinstance(buffer.observation_space, spaces.Dict) else obs,
            rng.integers(4, size=n),
            rng.normal(size=n),
            rng.random(n) < 0.2,
            th.as_tensor(rng.normal(size=(n, 1)), dtype=th.float32),
            th.as_tensor(rng.normal(size=n), dtype=th.float32),
        )
        tensor = th.as_tensor(number, dtype=th.float32)
        context = th.full((n, 1, buffer.context_size), t % 256, dtype=th.uint8) if buffer.context_size else None
        buffer.add(*shared, ((tensor, tensor[:, None].repeat(1, 5)), tensor.long()), context)
        if peer is not None:
            peer.add(*shared)
    last_values, dones = th.as_tensor(rng.normal(size=n), dtype=th.float32), rng.random(n) < 0.5
    for b in (buffer, peer):
        if b is not None:
            b.compute_returns_and_advantage(last_values, dones)
    return buffer


@settings(max_examples=40, deadline=None)
@given(
    n_envs=st.integers(1, 4),
    seq_len=st.sampled_from([1, 2, 5, 8]),
    n_sequences=st.integers(1, 4),
    per_batch=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_sequences(n_envs, seq_len, n_sequences, per_batch, seed):
    """Each step comes exactly once, in order within its sequence, with the state before the sequence's first step."""
    n_steps = seq_len * n_sequences
    args = (n_steps, BOX, spaces.Discrete(4), "cpu", 0.9, 0.97, n_envs)
    peer = RolloutBuffer(*args)
    buffer = filled(MemoryRolloutBuffer(*args, seq_len=seq_len, context_size=1), np.random.default_rng(seed), peer)
    seen = []
    for batch in buffer.get(per_batch * seq_len):
        steps = batch.observations[..., 0].long()
        assert steps.shape[1] == seq_len and steps.shape[0] <= per_batch
        assert (steps == steps[:, :1] + th.arange(seq_len)).all()
        (first, wide), counter = batch.state
        assert (first == steps[:, 0]).all() and (wide == first[:, None]).all() and (counter == steps[:, 0]).all()
        assert (batch.context[..., 0] == steps % 1000 % 256).all()
        env, t = steps // 1000, steps % 1000
        for name, ours in (
            ("actions", batch.actions[..., 0]),
            ("values", batch.old_values),
            ("log_probs", batch.old_log_prob),
            ("advantages", batch.advantages),
            ("returns", batch.returns),
            ("episode_starts", batch.episode_starts),
        ):
            expected = getattr(peer, name).reshape(n_steps, n_envs)[t.numpy(), env.numpy()]
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, err_msg=name)
        seen += steps.flatten().tolist()
    assert sorted(seen) == sorted(1000 * e + t for e in range(n_envs) for t in range(n_steps))


def test_sequences_are_views():
    buffer = filled(MemoryRolloutBuffer(8, BOX, spaces.Discrete(4), "cpu", n_envs=3, seq_len=4), np.random.default_rng(0))
    next(buffer.get(4))
    for array, tensor in (
        (buffer.observations, buffer._sequences.observations),
        (buffer.values, buffer._sequences.old_values),
    ):
        assert np.shares_memory(array, tensor.numpy())


@pytest.mark.parametrize("seq_len, context_size", [(4, 0), (8, 1), (16, 2)])
def test_memory_of_the_buffer(seq_len, context_size):
    """The formula of the docstring."""
    n_envs, n_steps = 3, 16
    buffer = MemoryRolloutBuffer(
        n_steps, BOX, spaces.Discrete(4), "cpu", n_envs=n_envs, seq_len=seq_len, context_size=context_size
    )
    filled(buffer, np.random.default_rng(0))
    state_bytes = 4 + 5 * 4 + 8
    formula = n_steps * n_envs * (3 * 4 + 8 + context_size + 24) + n_steps // seq_len * n_envs * state_bytes
    assert buffer.nbytes == formula
    assert len(buffer.states) == n_steps // seq_len
    buffer.reset()
    assert buffer.nbytes == formula - n_steps // seq_len * n_envs * state_bytes


def test_dict_observations():
    space = spaces.Dict({"a": BOX, "b": spaces.Discrete(200)})
    buffer = filled(MemoryRolloutBuffer(6, space, spaces.Discrete(4), "cpu", n_envs=2, seq_len=3), np.random.default_rng(0))
    for batch in buffer.get(6):
        assert batch.observations["a"].shape == (2, 3, 3) and batch.observations["b"].shape == (2, 3, 1)
        assert (batch.observations["a"][..., 0].numpy().astype(np.uint8) == batch.observations["b"][..., 0].numpy()).all()


@pytest.mark.parametrize("wrong", [0, 2, 6, -4])
def test_minibatches_are_whole_sequences(wrong):
    buffer = filled(MemoryRolloutBuffer(8, BOX, spaces.Discrete(4), "cpu", n_envs=3, seq_len=4), np.random.default_rng(0))
    with pytest.raises(ValueError, match="batch_size must be a multiple of seq_len = 4"):
        next(buffer.get(wrong))


def test_seq_len_must_divide():
    with pytest.raises(ValueError, match="divide n_steps = 10"):
        MemoryRolloutBuffer(10, BOX, spaces.Discrete(4), seq_len=4)
