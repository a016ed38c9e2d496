"""What goes on inside SHM: diagnostics while training, and pictures."""

import math
import warnings

import numpy as np
import pytest
import torch as th
from PIL import Image
from small_envs import RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_shm import SHMPPO, SHMSAC, MemoryDiagnosticsCallback
from sb3_shm.callbacks.diagnostics import Sequence, measure
from sb3_shm.callbacks.episodes import contributions, exchange_inputs, influence, read_out_weights, record_episode
from sb3_shm.callbacks.pictures import draw_film, draw_read_out, draw_strip
from sb3_shm.envs.single import make_single
from sb3_shm.memory import MLP, SHM, FrameStack, hadamard_recurrence
from sb3_shm.memory.backends.inputs import log_one_plus_tanh
from sb3_shm.memory.inside import calls_of, look_inside
from sb3_shm.policies.trunk import MemoryTrunk

VARIANTS = [
    {},
    dict(theta="fixed"),
    dict(theta="neural", keys="softmax"),
    dict(keys="sum", previous_input=False),
    dict(calibration="none"),
    dict(calibration="random"),
    dict(calibration="constant", layer_norm=False),
]


def envs(n: int = 3, **kwargs) -> DummyVecEnv:
    env = DummyVecEnv([lambda: RandomEnv(**kwargs)] * n)
    env.seed(0)
    return env


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_vectors_make_the_memorys_output(kwargs):
    memory = SHM(5, 6, read_gain=None, shortcut=False, clip=0.3, **kwargs).double()
    memory.projection.weight.data += th.randn_like(memory.projection.weight)
    x, starts = th.randn(2, 9, 5).double(), th.rand(2, 9) < 0.3
    state = memory.initial_state(2)
    context = memory.draw_context(state, starts)
    y, (matrix, *_) = memory(x, state, starts, context)
    inside = look_inside(memory, x, state, starts, context)
    h, last = hadamard_recurrence(inside, state[0], starts, clip=0.3)
    assert th.equal(memory.output(h), y) and th.equal(last, matrix)
    assert th.allclose(inside.log_calibration().exp(), inside.calibration())
    if context is not None:
        with pytest.raises(ValueError, match="rows of θ"):
            look_inside(memory, x, state, starts)


def test_log_one_plus_tanh_neither_overflows_nor_loses_digits():
    z = th.tensor([-400.0, -3.0, 0.0, 3.0, 400.0], dtype=th.float64)
    expected = th.tensor([-800 + math.log(2), math.log1p(math.tanh(-3)), 0, math.log1p(math.tanh(3)), math.log(2)]).double()
    assert th.allclose(log_one_plus_tanh(z), expected)


def loop_values(memory: SHM, x: th.Tensor, starts: th.Tensor) -> dict[str, float]:
    """The diagnostics of one row, step by step and entry by entry."""
    inside = look_inside(memory, x, memory.initial_state(1), starts)
    inside = type(inside)(*(vectors.double() for vectors in inside))
    matrix = th.zeros(memory.memory_size, memory.memory_size, dtype=th.float64)
    product = th.zeros_like(matrix)
    cs, products, m_norms, u_norms, clipped = [], [], [], [], []
    for t in range(x.shape[1]):
        c = 1 + th.tanh(th.outer(inside.theta[0, t], inside.vc[0, t]))
        u = th.outer(inside.v[0, t], inside.k[0, t])
        if starts[0, t]:
            matrix, product = th.zeros_like(matrix), th.zeros_like(matrix)
        else:
            product = product + c.log10()
        matrix = (matrix * c + u).clamp(-memory.clip, memory.clip)
        cs.append(c)
        products.append(product)
        m_norms.append(matrix.norm())
        u_norms.append(u.norm())
        clipped.append((matrix.abs() == memory.clip).float().mean())
    c, products = th.stack(cs), th.stack(products)
    return {
        "C_mean": c.mean(),
        "C_std": c.std(correction=0),
        "C_min": c.min(),
        "C_max": c.max(),
        "C_near_0": (c < 0.1).float().mean(),
        "C_near_2": (c > 1.9).float().mean(),
        "log10_product_max": products.max(),
        "log10_product_mean": products.mean(),
        "log10_product_min": products.min(),
        "M_norm": th.stack(m_norms).mean(),
        "U_norm": th.stack(u_norms).mean(),
        "clipped": th.stack(clipped).mean(),
    }


