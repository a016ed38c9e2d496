"""The further memories: each keeps the contract and equals an independent definition."""

import inspect
import math
import re
from collections import deque
from pathlib import Path

import pytest
import torch as th
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import FFM, LRU, MEMORIES, MLP, S6, SHM, FrameStack, make_memory
from sb3_shm.memory.base import map_state
from sb3_shm.memory.frame_stack import last_inputs
from sb3_shm.memory.testing import check_memory

D = 5
ODD_SIZES = {
    "frame_stack": [dict(n_frames=1), dict(n_frames=20, output_size=3)],
    "mlp": [dict(output_size=1)],
    "lru": [dict(memory_size=1, output_size=3), dict(memory_size=7, r_min=0.9, r_max=0.999, max_phase=0.3)],
    "ffm": [dict(memory_size=1, n_contexts=1), dict(memory_size=7, n_contexts=3, output_size=2, max_period=7)],
    "s6": [
        dict(memory_size=1, n_states=1, conv_size=1),
        dict(memory_size=7, n_states=3, conv_size=2, output_size=4, step_rank=3),
    ],
}


@pytest.mark.parametrize("name", MEMORIES)
def test_contract(name):
    check_memory(make_memory(name, D))


@pytest.mark.parametrize("name", MEMORIES)
def test_contract_after_learning(name):
    """Weights that begin at 0, as those of SHM's previous input, hide what they multiply."""
    memory = make_memory(name, D)
    with th.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    check_memory(memory, n_steps=50)


@pytest.mark.parametrize("name, kwargs", [(name, kwargs) for name, all_kwargs in ODD_SIZES.items() for kwargs in all_kwargs])
def test_contract_with_other_sizes(name, kwargs):
    memory = make_memory(name, D, kwargs)
    assert all(getattr(memory, size) == value for size, value in kwargs.items() if size in ("output_size", "memory_size"))
    check_memory(memory.double(), n_steps=50, tolerance=1e-11)


# ------------------------------------------------------------------------------------------------ each against its definition
def episodes(n: int, t: int) -> tuple[th.Tensor, th.Tensor, list[list[int]]]:
    """Inputs, starts, and for each row and step the first step of its episode."""
    starts = th.rand(n, t) < 0.15
    first = [[max([s for s in range(i + 1) if row[s]], default=0) for i in range(t)] for row in starts]
    return th.randn(n, t, D, dtype=th.float64), starts, first


