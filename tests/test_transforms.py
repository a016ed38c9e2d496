"""What looks at a memory's operations from outside: hooks, adapters, tracers, torch.func, second derivatives."""

import pytest
import torch as th
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

from sb3_shm import SHMSAC
from sb3_shm.memory import make_memory
from sb3_shm.shm_sac.body import Reading

NAMES = ("shm", "gru", "lstm")


def drawn(name, n=3, t=6, d=5, h=8):
    kwargs = dict(memory_size=h) if "shm" in name else dict(hidden_size=h) if name in NAMES else None
    memory = make_memory(name, d, kwargs)
    memory.eval()
    starts = th.zeros(n, t, dtype=th.bool)
    starts[1, 2:3] = True
    return memory, th.randn(n, t, d), starts


def acted(memory, x, starts):
    """Outputs of one step at a time, as a policy acts, without gradients."""
    state, outputs = None, []
    with th.no_grad():
        for t in range(x.shape[1]):
            y, state = memory(x[:, t : t + 1], state, starts[:, t : t + 1])
            outputs.append(y)
    return th.cat(outputs, dim=1)


@pytest.mark.parametrize("name", [*NAMES, "shm_paper", "ffm", "lru", "s6"])
@pytest.mark.parametrize("power", [1, 2])
def test_no_wrong_second_derivatives(name, power):
    memory, x, starts = drawn(name)
    x.requires_grad_()
    weight = next(memory.parameters())

    def penalty():
        y, _ = memory(x, None, starts)
        (gradient,) = th.autograd.grad((y**power).sum(), x, create_graph=True)
        return gradient.square().sum()

    for differentiate in (
        lambda loss: loss.backward(),
        lambda loss: loss.backward(inputs=[x]),
        lambda loss: th.autograd.grad(loss, x),
        lambda loss: th.autograd.grad(loss, weight),
    ):
        with pytest.raises(RuntimeError, match="twice"):
            differentiate(penalty())
    # Whoever asks for a graph and does not use it gets the gradient
    gradients = []
    for creates in (False, True):
        y, _ = memory(x, None, starts)
        gradients.append(th.autograd.grad(y.sum(), x, create_graph=creates)[0].detach())
    th.testing.assert_close(*gradients)


def test_second_derivatives_of_the_reference():
    memory = make_memory("shm", 5, dict(memory_size=8, backend="reference")).eval()
    x, starts = th.randn(2, 4, 5), th.zeros(2, 4, dtype=th.bool)
    direction = th.randn_like(x).double()

    def gradient(memory, x):
        x = x.clone().requires_grad_()
        return th.autograd.grad(memory(x, None, starts)[0].square().sum(), x, create_graph=True)[0], x

    of_x, leaf = gradient(memory, x)
    (second,) = th.autograd.grad((of_x * direction.float()).sum(), leaf)
    memory.double()
    step = 1e-6
    ahead, behind = (gradient(memory, x.double() + sign * step * direction)[0] for sign in (1, -1))
    th.testing.assert_close(second, ((ahead - behind) / (2 * step)).float(), rtol=1e-3, atol=1e-3)


def adapted(memory):
    adapter = nn.Linear(5, memory.projection.out_features, bias=False)
    memory.projection.register_forward_hook(lambda layer, args, out: out + adapter(args[0][..., :5]))


def replaced(memory):
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.weight, self.bias, self.out_features = layer.weight, layer.bias, layer.out_features

        def forward(self, x):
            return 2 * self.layer(x)

    memory.projection = Twice(memory.projection)


def pruned(memory):
    prune.l1_unstructured(memory.projection, "weight", 0.5)
    with th.no_grad():
        memory.projection.weight_orig.mul_(2)  # as an optimiser's step would change it


def normed(memory):
    nn.utils.parametrizations.weight_norm(memory.output)
    with th.no_grad():
        memory.output.parametrizations.weight.original0.mul_(3)


def with_bias(memory):
    memory.read_norm = nn.LayerNorm(8)
    nn.init.ones_(memory.read_norm.bias)


def wider(memory):
    memory.output = nn.Linear(8, 100)


def narrower(memory):
    memory.output = type(memory.output)(8, 3)


def without_norm(memory):
    memory.norm, memory.read_norm = nn.RMSNorm(5), nn.Identity()


def biasless(memory):
    memory.norm = nn.LayerNorm(5, bias=False)


def without_weights(memory):
    memory.read_norm = nn.LayerNorm(8, elementwise_affine=False)


def of_its_own(memory):
    forward = memory.output.forward
    memory.output.forward = lambda x: 2 * forward(x)