@pytest.mark.parametrize("name", ["shm", "shm_paper"])
@pytest.mark.parametrize("first", [True, False])
def test_diagnostics_are_those_of_a_loop(first, name):
    trunk = MemoryTrunk(4, name, dict(memory_size=5, theta="neural", clip=0.05), encoder_arch=())
    memory = trunk.memory
    memory.split(memory.projection.weight.data, dim=0)["vc"].mul_(40 if name == "shm" else 4)
    x = th.randn(1, 16, 4)  # as many steps as matrices are looked at
    starts = th.zeros(1, 16, dtype=th.bool)
    starts[0, [0, 9] if first else [9]] = True
    values = measure(Sequence(trunk, x, trunk.initial_state(1), starts, None))
    with th.no_grad():
        expected = loop_values(memory, x, starts)
        inside = look_inside(memory, x, memory.initial_state(1), starts)
    assert 0 < expected["clipped"] < 1 and 0 < expected["C_near_0"] < 1
    for key, value in expected.items():
        assert values[key] == pytest.approx(float(value), rel=1e-4, abs=1e-6), key
    parts = inside.k[0] if name == "shm_paper" else inside.k[0].square()
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in parts.tolist()]
    assert values["k_entropy"] == pytest.approx(np.mean(entropy) / math.log(5), rel=1e-4)

    # The longest past is that of step 8 (9 steps if the row goes on from before): lags beyond it have no value
    assert {key for key in values if "lag" in key} == {"grad_lag_0", "grad_lag_1", "grad_lag_4"}
    signs = th.randint(2, (1, 5), generator=th.Generator().manual_seed(0)) * 2.0 - 1
    jacobian = th.autograd.functional.jacobian(lambda x: memory(x, memory.initial_state(1), starts)[0][0, 8], x)
    for lag in (0, 1, 4):
        gradient = signs[0] @ jacobian[:, 0, 8 - lag]
        assert values[f"grad_lag_{lag}"] == pytest.approx(gradient.norm().item(), rel=1e-4)


class Keep(BaseCallback):
    """Keeps the keys that diagnostics have recorded."""

    def __init__(self):
        super().__init__()
        self.keys: set[str] = set()

    def _on_step(self) -> bool:
        self.keys |= {key for key in self.logger.name_to_value if key.startswith("memory")}
        return True


def train(make, steps: int, callback: BaseCallback | None):
    model = make()
    model.set_logger(configure(None, []))
    keep = Keep()
    model.learn(steps, callback=[keep] if callback is None else [callback, keep], log_interval=1000)
    return model, keep.keys | {key for key in model.logger.name_to_value if key.startswith("memory")}