@pytest.mark.parametrize("name", MEMORIES)
def test_autocast(name):
    memory, x = make_memory(name, 5), th.randn(3, 70, 5)
    expected, _ = memory.eval()(x)
    with th.autocast("cpu", dtype=th.bfloat16):
        y, state = memory(x)
        memory(x[:, :1], state)
    y.float().sum().backward()
    assert (y - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("name", MEMORIES)
def test_no_rows_and_states_in_pieces(name):
    memory = make_memory(name, 5).eval()
    y, _ = memory(th.randn(0, 3, 5))
    assert y.shape == (0, 3, memory.output_size)
    x = th.randn(2, 3, 5)
    _, state = memory(x)
    strided = map_state(lambda tensor: tensor.movedim(0, -1).contiguous().movedim(-1, 0), state)
    th.testing.assert_close(memory(x, strided)[0], memory(x, state)[0])


def test_mlp_and_frame_stack():
    stack, mlp = FrameStack(D, 1, 7), MLP(D, 7)
    mlp.load_state_dict(stack.state_dict())
    x, starts, _ = episodes(3, 8)
    x = x.float()
    one, other = stack(x, stack.initial_state(3), starts)[0], mlp(x, (), starts)[0]
    th.testing.assert_close(one, other)
    th.testing.assert_close(other, (x @ mlp.layer.weight.T + mlp.layer.bias).tanh())


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_last_inputs(k):
    """A queue per row."""
    x, starts, _ = episodes(4, 20)
    past = th.zeros(4, k - 1, D, dtype=th.float64)
    frames, after = last_inputs(x, past, starts)
    for i in range(4):
        queue = deque([th.zeros(D, dtype=th.float64)] * k, maxlen=k)
        for t in range(20):
            if starts[i, t]:
                queue.extend([th.zeros(D, dtype=th.float64)] * k)
            queue.append(x[i, t])
            assert (frames[i, t] == th.stack(list(queue)[::-1])).all()
        assert after[i].tolist() == frames[i, -1, : k - 1].tolist()


def test_lru_is_its_sum():
    """y_t = Re(C Σ λ^(t-s) γ B x_s) + D x_t over the steps s of the episode: closed form, no recurrence."""
    lru = LRU(D, 6, output_size=4).double()
    x, starts, first = episodes(3, 25)
    y, _ = lru(x, lru.initial_state(3), starts)
    size, angle = th.exp(-th.exp(lru.nu_log)), th.exp(lru.theta_log)
    b = th.complex(*lru.input.weight.view(6, 2, D).unbind(1))
    c_real, c_imaginary = lru.output.weight.view(4, 6, 2).unbind(2)
    for i in range(3):
        for t in range(25):
            h = sum(
                size ** (t - s) * th.exp(1j * angle * (t - s)) * th.exp(lru.gamma_log) * (b @ x[i, s].to(b.dtype))
                for s in range(first[i][t], t + 1)
            )
            expected = th.complex(c_real, -c_imaginary) @ h  # the layer's second half is minus the imaginary part of C
            th.testing.assert_close(y[i, t], expected.real + lru.skip.weight @ x[i, t] + lru.skip.bias)


def test_lru_begins_on_its_ring():
    lru = LRU(D, 4000, r_min=0.6, r_max=0.8, max_phase=1.0)
    size, angle = th.exp(-th.exp(lru.nu_log)), th.exp(lru.theta_log)
    assert size.min() >= 0.6 - 1e-6 and size.max() <= 0.8 + 1e-6 and angle.min() > 0 and angle.max() <= 1
    # Uniform on the ring: the half of the area lies within the radius sqrt((0.36 + 0.64) / 2)
    assert abs((size**2 < 0.5).float().mean() - 0.5) < 0.04 and abs(angle.mean() - 0.5) < 0.03
    th.testing.assert_close(lru.gamma_log.exp(), (1 - size**2).sqrt(), atol=1e-5, rtol=1e-4)
    # White inputs give states of the inputs' size, however slowly they fade
    y = LRU(D, 200, r_min=0.5, r_max=0.99)
    _, (h,) = y(th.randn(8, 600, D), y.initial_state(8), th.zeros(8, 600, dtype=th.bool))
    assert 0.3 < h.square().sum(dim=-1).mean() < 3


def test_ffm_is_its_sum():
    """S_t = Σ x̃_s exp((t - s)(-|α| + iω)) over the steps s of the episode, then the paper's gates."""
    ffm = FFM(D, 4, n_contexts=3, output_size=6).double()
    with th.no_grad():
        ffm.alpha[1] *= -1  # only its size counts
    x, starts, first = episodes(3, 25)
    y, _ = ffm(x, ffm.initial_state(3), starts)
    w_1, w_2, w_5, w_4 = ffm.projection.weight.split(ffm.widths)
    b_1, b_2, b_5, b_4 = ffm.projection.bias.split(ffm.widths)

    def sigmoid(z: th.Tensor) -> th.Tensor:
        return 1 / (1 + th.exp(-z))

    for i in range(3):
        for t in range(25):
            s = th.zeros(4, 3, dtype=th.complex128)
            for past in range(first[i][t], t + 1):
                z = x[i, past]
                gamma = th.exp((t - past) * (-ffm.alpha.abs()[:, None] + 1j * ffm.omega[None, :]))
                s = s + ((w_1 @ z + b_1) * sigmoid(w_2 @ z + b_2))[:, None] * gamma
            z = ffm.mix.weight @ th.stack((s.real, s.imag), dim=-1).flatten() + ffm.mix.bias
            z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            gate = sigmoid(w_4 @ x[i, t] + b_4)
            th.testing.assert_close(y[i, t], z * gate + (w_5 @ x[i, t] + b_5) * (1 - gate))


def test_ffm_begins_as_released():
    ffm = FFM(D, 32, n_contexts=4)
    th.testing.assert_close(th.exp(-ffm.alpha[0] * 1024), th.tensor(0.01))
    assert ffm.alpha[-1].item() == pytest.approx(0.673) and ffm.alpha.diff().var() < 1e-9
    th.testing.assert_close(2 * math.pi / ffm.omega, th.linspace(1, 1024, 4))


def test_s6_equals_its_equations():
    """One step after the other, one channel after the other."""
    s6 = S6(D, memory_size=6, n_states=3, output_size=4, conv_size=3, step_rank=2).double()
    x, starts, first = episodes(2, 14)
    y, (final, _) = s6(x, s6.initial_state(2), starts)
    w_u, w_g = s6.input.weight.split(6)
    w_step, w_b, w_c = s6.selection.weight.split([2, 3, 3])

    def silu(z: th.Tensor) -> th.Tensor:
        return z / (1 + th.exp(-z))

    for i in range(2):
        for t in range(14):
            if t == first[i][t]:
                h = th.zeros(6, 3, dtype=th.float64)
            u = s6.conv_bias.clone()
            for back in range(3):
                if t - back >= first[i][t]:
                    u = u + s6.conv_weight[back] * (w_u @ x[i, t - back])
            u = silu(u)
            step = th.log1p(th.exp(s6.step.weight @ (w_step @ u) + s6.step.bias))
            b, c = w_b @ u, w_c @ u
            channels = []
            for e in range(6):
                factor = th.exp(-step[e] * th.exp(s6.a_log[e]))
                channels.append(factor * h[e] + step[e] * u[e] * b)
            h = th.stack(channels)
            read = (h @ c + s6.skip * u) * silu(w_g @ x[i, t])
            th.testing.assert_close(y[i, t], s6.output.weight @ read)
        th.testing.assert_close(final[i], h)


def test_s6_begins_as_released():
    s6 = S6(D, memory_size=400)
    steps = nn.functional.softplus(s6.step.bias)
    assert 0.0009 < steps.min() < 0.002 and 0.05 < steps.max() < 0.11  # log-uniform: the median is the geometric mean
    assert steps.median().log().item() == pytest.approx(math.log(0.01), abs=0.4)
    th.testing.assert_close(-s6.a_log.exp(), -th.arange(1.0, 17).expand(400, 16))


# -------------------------------------------------------------------------------------------------------- sizes and arguments
@pytest.mark.parametrize(
    "name, kwargs, state_size, parameter_count",
    [
        ("mlp", dict(output_size=7), 0, 5 * 7 + 7),
        ("frame_stack", dict(n_frames=3, output_size=7), 2 * 5, 15 * 7 + 7),
        ("gru", dict(hidden_size=8), 8, 3 * 8 * (5 + 8 + 2)),
        ("lstm", dict(hidden_size=8), 16, 4 * 8 * (5 + 8 + 2)),
        ("shm_paper", dict(memory_size=4, theta="fixed"), 16, 10 + 5 * (8 + 4 + 1 + 4 + 4) + 4 + 4 * 4 + 4),
        ("shm", dict(memory_size=4, theta="fixed"), 16 + 5, 10 + 2 * 5 * (8 + 4 + 1 + 4 + 4) + 4 + 4 + 4 * 4 + 4),
        ("lru", dict(memory_size=6, output_size=4), 12, 3 * 6 + 12 * 5 + 12 * 4 + 5 * 4 + 4),
        ("ffm", dict(memory_size=6, n_contexts=3, output_size=4), 36, 6 + 3 + 6 * 20 + 36 * 4 + 4),
        # The mixer of mambapy 1.2.0 with d_model=32 has as many
        ("s6", dict(memory_size=64, n_states=16, output_size=32, input_size=32), 64 * 16 + 3 * 64, 9920),
    ],
)
def test_sizes(name, kwargs, state_size, parameter_count):
    memory = MEMORIES[name](**{"input_size": D, **kwargs})
    assert memory.state_size() == state_size and memory.parameter_count == parameter_count
    next(memory.parameters()).requires_grad_(False)  # what is not learned does not count
    assert memory.parameter_count < parameter_count


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_memory("mamba", D), "'mlp', 'frame_stack', 'ffm', 'lru', 's6'"),
        (
            lambda: make_memory("lru", D, dict(n_contexts=3)),
            "LRU has no argument 'n_contexts', .* memory_size, output_size, r_min",
        ),
        (lambda: make_memory("s6", D, dict(hidden_size=3)), "S6 has no argument 'hidden_size'"),
        (lambda: MLP(0), "input_size must be an integer, at least 1; got 0"),
        (lambda: MLP(D, 2.5), "output_size must be an integer"),
        (lambda: FrameStack(D, 0), "n_frames must be an integer, at least 1"),
        (lambda: LRU(D, -1), "memory_size must be an integer, at least 1"),
        (lambda: LRU(D, r_min=0.5, r_max=0.4), "r_min must be a finite number, at least 0 and at most 0.4"),
        (lambda: LRU(D, r_max=1.1), "r_max must be a finite number, at most 1 and above 0"),
        (lambda: LRU(D, max_phase=0.0), "max_phase must be a finite number"),
        (lambda: FFM(D, n_contexts=0), "n_contexts must be an integer, at least 1"),
        (lambda: FFM(D, min_period=0.5), "min_period must be a finite number, at least 1"),
        (lambda: FFM(D, min_period=30, max_period=20), "max_period must be a finite number, at least 30"),
        (lambda: S6(D, conv_size=0), "conv_size must be an integer, at least 1"),
        (lambda: S6(D, n_states=True), "n_states must be an integer"),
        (lambda: S6(D, step_rank=0), "step_rank must be an integer, at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_page_of_the_memories():
    """docs/memories.md names every memory with all of its arguments and no others."""
    page = (Path(__file__).parent.parent / "docs" / "memories.md").read_text(encoding="utf-8")
    table, ablations = page[: page.index("## SHM's")], page[page.index("## SHM's") : page.index("## The contract")]
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]+)\|[^|]+\|[^|]+\|$", table, re.MULTILINE))
    assert list(rows) == list(MEMORIES)
    for name, memory_class in MEMORIES.items():
        if not issubclass(memory_class, SHM):
            assert re.findall(r"`(\w+)`", rows[name]) == [*inspect.signature(memory_class).parameters][1:], name
    for argument in [*inspect.signature(SHM).parameters][1:]:
        assert f"`{argument}`" in ablations, argument


