"""The studies of the memory alone: stability, gradient norms, length, parallel form."""

import math

import pytest
import torch as th

from experiments import gradient_norms, length_scaling, parallel_vs_recurrent, stability
from sb3_shm.memory import PaperSHM, make_memory


@pytest.mark.parametrize("kind", [kind for kind in stability.INPUTS if kind not in ("cards", "bernoulli")])
def test_inputs_have_mean_0_and_variance_1(kind):
    x = stability.draw_inputs(kind, 400, 50, th.Generator().manual_seed(0))
    assert x.shape == (400, 50, 64) and x.dtype == th.float64
    assert abs(x.mean()) < 0.03 and abs(x.var() - 1) < 0.06
    correlation = (x[:, 1:] * x[:, :-1]).mean() / x.square().mean()
    assert abs(correlation - {"ar1": 0.99, "constant": 1.0}.get(kind, 0.0)) < 0.01


def test_bernoulli_and_card_inputs():
    generator = th.Generator().manual_seed(0)
    x = stability.draw_inputs("bernoulli", 40, 50, generator)
    assert set(x.unique().tolist()) == {0, 1} and abs(x.mean() - 0.5) < 0.01
    cards = stability.draw_inputs("cards", 4, 50, generator)
    assert len(cards.flatten(0, 1).unique(dim=0)) == 4 and cards.min() == 0 < cards.max()
    with pytest.raises(ValueError, match="'gaussian', 'bernoulli'"):
        stability.draw_inputs("cauchy", 1, 1, generator)


@pytest.mark.parametrize("inputs", ["gaussian", "constant"])
def test_products_are_products(inputs):
    n, t, h, seed = 3, 30, 5, 7
    rows = {row["theta"]: row for row in stability.products(inputs, True, n, t, h, seed) if row["step"] == t}
    th.manual_seed(seed)
    x = stability.draw_inputs(inputs, n, t, th.Generator().manual_seed(seed))
    for theta in ("fixed", "neural"):  # random rows are drawn after the weights
        th.manual_seed(seed)
        memory = PaperSHM(64, h, theta=theta).double()
        with th.no_grad():
            z = memory.split(memory.projection(memory.norm(x)))
        left = memory.theta_rows.expand(n, t, h) if theta == "fixed" else z["theta"]
        product = (1 + th.tanh(left.unsqueeze(-1) * z["vc"].unsqueeze(-2))).prod(dim=1)
        row = rows[theta]
        assert row["log10_max"] == pytest.approx(product.max().log10().item())
        assert row["log10_min"] == pytest.approx(product.min().log10().item())
        assert row["log10_typical"] == pytest.approx(product.log10().mean().item())
        assert row["log10_mean"] == pytest.approx(product.mean().log10().item())
        assert row["below_0_001"] == pytest.approx((product < 1e-3).double().mean().item())
        assert row["log10_mean_low"] <= row["log10_mean"] <= row["log10_mean_high"]


def test_log_mean_does_not_overflow():
    assert stability.log_mean(th.tensor([2000.0, 2000.0]).double() * math.log(10)).item() == pytest.approx(2000)
    assert stability.log_mean(th.tensor([0.0, math.log(3)])).item() == pytest.approx(math.log10(2))


@pytest.mark.parametrize("model", ["SHM, θ neural", "LSTM"])
def test_norms_estimate_the_jacobian(model, monkeypatch):
    monkeypatch.setattr(gradient_norms, "_N_PROBES", 400)
    rows = gradient_norms.norms(model, "gaussian", 2, 6, 4, seed=3)
    th.manual_seed(3)
    name, kwargs = gradient_norms.MODELS[model]
    size = dict(memory_size=4, clip=None) if name == "shm" else dict(hidden_size=4)
    memory = make_memory(name, 64, {**kwargs, **size}).double()
    x = stability.draw_inputs("gaussian", 2, 6, th.Generator().manual_seed(3))
    starts = th.zeros(2, 6, dtype=th.bool)
    jacobian = th.autograd.functional.jacobian(lambda x: memory(x, memory.initial_state(2), starts)[0][:, -1].sum(0), x)
    norms = jacobian.square().sum(dim=(0, 3)).mean(dim=0).sqrt().flip(0)
    assert [row["lag"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows:
        assert row["norm"] == pytest.approx(norms[row["lag"]].item(), rel=0.1)


def test_recall_is_learned_and_tested_by_pieces(monkeypatch):
    arguments = dict(memory_size=8, train_length=4, steps=400, longest=64, n_test=64, seed=0)
    rows = length_scaling.recall("SHM, θ neural", **arguments)
    assert [row["length"] for row in rows] == [4, 16, 64] and rows[0]["accuracy"] > 0.9
    monkeypatch.setattr(length_scaling, "_CHUNK", 5)
    assert length_scaling.recall("SHM, θ neural", **arguments) == rows
    tokens = length_scaling.draw_tokens(100, 9)
    assert tokens[:, 0].max() < 8 <= tokens[:, 1:-1].min() and tokens[:, 1:-1].max() < 16 and (tokens[:, -1] == 16).all()


def test_a_backend_of_another_device_is_left_out(monkeypatch):
    def refuse(*args):
        raise ValueError("needs another device")

    monkeypatch.setitem(parallel_vs_recurrent.BACKENDS, "elsewhere", refuse)
    assert parallel_vs_recurrent.times("elsewhere", "cpu", 1, 4, 64, seed=0) == []
    lengths = [row["length"] for row in parallel_vs_recurrent.times("reference", "cpu", 1, 4, 64, seed=0)]
    assert lengths == [16, 64]