PPO_KWARGS = dict(n_steps=16, batch_size=48, n_epochs=2, seed=1)
SAC_KWARGS = dict(learning_starts=8, batch_size=4, seq_len=8, train_freq=4, seed=1)
SMALL = dict(memory_kwargs=dict(memory_size=8))
MODELS = {
    "PPO": (SHMPPO, dict(policy_kwargs=SMALL, **PPO_KWARGS), {"memory"}),
    "PPO, two memories": (
        SHMPPO,
        dict(policy_kwargs=dict(share_memory=False, position="sine", **SMALL), **PPO_KWARGS),
        {"memory_pi", "memory_vf"},
    ),
    "SAC": (SHMSAC, dict(policy_kwargs=SMALL, **SAC_KWARGS), {"memory_actor", "memory_critic"}),
    "SAC, shared": (SHMSAC, dict(policy_kwargs=dict(share_memory=True, **SMALL), **SAC_KWARGS), {"memory"}),
    "SAC, GRU acts": (SHMSAC, dict(policy_kwargs=dict(actor_memory="gru"), **SAC_KWARGS), {"memory_critic"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_callback_records_and_changes_nothing(name, capsys):
    algorithm, kwargs, prefixes = MODELS[name]
    for normalize in (False, True):

        def make(normalize=normalize):
            return algorithm("MlpSHMPolicy", VecNormalize(envs()) if normalize else envs(), **kwargs)

        callback = MemoryDiagnosticsCallback(frequency=2)
        with_it, keys = train(make, 160, callback)
        without, no_keys = train(make, 160, None)
        assert not no_keys and {key.split("/")[0] for key in keys} == prefixes
        for prefix in prefixes:
            assert {f"{prefix}/C_mean", f"{prefix}/log10_product_max", f"{prefix}/clipped", f"{prefix}/grad_lag_1"} <= keys
        weights, others = with_it.policy.state_dict(), without.policy.state_dict()
        assert all(th.equal(weights[key], others[key]) for key in others)
    assert ("leaves out memory_actor (GRU)" in capsys.readouterr().out) == (name == "SAC, GRU acts")


def test_a_short_learn_is_recorded_too(tmp_path):
    model = SHMPPO("MlpSHMPolicy", envs(), policy_kwargs=SMALL, **PPO_KWARGS)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(48, callback=MemoryDiagnosticsCallback())
    assert "memory/C_mean" in (tmp_path / "progress.csv").read_text()
    model.set_logger(configure(None, ["stdout"]))
    with pytest.warns(UserWarning, match="tensorboard_log"):
        model.learn(48, callback=MemoryDiagnosticsCallback())


def test_callback_sees_what_the_memory_saw():
    """The state that the replayed rollout ends with is the one that the model goes on from."""
    model = SHMPPO("MlpSHMPolicy", envs(2), policy_kwargs=dict(position="sine", **SMALL), n_steps=24, batch_size=48, seed=0)
    seen = []

    class Spy(MemoryDiagnosticsCallback):
        def _on_rollout_end(self) -> None:
            sequence = self._of_ppo()["memory"]
            with th.no_grad():
                _, (_, step) = sequence.trunk(*sequence[1:])
                _, ((matrix, *_), _) = sequence.trunk(*sequence[1:])
            seen.append(th.allclose(matrix, model._last_state[0][0][0], atol=1e-5))
            seen.append(th.equal(step, model._last_state[0][1]))

    model.learn(96, callback=Spy(1))
    assert len(seen) == 4 and all(seen)


def test_callback_reads_the_end_of_the_tape():
    model = SHMSAC("MlpSHMPolicy", envs(1), policy_kwargs=SMALL, buffer_size=40, seq_len=8, learning_starts=1000)
    observed = []

    class Spy(MemoryDiagnosticsCallback):
        def _on_step(self) -> bool:
            observed.append(model._last_obs[0].copy())
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps == 90:  # more than the tape holds
                sequence = self._of_sac()["memory_actor"]
                rows = sequence.features[0].numpy()
                assert len(rows) == 40 and 0 < int(sequence.episode_start.sum()) < 40
                for i in range(40):  # the rows are in order: each observation that acted appears, after the one before it
                    if rows[i] in np.array(observed):
                        self.found.append(int(np.flatnonzero((np.array(observed) == rows[i]).all(axis=1))[0]))

    spy = Spy(1)
    spy.found = []
    model.learn(90, callback=spy)
    assert spy.found == list(range(90 - len(spy.found), 90)) and len(spy.found) > 30


@pytest.mark.parametrize("position", [None, "sine"])
def test_callback_reads_the_rows_of_the_true_steps(position):
    """On a tape that begins within an episode, rows are those of its steps, and not those of an episode's beginning."""
    kwargs = dict(position=position, **SMALL)
    model = SHMSAC("MlpSHMPolicy", envs(1), policy_kwargs=kwargs, buffer_size=40, seq_len=8, learning_starts=0, seed=3)
    seen = []

    class Spy(MemoryDiagnosticsCallback):
        def _on_rollout_end(self) -> None:
            sequence = self._of_sac()["memory_actor"]
            tape = self.model.replay_buffer
            rows = (int(tape.written[0]) - len(sequence.context[0]) + np.arange(len(sequence.context[0]))) % 40
            steps = tape.steps[0, rows]
            expected = sequence.trunk.memory.deterministic_rows[th.as_tensor(steps, dtype=th.int64)]
            assert th.equal(sequence.context[0, :, 0], expected)
            seen.append(int(steps[0]))

    model.learn(90, callback=Spy(1))
    assert max(seen) > 3


def test_callback_refuses_what_it_cannot_look_into():
    model = SHMPPO("MlpSHMPolicy", envs(), policy_kwargs=dict(memory="gru"), **PPO_KWARGS)
    with pytest.raises(ValueError, match="has GRU"):
        model.learn(48, callback=MemoryDiagnosticsCallback())
    with pytest.raises(ValueError, match="for SHMPPO and SHMSAC, got PPO"):
        PPO("MlpPolicy", envs(), n_steps=16, batch_size=48).learn(48, callback=MemoryDiagnosticsCallback())
    with pytest.raises(ValueError, match="frequency must be an integer, at least 1"):
        MemoryDiagnosticsCallback(0)


@pytest.mark.parametrize("clip", [None, 100.0, 0.2])
@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
def test_contributions_sum_to_what_is_read(algorithm, clip):
    kwargs = dict(memory_size=7, clip=clip, calibration_scale=2.0, theta="neural" if algorithm is SHMPPO else "random")
    model = algorithm("MlpSHMPolicy", envs(longest=40), policy_kwargs=dict(memory_kwargs=kwargs))
    episode = record_episode(model, RandomEnv(longest=40), seed=3)
    assert len(episode) > 20 and episode.clip == clip and not episode.frames
    parts = contributions(episode)
    read = (episode.matrix @ episode.query.unsqueeze(-1)).squeeze(-1)
    assert (episode.matrix.abs() >= 0.2 - 1e-6).any()
    assert (parts.sum(dim=1) - read).abs().max() <= 1e-5 * max(1.0, float(read.abs().max()))
    assert (parts.norm(dim=-1).triu(1) == 0).all()
    weights = read_out_weights(episode)
    assert np.allclose(weights.sum(axis=1)[weights.any(axis=1)], 1)
    if clip is None:  # the equation of the docstring, word by word
        s, t = 4, 15
        left = episode.update[s] * episode.calibration[s + 1 : t + 1].prod(dim=0)
        assert th.allclose(parts[t, s], left @ episode.query[t])


def test_influence_is_that_of_an_exchange():
    """Of a memory that sees the present input alone, its own step's; of one that sees the last three, theirs."""
    x = th.randn(1, 7, 3)
    assert np.allclose(influence(MLP(3, 4), x, None), np.eye(7) * (influence(MLP(3, 4), x, None).diagonal() > 0))
    stack = influence(FrameStack(3, 3), x, None)
    reach = np.tril(np.ones((7, 7))) - np.tril(np.ones((7, 7)), -3)
    assert ((stack > 0) <= (reach > 0)).all() and (stack > 0).sum() > 12
    memory = SHM(3, 4)
    context = memory.draw_context(memory.initial_state(1), th.zeros(1, 7, dtype=th.bool))
    shares = influence(memory, x, context, n_exchanges=1)
    offset = int(th.randint(1, 7, (1,), generator=th.Generator().manual_seed(0)))
    expected = np.zeros((7, 7))
    for s in range(7):
        changed = x.clone()
        changed[0, s] = x[0, (s + offset) % 7]
        with th.no_grad():
            starts = th.zeros(1, 7, dtype=th.bool)
            y, moved = (memory(i, memory.initial_state(1), starts, context)[0][0] for i in (x, changed))
        expected[:, s] = (y - moved).norm(dim=-1)
    assert np.allclose(shares, expected / np.maximum(expected.sum(axis=1, keepdims=True), 1e-30), atol=1e-6)


def test_no_step_is_exchanged_with_itself():
    """Each would count for less than it does, and the one that all are exchanged with for nothing."""
    for t in (2, 3, 8):
        moved = exchange_inputs(lambda x: x, th.eye(t)[None])
        assert np.allclose(moved, np.eye(t) * math.sqrt(2))
    assert exchange_inputs(lambda x: x, th.ones(1, 1, 1)).item() == 0, "there is no other step"


def test_the_model_s_own_statistics_are_the_default():
    vec_env = VecNormalize(envs())
    vec_env.obs_rms.update(np.random.default_rng(0).normal(3, 2, (100, 3)))
    model = SHMPPO("MlpSHMPolicy", vec_env, policy_kwargs=SMALL, seed=0)
    ours, given = (record_episode(model, RandomEnv(longest=40), 3, normalize) for normalize in (None, vec_env))
    assert th.equal(ours.matrix, given.matrix)
    other = VecNormalize(envs(), training=False)
    assert not th.equal(ours.matrix[0], record_episode(model, RandomEnv(longest=40), 3, other).matrix[0])


def test_pictures(tmp_path):
    env = make_single("sb3_shm.envs.popgym.batched:RepeatPrevious", render_mode="rgb_array", n_decks=1, k=4)
    model = SHMPPO("MlpSHMPolicy", env, policy_kwargs=SMALL)
    episode = record_episode(model, env, seed=0, max_steps=9)
    assert len(episode) == len(episode.frames) == 9 and episode.matrix.shape == (9, 8, 8)
    again = record_episode(model, env, seed=0, max_steps=9)
    assert th.equal(again.matrix, episode.matrix)
    draw_strip(episode, tmp_path / "strip.png", steps=[0, 8])
    draw_strip(episode, tmp_path / "strip.svg")
    draw_read_out(episode, tmp_path / "read_out.png")
    draw_film(episode, tmp_path / "film.gif")
    draw_film(episode, tmp_path / "slow.GIF", fps=0.01)
    draw_film(episode, tmp_path / "film.mp4", fps=10)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 9 and film.size == (768, 384)
    with Image.open(tmp_path / "strip.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 50
        # Three matrices high, and the cards, which are 4 by 13, a third of one and not a whole one
        assert 3 < 2 * picture.height / picture.width < 3.3
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("strip.svg", "read_out.png", "film.mp4"))
    with pytest.raises(ValueError, match=r"\.gif or an \.mp4"):
        draw_film(episode, tmp_path / "film.png")
    with pytest.raises(ValueError, match="step of an episode of 9 steps"):
        draw_strip(episode, tmp_path / "strip.png", steps=[9])
    with pytest.raises(ValueError, match="steps must be one step or more, got none"):
        draw_strip(episode, tmp_path / "strip.png", steps=[])
    for fps in (0, 0.001, 1000):
        with pytest.raises(ValueError, match=r"fps must be .* at least 0\.01 and at most 100; got"):
            draw_film(episode, tmp_path / "film.gif", fps=fps)


def test_pictures_need_an_shm():
    with pytest.raises(ValueError, match=r"must be an SHM of one layer .* to be looked into, got LSTM"):
        record_episode(SHMPPO("MlpSHMPolicy", envs(), policy_kwargs=dict(memory="lstm")), RandomEnv())
    with pytest.raises(ValueError, match="must be an SHM"):
        record_episode(PPO("MlpPolicy", envs()), RandomEnv())
    model = SHMPPO("MlpSHMPolicy", envs(), policy_kwargs=dict(memory_layers=2, **SMALL), **PPO_KWARGS)
    with pytest.raises(ValueError, match=r"SHM of one layer \(memory_layers=1\) to be looked into, got 2 × SHM"):
        record_episode(model, RandomEnv())
    with pytest.raises(ValueError, match=r"SHM memories of one layer \(memory_layers=1\), this model has 2 × SHM"):
        model.learn(48, callback=MemoryDiagnosticsCallback())
    with pytest.raises(ValueError, match="env must be a single gymnasium environment, got a VecEnv"):
        record_episode(SHMPPO("MlpSHMPolicy", envs(), policy_kwargs=SMALL), envs())


def test_calls_are_noted_in_the_block_only():
    memory = SHM(3, 4)
    x, starts = th.randn(1, 2, 3), th.zeros(1, 2, dtype=th.bool)
    with calls_of(memory) as calls:
        y, _ = memory(x, memory.initial_state(1), starts, None)
    memory(x, memory.initial_state(1), starts, None)
    assert len(calls) == 1 and calls[0].x is x and calls[0].y is y
