"""check_memory accepts who keeps the contract, and says of everyone else which clause is broken."""

import pytest
import torch as th
from torch import nn

from sb3_shm.memory import MLP, SHM, Memory
from sb3_shm.memory.base import reset_state
from sb3_shm.memory.testing import check_memory

D = 5


def test_check_memory_leaves_everything_as_it_was():
    memory = SHM(D, memory_size=4)
    before = [parameter.clone() for parameter in memory.parameters()]
    th.manual_seed(3)
    expected = th.rand(3)
    th.manual_seed(3)
    check_memory(memory, n_steps=20)
    assert (th.rand(3) == expected).all()
    for parameter, value in zip(memory.parameters(), before, strict=True):
        assert (parameter == value).all() and parameter.grad is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MLP,), "instance of sb3_shm.memory.Memory"),
        ((MLP(D), 0), "n_steps must be an integer, at least 1"),
        ((MLP(D), 10, 0.0), "tolerance must be a finite number, above 0"),
    ],
)
def test_check_memory_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_memory(*arguments)


# ------------------------------------------------------------------------------- memories that break a clause of the contract
class Sum(Memory):
    """Sums its inputs up, as the contract wants it, step by step; what follows breaks one clause each."""

    def __init__(self, input_size: int = D) -> None:
        super().__init__(input_size, input_size)
        self.weight = nn.Parameter(th.ones(input_size))

    def initial_state(self, n):
        return (self.weight.new_zeros(n, self.input_size),)

    def step(self, x, h, start):
        (h,) = reset_state((h,), self.initial_state(len(x)), start)
        return 0.9 * h + self.weight * x

    def forward(self, x, state, episode_start, context=None):
        h, outputs = state[0], []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h, episode_start[:, t])
            outputs.append(h)
        return th.stack(outputs, dim=1), (h,)


class Forgetless(Sum):
    def step(self, x, h, start):
        return 0.9 * h + self.weight * x


class TimesZero(Sum):
    def step(self, x, h, start):
        return 0.9 * h * ~start.unsqueeze(1) + self.weight * x


class BatchNorm(Sum):
    def forward(self, x, state, episode_start, context=None):
        return super().forward(x - x.mean(dim=0), state, episode_start)


class LooksAhead(Sum):
    def forward(self, x, state, episode_start, context=None):
        y, state = super().forward(x, state, episode_start)
        return y + y.mean(dim=1, keepdim=True), state


class Detaches(Sum):
    def step(self, x, h, start):
        return super().step(x, h.detach(), start)

    def forward(self, x, state, episode_start, context=None):
        if x.shape[1] == 1:
            return super().forward(x, state, episode_start)
        h, outputs = state[0], []
        for t in range(x.shape[1]):
            h = Sum.step(self, x[:, t], h, episode_start[:, t])
            outputs.append(h)
        return th.stack(outputs, dim=1), (h,)


class TimeFirst(Sum):
    def initial_state(self, n):
        return (th.zeros(self.input_size, n),)


class ListState(Sum):
    def initial_state(self, n):
        return list(super().initial_state(n))


class RowsDiffer(Sum):
    def initial_state(self, n):
        return (th.arange(n * self.input_size).float().view(n, -1),)


class Widens(Sum):
    def forward(self, x, state, episode_start, context=None):
        y, (h,) = super().forward(x, (state[0].float(),), episode_start)
        return y, (h.double(),)


class Wider(Sum):
    def forward(self, x, state, episode_start, context=None):
        y, state = super().forward(x, state, episode_start)
        return th.cat((y, y), dim=-1), state


class Noisy(Sum):
    def step(self, x, h, start):
        return super().step(x, h, start) + 0.1 * th.randn_like(h)


class InPlace(Sum):
    def forward(self, x, state, episode_start, context=None):
        y, after = super().forward(x, state, episode_start)
        with th.no_grad():
            state[0].add_(1)
        return y, after


class Explodes(Sum):
    def step(self, x, h, start):
        return super().step(x, 2 * h, start)


class Unsaved(Sum):
    def __init__(self) -> None:
        super().__init__()
        self.scale = th.rand(D)

    def step(self, x, h, start):
        return super().step(self.scale * x, h, start)


class OneStepOnly(Sum):
    def forward(self, x, state, episode_start, context=None):
        if x.shape[1] > 1:
            raise RuntimeError("one at a time")
        return super().forward(x, state, episode_start)


class SecretlyDraws(Sum):
    def draw_context(self, state, episode_start, deterministic=False):
        return th.randint(9, episode_start.shape, dtype=th.uint8)


class Draws(Sum):
    """Scales each input by what it drew; right as it is."""

    context_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", th.rand(9))

    def draw_context(self, state, episode_start, deterministic=False):
        return th.randint(1 if deterministic else 9, (*episode_start.shape, 1), dtype=th.uint8)

    def forward(self, x, state, episode_start, context=None):
        context = self.draw_context(state, episode_start) if context is None else context
        return super().forward(x * self.scale[context.int()], state, episode_start)


class IgnoresContext(Draws):
    def forward(self, x, state, episode_start, context=None):
        return super().forward(x, state, episode_start)


class AlwaysDraws(Draws):
    def draw_context(self, state, episode_start, deterministic=False):
        return super().draw_context(state, episode_start)


class LongContext(Draws):
    def draw_context(self, state, episode_start, deterministic=False):
        return super().draw_context(state, episode_start, deterministic).long()


class WrongSize(Sum):
    def state_size(self):
        return 1


@pytest.mark.parametrize("memory_class", [Sum, Draws])
def test_check_memory_accepts(memory_class):
    check_memory(memory_class())


@pytest.mark.parametrize(
    "memory_class, clause",
    [
        (Forgetless, "the state before the step is the initial one"),
        (TimesZero, "forgets even an infinite state.*differ by nan"),
        (BatchNorm, "rows do not influence each other"),
        (LooksAhead, "calls with 1 of 12 steps each equal one call"),
        (Detaches, "calls with 1 of 12 steps each equal one call.*gradients"),
        (TimeFirst, r"initial_state\(n\) is a nested tuple"),
        (ListState, r"initial_state\(n\) is a nested tuple.*got list"),
        (RowsDiffer, r"initial_state\(n\) .* every row alike.*differ"),
        (Widens, "the state keeps its shapes and dtypes.*float32 became torch.float64"),
        (Wider, r"outputs are \(N, T, output_size\).*\(1, 1, 10\)"),
        (Noisy, "the same call gives the same outputs"),
        (InPlace, "a call changes none of its arguments"),
        (Explodes, "gradients through 1000 steps are finite.*the outputs are not"),
        (Unsaved, "state_dict holds all"),
        (OneStepOnly, r"N = 1, T = 12\)': RuntimeError: one at a time"),
        (SecretlyDraws, "draw_context gives .* context_size is 0, but something was drawn"),
        (IgnoresContext, "the same call gives the same outputs"),
        (AlwaysDraws, "a deterministic context depends on the step within the episode alone"),
        (LongContext, r"draw_context gives \(N, T, context_size\) uint8"),
        (WrongSize, r"state_size\(\) counts the floats"),
    ],
)
def test_check_memory_refuses(memory_class, clause):
    with pytest.raises(AssertionError, match=f"(?s)breaks the clause.*{clause}"):
        check_memory(memory_class())