# ----------------------------------------------------------------------------------------------------------------- in training
def trained(model: SHMPPO | SHMSAC, steps: int) -> None:
    """Every weight stays finite, and most of them change, the memory's too."""
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(steps)
    after = dict(model.policy.named_parameters())
    assert all(th.isfinite(parameter).all() for parameter in after.values())
    changed = [name for name in before if not th.equal(before[name], after[name])]
    assert any("trunk.memory" in name for name in changed) and len(changed) > len(before) / 2


@pytest.mark.parametrize("name", MEMORIES)
def test_ppo_trains(name):
    """One gradient step per rollout: what is logged before it shows that the update sees the very network that acted."""
    env = make_vec_env(RandomEnv, n_envs=2)
    kwargs = dict(memory=name)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=24, seq_len=12, batch_size=48, n_epochs=1, policy_kwargs=kwargs, seed=0)
    for _ in range(2):  # the second rollout begins inside episodes
        trained(model, 48)
        assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6


@pytest.mark.parametrize("name", MEMORIES)
def test_sac_trains(name):
    env = make_vec_env(RandomEnv, n_envs=2)
    trained(SHMSAC("MlpSHMPolicy", env, learning_starts=30, seq_len=8, policy_kwargs=dict(memory=name), seed=0), 40)
