"""A memory as a layer of one's own network, without a policy around it."""

import inspect

import pytest
import torch as th
from torch import nn

from sb3_shm.memory import MEMORIES, SHM, Memory, make_memory

N, T, D = 3, 5, 4


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_left_out_is_filled_in(name):
    memory = make_memory(name, D).eval()
    x = th.randn(N, T, D)
    y, state = memory(x)
    expected, after = memory(x, memory.initial_state(N), th.zeros(N, T, dtype=th.bool))
    assert y.shape == (N, T, memory.output_size)
    th.testing.assert_close(y, expected, rtol=0, atol=0)
    th.testing.assert_close(state, after, rtol=0, atol=0)
    # The state carries on
    first, state = memory(x[:, :2])
    second, _ = memory(x[:, 2:], state)
    th.testing.assert_close(th.cat((first, second), dim=1), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEMORIES)
def test_eval_is_deterministic(name):
    memory = make_memory(name, D)
    x = th.randn(N, 20, D)
    draws = memory.context_size > 0
    assert th.equal(memory(x)[0], memory(x)[0]) != draws
    memory.eval()
    assert th.equal(memory(x)[0], memory(x)[0])


@pytest.mark.parametrize("name", MEMORIES)
def test_wrong_shapes_are_named_as_the_users(name):
    memory = make_memory(name, D)
    x = th.randn(N, T, D)
    for wrong in (x[0], x[..., :3], x[:, :0], th.randn(N, T, 2, D)):
        with pytest.raises(ValueError, match=r"x must have the shape \(N, T, 4\), T at least 1, got \("):
            memory(wrong)
    if name != "mlp":
        with pytest.raises(ValueError, match=r"state must have one row per sequence of x, that is 3, got \[2"):
            memory(x, memory.initial_state(2))
    starts = th.zeros(N, T, dtype=th.bool)
    for wrong in (starts[:, :2], starts[0], starts.float()):
        with pytest.raises(ValueError, match=r"episode_start must be \(3, 5\) of torch.bool"):
            memory(x, None, wrong)
    if memory.context_size:
        with pytest.raises(ValueError, match=r"context must be \(3, 5, 1\)"):
            memory(x, context=th.zeros(N, 2, 1, dtype=th.uint8))


@pytest.mark.parametrize("memory", MEMORIES.values())
def test_help_describes_the_call(memory):
    assert ":param episode_start:" in inspect.getdoc(memory.forward)
    assert ":raises ValueError:" in inspect.getdoc(Memory.__call__)


def test_trains_in_a_network_of_ones_own():
    """The first token is asked for at the last step."""

    class Recall(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 16)
            self.memory = SHM(16)
            self.head = nn.Linear(self.memory.output_size, 4)

        def forward(self, tokens):
            y, _ = self.memory(self.embedding(tokens))
            return self.head(y[:, -1])

    network = Recall()
    optimizer = th.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        tokens = th.randint(4, (64, 8))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(tokens), tokens[:, 0]).backward()
        optimizer.step()
    tokens = th.randint(4, (256, 8))
    assert (network.eval()(tokens).argmax(-1) == tokens[:, 0]).float().mean() > 0.95