CHANGES = (
    adapted,
    replaced,
    pruned,
    normed,
    with_bias,
    wider,
    narrower,
    without_norm,
    biasless,
    without_weights,
    of_its_own,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_shm_acts_as_it_trains(change):
    memory, x, starts = drawn("shm")
    change(memory)
    steps = acted(memory, x, starts)  # first, as a forward pass brings the weights of hooks up to date
    y, _ = memory(x, None, starts)
    th.testing.assert_close(steps, y.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_hooks_of_torchs_layer_are_called(name):
    memory, x, starts = drawn(name)
    expected, _ = memory(x, None, starts)
    calls = []
    memory.layer.register_forward_hook(lambda *_: calls.append(1))
    y, _ = memory(x, None, starts)
    th.testing.assert_close(y, expected)
    th.testing.assert_close(acted(memory, x, starts), expected.detach())
    assert len(calls) == 1 + x.shape[1]


def test_hooks_of_the_gaussian_of_sac_are_called():
    actor = SHMSAC("MlpSHMPolicy", "PendulumNoVel-v0", policy_kwargs=dict(net_arch=[8])).policy.actor
    reading = Reading(th.randn(2, 3, actor.body.trunk.input_size), th.randn(2, 3, actor.body.trunk.output_size))
    expected = actor(reading, deterministic=True)
    actor.mu.register_forward_hook(lambda layer, args, out: out + 1)
    th.testing.assert_close(actor(reading, deterministic=True).atanh(), expected.atanh() + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, dict(bias=False)])
def test_exchanged_layer_of_torchs(kwargs):
    class Twice(nn.GRU):
        def forward(self, *args):
            y, final = super().forward(*args)
            return 2 * y, final

    memory, x, _ = drawn("gru")
    memory.layer = Twice(5, 8, batch_first=True, **kwargs)
    y, _ = memory(x)
    th.testing.assert_close(y, memory.layer(x)[0])
    with th.no_grad():
        th.testing.assert_close(memory(x[:, :1])[0], y[:, :1])


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_dropout_between_layers(name):
    memory = make_memory(name, 5, dict(hidden_size=8, num_layers=2))
    x = th.randn(2, 3, 5)
    expected, _ = memory(x)
    memory.layer.dropout = 0.9
    assert not th.allclose(memory(x)[0], expected)
    memory.eval()
    th.testing.assert_close(memory(x)[0], expected)


class Whole(nn.Module):
    """A memory as a function of tensors, from the initial state."""

    def __init__(self, memory, starts, context):
        super().__init__()
        self.memory, self.starts, self.context = memory, starts, context

    def forward(self, x):
        return self.memory(x, None, self.starts, self.context)[0]


def whole(name, t=6):
    memory, x, starts = drawn(name, t=t)
    if name != "shm":  # torch's own layers know nothing of pieces there
        starts[:] = False
    context = memory.draw_context(memory.initial_state(len(x)), starts)
    return Whole(memory, starts, context), x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace(name):
    function, x = whole(name, t=1)
    with th.no_grad():
        traced = th.jit.trace(function, (x,), check_trace=False)
        other = th.randn_like(x)
        th.testing.assert_close(traced(other), function(other), rtol=1e-4, atol=1e-5)


def test_forward_derivatives():
    function, x = whole("shm")
    function.requires_grad_(False)
    tangent = th.randn_like(x)
    with forward_ad.dual_level():
        derivative = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    x = x.double()
    exact, step = function.double(), 1e-6
    expected = (exact(x + step * tangent) - exact(x - step * tangent)) / (2 * step)
    th.testing.assert_close(derivative, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, "ffm", "lru", "s6"])
def test_torch_func_grad(name):
    function, x = whole(name)
    gradient = th.func.grad(lambda x: function(x).square().sum())(x)
    x.requires_grad_()
    function(x).square().sum().backward()
    th.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shm", "ffm", "lru", "s6"])
def test_vmap(name):
    function, x = whole(name)
    several = th.stack((x, -x))
    th.testing.assert_close(th.vmap(function)(several), th.stack((function(x), function(-x))), rtol=1e-4, atol=1e-5)


def test_rows_do_not_choose_the_precision():
    """Under autocast 64 rows, which one operation could read, are read as 65 are."""
    memory, _, _ = drawn("shm")
    x = th.randn(65, 1, 5)
    with th.no_grad(), th.autocast("cpu"):
        (many, _), (few, _) = memory(x), memory(x[:64])
    assert many.dtype == few.dtype
    th.testing.assert_close(many[:64], few)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_state_of_any_strides(name):
    memory, x, _ = drawn(name)
    state = tuple(th.randn(8, 1, 3).permute(2, 1, 0) for _ in memory.initial_state(1))
    expected, _ = memory(x[:, :1], state)
    with th.no_grad():
        y, _ = memory(x[:, :1], state)
    th.testing.assert_close(y, expected.detach())


def test_what_is_said_of_a_wrong_state_or_context():
    gru, x, starts = drawn("gru")
    shm, _, _ = drawn("shm")
    with pytest.raises(ValueError, match="state of GRU is 1 tensor"):
        gru(x, drawn("lstm")[0].initial_state(3), starts)
    with pytest.raises(ValueError, match="tuple"):
        gru(x, [th.zeros(3, 1, 8)], starts)
    for shape in ((3, 6), (3, 6, 3), (3, 5, 1)):
        with pytest.raises(ValueError, match=r"context must be \(3, 6, 1\)"):
            shm(x, None, starts, th.zeros(shape, dtype=th.uint8))
