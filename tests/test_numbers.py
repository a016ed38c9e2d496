"""Numbers at the ends of float32: what is not finite changes no weight, and messages name what to do."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import example, given
from hypothesis import strategies as st
from small_envs import Memoryless, RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.policies.distributions import QuickCategorical
from sb3_shm.sharing.export import ExportedPolicy
from sb3_shm.shm_ppo import RecurrentSHMPolicy

FLOATS = np.finfo(np.float32)


class InfiniteGradient(Memoryless):
    """Gives its input out; its gradient is not finite."""

    def forward(self, x, state, episode_start, context=None):
        x = x + 0
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * np.inf)
        return x, state


def weights(model) -> th.Tensor:
    """What optimisers change."""
    parameters = [parameter for parameter in model.policy.parameters() if parameter.requires_grad]
    if getattr(model, "log_ent_coef", None) is not None:
        parameters.append(model.log_ent_coef)
    return th.cat([parameter.detach().flatten() for parameter in parameters])


def make_sac(action_space, policy="MlpSHMPolicy", env_class=RandomEnv, **kwargs):
    env = make_vec_env(env_class, 2, env_kwargs=dict(action_space=action_space), seed=0)
    arguments = dict(learning_starts=8, seq_len=4, batch_size=4, buffer_size=1000, seed=0)
    return SHMSAC(policy, env, **{**arguments, "policy_kwargs": dict(memory="gru"), **kwargs})


@pytest.mark.parametrize("max_grad_norm", [0.5, None])
def test_ppo_takes_no_step_along_a_gradient_that_is_not_finite(max_grad_norm):
    model = SHMPPO(
        "MlpSHMPolicy",
        make_vec_env(RandomEnv, 2),
        n_steps=8,
        max_grad_norm=max_grad_norm,
        policy_kwargs=dict(memory=InfiniteGradient),
        normalize_values=False,
    )
    before = weights(model)
    with pytest.raises(ValueError, match=r"loss is finite, but its gradient's norm is (nan|inf) in minibatch 0 .*seq_len"):
        model.learn(16)
    assert th.equal(before, weights(model))


@pytest.mark.parametrize("whose", ["actor", "critic"])
@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(3)])
@pytest.mark.parametrize("max_grad_norm", [0.5, None])
def test_sac_takes_no_step_along_a_gradient_that_is_not_finite(whose, action_space, max_grad_norm):
    model = make_sac(
        action_space,
        max_grad_norm=max_grad_norm,
        ent_coef=0.1,
        policy_kwargs={"memory": "mlp", f"{whose}_memory": InfiniteGradient},
    )
    before = th.nn.utils.parameters_to_vector(getattr(model, whose).parameters()).detach().clone()
    with pytest.raises(ValueError, match=f"{whose}'s loss is finite, but its gradient's norm is (nan|inf)"):
        model.learn(100)
    assert th.equal(before, th.nn.utils.parameters_to_vector(getattr(model, whose).parameters()))


def test_the_entropy_coefficient_takes_no_step_along_a_gradient_that_is_not_finite():
    model = make_sac(spaces.Box(-1, 1, (1,), np.float32))
    model.learn(40)
    model.target_entropy = np.inf
    before = weights(model)
    with pytest.raises(ValueError, match=r"entropy coefficient's loss is -?(nan|inf)"):
        model.train(1, 4)
    assert th.equal(before, weights(model)) and model.log_ent_coef.isfinite()


def test_max_grad_norm_of_sac(tmp_path):
    """It bounds each gradient at each step, and is saved; without it nothing changes, nor with one that is never reached."""
    norms = []

    def run(**kwargs):
        model = make_sac(spaces.Box(-1, 1, (1,), np.float32), **kwargs)
        for part in (model.actor, model.critic):
            part.optimizer.register_step_pre_hook(
                lambda optimizer, *_: norms.append(
                    th.nn.utils.get_total_norm([p.grad for group in optimizer.param_groups for p in group["params"]]).item()
                )
            )
        return model.learn(60)

    bounded = run(max_grad_norm=1e-3)
    assert max(norms) <= 1e-3 * (1 + 1e-5) and min(norms) > 0
    bounded.save(tmp_path / "model")
    assert SHMSAC.load(tmp_path / "model").max_grad_norm == 1e-3
    without, never = run(), run(max_grad_norm=1e6)
    assert th.equal(weights(without), weights(never)) and not th.equal(weights(without), weights(bounded))
    with pytest.raises(ValueError, match="max_grad_norm must be a finite number, above 0"):
        make_sac(spaces.Discrete(2), max_grad_norm=0.0)


class Huge(RandomEnv):
    """From its tenth step on observations or rewards are multiplied."""

    def __init__(self, where="observation", factor=1.0, **kwargs):
        super().__init__(longest=100, **kwargs)
        self.where, self.factor, self.steps = where, factor, 0

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.left = 99
        return obs, info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.steps += 1
        if self.steps >= 10:
            obs, reward = (obs * np.float32(self.factor), reward) if self.where == "observation" else (obs, self.factor)
        return obs, reward, *rest


def make(algorithm, env):
    if algorithm is SHMPPO:
        return SHMPPO("MlpSHMPolicy", env, n_steps=16, n_epochs=2, seed=0)
    return SHMSAC("MlpSHMPolicy", env, learning_starts=8, seq_len=4, batch_size=4, buffer_size=1000, seed=0)


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("where, factor", [("observation", 1e20), ("observation", 1e38), ("reward", 1e20), ("reward", 3e38)])
def test_huge_numbers_work_or_are_named(algorithm, normalize, where, factor):
    """Normalised rewards are small. Otherwise the environment, its step and what to do are named, not the learning rate."""
    env = make_vec_env(Huge, 2, env_kwargs=dict(where=where, factor=factor), seed=0)
    model = make(algorithm, VecNormalize(env) if normalize else env)
    if normalize and where == "reward":
        model.learn(64)
    else:
        with pytest.raises(
            ValueError, match=rf"{where} of environment 0 is too large at its step 10, .*Scale or clip"
        ) as error:
            model.learn(64)
        assert "learning_rate" not in str(error.value)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize(
    "algorithm, where, factor",
    [(SHMPPO, "observation", 1e17), (SHMPPO, "reward", 1e14), (SHMSAC, "observation", 1e8), (SHMSAC, "reward", 1e14)],
)
def test_large_numbers_work(algorithm, where, factor):
    """Below the bounds everything stays finite."""
    model = make(algorithm, make_vec_env(Huge, 2, env_kwargs=dict(where=where, factor=factor), seed=0))
    model.learn(64)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
@pytest.mark.parametrize("size", [1e17, 1e20, 3e38])
def test_predict_of_huge_observations(algorithm, size):
    model = make(algorithm, make_vec_env(RandomEnv, 2))
    obs = np.full((2, 3), size, np.float32) * np.float32([1, -1, 1])
    if size > 1e18:
        with pytest.raises(ValueError, match=r"observation of environment 0 is too large, .*VecNormalize"):
            model.predict(obs)
    else:
        assert model.action_space.contains(model.predict(obs, deterministic=True)[0][0])


def test_entropy_of_masked_logits():
    """Of two actions out of three: that of the two alone, and so are the gradients. Without a mask as before, bit for bit."""
    logits = th.tensor([[0.5, -0.25], [1.0, 2.0]], requires_grad=True)
    masked = th.cat((logits, th.full((2, 1), -th.inf)), dim=1)
    entropy = QuickCategorical(masked).entropy()
    expected = th.distributions.Categorical(logits=logits).entropy()
    th.testing.assert_close(entropy, expected)
    (gradient,) = th.autograd.grad(entropy.sum(), logits)
    (expected_gradient,) = th.autograd.grad(expected.sum(), logits)
    th.testing.assert_close(gradient, expected_gradient)
    log_p = th.log_softmax(logits, dim=-1)
    assert th.equal(QuickCategorical(logits).entropy(), -(log_p.exp() * log_p).sum(dim=-1))


class Masked(th.nn.Linear):
    """Never lets the last action be taken."""

    def forward(self, x):
        logits = super().forward(x)
        return th.cat((logits[..., :-1], th.full_like(logits[..., -1:], -th.inf)), dim=-1)


class MaskedPPOPolicy(RecurrentSHMPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_net.__class__ = Masked


def test_ppo_with_masked_logits():
    model = SHMPPO(MaskedPPOPolicy, make_vec_env(RandomEnv, 2), n_steps=16, ent_coef=0.01, seed=0)
    before = weights(model)
    model.learn(64)
    assert weights(model).isfinite().all() and not th.equal(before, weights(model))
    assert not (model.rollout_buffer.actions == 2).any()


def test_sac_with_masked_logits():
    """Its options count only as far as they can be taken."""
    model = make_sac(spaces.Discrete(3))
    model.learn(40)
    rows = model.replay_buffer.sample(4)
    reading = model.actor.body.read(rows)
    model.actor.logits.__class__ = Masked
    two = th.distributions.Categorical(logits=model.actor.logits(model.actor._latent(reading))[:, :2])
    _, log_prob, weight = model.actor.options(reading)
    th.testing.assert_close(-(weight * log_prob).sum(-1).flatten(), two.entropy())
    (weight * log_prob).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.actor.parameters())


bounds = st.floats(float(FLOATS.min) / 2, float(FLOATS.max) / 2, width=32)


@pytest.fixture(scope="module")
def acting():
    model = make_sac(spaces.Box(-1, 1, (1,), np.float32))
    return model.policy, ExportedPolicy(model)


@given(st.tuples(bounds, bounds).filter(lambda pair: pair[0] < pair[1]), st.floats(-20, 20, width=32))
@example((-0.1, 0.7), 20.0)
@example((float(np.float32(-1.3)), float(np.float32(0.1))), 20.0)
@example((-float(FLOATS.max) / 2, float(FLOATS.max) / 2), 20.0)
@example((float(FLOATS.tiny), 2 * float(FLOATS.tiny)), 20.0)
def test_actions_stay_within_any_bounds(acting, pair, output):
    """A rounding must not carry a scaled action beyond its bound, in use and in exports."""
    policy, exported = acting
    space = spaces.Box(*np.float32(pair).reshape(2, 1), dtype=np.float32)
    policy.action_space = exported.action_space = space
    exported.low, exported.high = th.as_tensor(space.low), th.as_tensor(space.high)
    for squashed in (np.float32([np.tanh(output)]), np.float32([1]), np.float32([-1])):
        action = policy.unscale_action(squashed)
        assert space.contains(action), (action, space)
    for value in (output, np.inf, -np.inf):
        action = exported._mode(th.tensor([[value]])).numpy()[0]
        assert space.contains(action), (action, space)
