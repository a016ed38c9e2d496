"""Action masks with memory: only legal actions are drawn, what was legal is replayed, gradients are those of the rest."""

import itertools
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from small_envs import RandomEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy as sb3_evaluate
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from test_export import onnx_step

from sb3_shm import SHMPPO, StatefulPredictor, WithMasks
from sb3_shm.callbacks.episodes import record_episode
from sb3_shm.envs.batched import BatchedTask, BatchedVecEnv
from sb3_shm.envs.single import SingleEnv
from sb3_shm.envs.vector import BatchedVectorEnv
from sb3_shm.memory.base import state_tensors
from sb3_shm.policies.distributions import masked_distribution
from sb3_shm.sharing import card
from sb3_shm.sharing.export import ExportedPolicy, export_onnx, export_torch

SMALL = dict(memory_kwargs=dict(memory_size=8), encoder_arch=[16], net_arch=[16])
# Options of each choice, as a mask has them one after the other
SPACES = {
    "discrete": (spaces.Discrete(4), [4]),
    "multidiscrete": (spaces.MultiDiscrete([3, 2, 4]), [3, 2, 4]),
    "multibinary": (spaces.MultiBinary(3), [2, 2, 2]),
}


class MaskedEnv(gym.Env):
    """An illegal action raises. Which ones are legal is drawn at each step, and not to be seen in the observation."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, actions: str = "discrete", length: int = 7):
        self.action_space, self.sizes = SPACES[actions]
        self.length = length

    def draw(self):
        parts = []
        for n in self.sizes:
            part = self.np_random.random(n) < 0.4
            part[self.np_random.integers(n)] = True
            parts.append(part)
        self.legal = parts
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.draw(), {}

    def action_masks(self):
        return np.concatenate(self.legal)

    def step(self, action):
        for option, part in zip(np.atleast_1d(action), self.legal, strict=True):
            if not part[int(option)]:
                raise RuntimeError(f"{action} is illegal: {self.legal}")
        self.t += 1
        over = self.t == self.length
        return self.draw(), float(np.sum(action)), over and self.t % 2 == 0, over, {}


class CountTask(BatchedTask):
    """Copy i may do action (i + step) % 3 alone, and is paid for it; five steps."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, n_envs=1):
        super().__init__(n_envs)
        self.t = np.zeros(n_envs, np.int64)

    def legal(self):
        return (np.arange(self.n_envs) + self.t) % 3

    def action_masks(self):
        return np.arange(3) == self.legal()[:, None]

    def reset(self, indices, generators):
        self.t[indices] = 0

    def observe(self):
        return self.t[:, None].astype(np.float32)

    def step(self, actions):
        assert (actions == self.legal()).all(), "illegal"
        self.t += 1
        return np.ones(self.n_envs, np.float32), self.t == 5, np.zeros(self.n_envs, bool)

    def render(self, index):
        return np.zeros((1, 1, 3), np.uint8)


def make_model(actions="discrete", n_envs=2, env=None, **kwargs):
    env = env or make_vec_env(partial(MaskedEnv, actions), n_envs, seed=0)
    return SHMPPO("MlpSHMPolicy", env, n_steps=32, seq_len=16, batch_size=32, seed=0, policy_kwargs=SMALL, **kwargs)


def collect(model):
    """One rollout without an update, by a policy that is far from uniform."""
    with th.no_grad():
        th.nn.init.orthogonal_(model.policy.action_net.weight, gain=4)
    _, callback = model._setup_learn(10**6, None)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


@pytest.mark.parametrize("actions", SPACES)
def test_ratio_is_one_and_actions_are_legal(actions):
    model = make_model(actions)
    for _ in range(2):  # the second rollout begins inside episodes
        collect(model)
    masks = model.rollout_buffer.action_masks
    assert masks.shape == (32, 2, sum(SPACES[actions][1])) and 0.2 < masks.mean() < 0.9
    for data in model.rollout_buffer.get(32):
        arguments = data.observations, data.actions, data.state, data.episode_starts, data.context
        values, log_prob, entropy = model.policy.evaluate_actions(*arguments, data.action_masks)
        assert (th.exp(log_prob - data.old_log_prob) - 1).abs().max() < 1e-5
        th.testing.assert_close(values, data.old_values, atol=1e-5, rtol=1e-5)
        assert (entropy >= -1e-6).all()
        without = model.policy.evaluate_actions(*arguments)[1]
        assert (without < log_prob - 0.05).float().mean() > 0.5  # replayed without masks it would be another policy
    model.train()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("actions", SPACES)
def test_learning_draws_legal_actions_alone(actions):
    make_model(actions).learn(256)
    with pytest.raises(RuntimeError, match="illegal"):  # or else the environment would prove nothing
        make_model(actions).learn(256, use_masking=False)


@pytest.mark.parametrize("actions", SPACES)
def test_distribution_against_a_softmax_by_hand_and_contrib(actions):
    """Log probabilities, entropies and the gradient of both, where single options are left, too."""
    space, sizes = SPACES[actions]
    generator = th.Generator().manual_seed(0)
    n = 50
    outputs = 3 if actions == "multibinary" else sum(sizes)
    logits = (3 * th.randn(n, outputs, generator=generator, dtype=th.float64)).requires_grad_()
    masks = th.rand(n, sum(sizes), generator=generator) < 0.5
    for part in masks.split(sizes, dim=1):
        part[th.arange(n), th.randint(part.shape[1], (n,), generator=generator)] = True
    distribution = masked_distribution(logits, masks, space)
    taken = distribution.sample()
    log_prob, entropy = distribution.log_prob(taken), distribution.entropy()
    assert log_prob.isfinite().all() and (entropy == 0).sum() == (masks.sum(dim=1) == len(sizes)).sum()

    full = th.stack((th.zeros_like(logits), logits), dim=-1).flatten(1) if actions == "multibinary" else logits
    expected_log_prob, expected_entropy, modes = 0, 0, []
    choices = taken.reshape(n, -1)
    for i, (part, legal) in enumerate(zip(full.split(sizes, dim=1), masks.split(sizes, dim=1), strict=True)):
        assert legal.gather(1, choices[:, i : i + 1]).all()
        weight = th.where(legal, part.exp(), 0)
        p = weight / weight.sum(dim=1, keepdim=True)
        expected_log_prob = expected_log_prob + p.gather(1, choices[:, i : i + 1]).squeeze(1).log()
        expected_entropy = expected_entropy - (p * th.where(legal, p, 1).log()).sum(dim=1)
        modes.append(p.argmax(dim=1))
    th.testing.assert_close(log_prob, expected_log_prob)
    th.testing.assert_close(entropy, expected_entropy)
    assert th.equal(distribution.mode().reshape(n, -1), th.stack(modes, dim=1))
    for ours, theirs in ((log_prob, expected_log_prob), (entropy, expected_entropy)):
        (gradient,) = th.autograd.grad(ours.sum(), logits, retain_graph=True)
        (expected,) = th.autograd.grad(theirs.sum(), logits, retain_graph=True)
        th.testing.assert_close(gradient, expected)
        if actions != "multibinary":
            assert not gradient[~masks].any()

    contrib = make_masked_proba_distribution(space).proba_distribution(full.detach())
    contrib.apply_masking(masks.numpy() if actions == "discrete" else masks)
    th.testing.assert_close(contrib.log_prob(taken), log_prob.detach())
    th.testing.assert_close(contrib.entropy(), entropy.detach())


@pytest.mark.parametrize("actions", SPACES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict(actions, deterministic):
    """For one environment, for several, and by StatefulPredictor: the same memory, and legal actions."""
    model = make_model(actions)
    predictor = StatefulPredictor(model, deterministic)
    single, vector = MaskedEnv(actions), make_vec_env(partial(MaskedEnv, actions), 3, seed=1)
    (obs, _), state = single.reset(seed=3), None
    many, done = vector.reset(), None
    for _ in range(20):
        action, state = model.predict(obs, state, deterministic=deterministic, action_masks=single.action_masks())
        assert action.shape == single.action_space.shape
        obs, _, _, over, _ = single.step(action)
        if over:
            (obs, _), state = single.reset(), None
        several = predictor.act(many, done, action_masks=get_action_masks(vector))
        assert several.shape == (3, *single.action_space.shape)
        many, _, done, _ = vector.step(several)


def test_all_options_legal_is_no_mask():
    for actions in SPACES:
        model = make_model(actions)
        with th.no_grad():
            th.nn.init.orthogonal_(model.policy.action_net.weight, gain=4)
        obs = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
        masks = np.ones((40, sum(SPACES[actions][1])), bool)
        plain, _ = model.predict(obs, deterministic=True)
        assert len(np.unique(plain, axis=0)) > 1
        np.testing.assert_array_equal(model.predict(obs, deterministic=True, action_masks=masks)[0], plain)


def test_contrib_evaluates_with_memory(tmp_path, monkeypatch):
    """contrib's loop drops the state that predict returned; what acts has its memory nevertheless."""
    env = MaskedEnv()
    model = make_model(env=Monitor(env))
    given = []
    real = model.policy._predict

    def spy(observation, state, starts, *args, **kwargs):
        given.append((state, starts.clone()))
        result = real(observation, state, starts, *args, **kwargs)
        given[-1] += (result[1],)
        return result

    monkeypatch.setattr(model.policy, "_predict", spy)
    for n_envs in (1, 2):
        given.clear()
        rewards, lengths = evaluate_policy(
            model, make_vec_env(MaskedEnv, n_envs, seed=5), 4, deterministic=False, return_episode_rewards=True
        )
        assert len(rewards) == 4 and lengths == [7] * 4
        assert given[0][1].all()
        for (_, _, after), (state, starts, _) in itertools.pairwise(given):
            assert state is not None and (starts.all() or flat(state) == flat(after))
    callback = MaskableEvalCallback(Monitor(MaskedEnv()), eval_freq=20, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    model.learn(64, callback)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[7, 7]] * 3


def test_a_missing_state_is_an_empty_memory_but_in_such_a_loop():
    model = make_model()
    obs, starts, masks = np.ones((2, 2), np.float32), np.ones(2, bool), np.ones((2, 4), bool)

    def after(state, starts, masks=masks):
        return flat(model.predict(obs, state, starts, deterministic=True, action_masks=masks)[1])

    first = after(None, starts)
    second = after(None, ~starts)
    assert second != first and after(None, starts) == first
    for state, start, mask in ((None, ~starts, None), (model.policy.pi_trunk.initial_state(2), ~starts, masks)):
        assert after(None, starts) == first
        assert after(state, start, mask) == first
        assert after(None, ~starts) == first  # the run of calls is over
    after(None, starts)
    assert after(None, None) == first


def flat(state):
    return [tensor.tolist() for tensor in state_tensors(state)]


def test_subprocesses_and_wrappers():
    model = make_model(env=SubprocVecEnv([partial(Monitor, MaskedEnv()) for _ in range(2)], start_method="fork"))
    model.learn(64)
    assert model.rollout_buffer.action_masks is not None
    model.env.close()


def test_batched_tasks():
    """The one legal action, in the batch and alone, for Stable-Baselines3 and Gymnasium."""
    vector = BatchedVecEnv(CountTask(3))
    assert is_masking_supported(vector) and is_masking_supported(SingleEnv(CountTask()))
    assert get_action_masks(vector).tolist() == np.eye(3, dtype=bool).tolist()
    assert [mask.tolist() for mask in vector.env_method("action_masks", indices=[2])] == [[False, False, True]]
    for env in (vector, SingleEnv(CountTask()), BatchedVectorEnv(CountTask(3))):
        model = make_model(env=env)
        model.learn(64)
        assert (model.rollout_buffer.action_masks.sum(axis=-1) == 1).all() and not model.rollout_buffer.log_probs.any()
    with pytest.raises(NotImplementedError, match="no single environments"):
        vector.env_method("other")


def test_gymnasium_vector_environments(monkeypatch):
    built = []
    monkeypatch.setattr(MaskedEnv, "__init__", lambda self, init=MaskedEnv.__init__: (built.append(1), init(self))[1])
    for env in (gym.vector.SyncVectorEnv([MaskedEnv] * 2), gym.vector.AsyncVectorEnv([MaskedEnv] * 2, context="fork")):
        model = make_model(env=env)
        built.clear()
        model.learn(64)
        assert model.rollout_buffer.action_masks is not None
        assert len(built) <= 2  # an environment is looked at once, not at each step
        env.close()


class Wrong(MaskedEnv):
    mask = None
    at = 3

    def action_masks(self):
        return type(self).mask if self.t == self.at else super().action_masks()


@pytest.mark.parametrize(
    "mask, match",
    [
        (np.zeros(4, bool), r"environment 1 at its step 3 leaves no legal action: keep"),
        (np.ones(3, bool), r"environment 1 at its step 3 must be 4 bool, one for each option of Discrete\(4\)"),
        (np.ones((4, 4), bool), r"environment 1 at its step 3 must be 4 bool"),
        (True, r"environment 1 at its step 3 must be 4 bool"),
        (np.full(4, 0.5), r"environment 1 at its step 3 must be of bool"),
        (np.full(4, np.nan), r"environment 1 at its step 3 must be of bool"),
    ],
)
def test_wrong_masks_of_environments(mask, match, monkeypatch):
    monkeypatch.setattr(Wrong, "mask", mask)
    model = make_model(env=DummyVecEnv([MaskedEnv, Wrong]))
    with pytest.raises(ValueError, match=match):
        model.learn(64)


def test_wrong_masks_of_users():
    model = make_model()
    obs = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="one action mask for each of 2"):
        model.predict(obs, action_masks=np.ones((1, 4), bool))
    for wrong in (np.ones(5, bool), True):
        with pytest.raises(ValueError, match="environment 0 must be 4 bool"):
            model.predict(obs[0], action_masks=wrong)
    for wrong in (True, np.ones(4, bool)):
        with pytest.raises(ValueError, match="one action mask for each of 2"):
            model.predict(obs, action_masks=wrong)
    with pytest.raises(ValueError, match="environment 1 leaves no legal action"):
        model.predict(obs, action_masks=np.eye(4, dtype=bool)[[0, 1]] * np.array([[1], [0]], bool))
    with pytest.raises(ValueError, match="use_masking must be"):
        model.learn(64, use_masking="yes")
    with pytest.raises(ValueError, match="leaves no legal action in dimension 1"):
        make_model("multidiscrete").predict(obs[0], action_masks=[1, 1, 1, 0, 0, 1, 1, 1, 1])
    model.predict(obs, action_masks=np.eye(4, dtype=int)[[0, 1]])  # 0 and 1 do


class BoxWithMasks(RandomEnv):
    def action_masks(self):
        return np.ones(3, bool)


def test_box_actions_have_no_masks():
    env = make_vec_env(BoxWithMasks, 2, env_kwargs=dict(action_space=spaces.Box(-1, 1, (2,), np.float32)))
    model = make_model(env=env)
    with pytest.raises(ValueError, match=r"need Discrete, MultiDiscrete or MultiBinary actions, got Box.*use_masking=False"):
        model.learn(64)
    model.learn(64, use_masking=False)
    sb3_evaluate(WithMasks(model, env), env, 2)
    with pytest.raises(ValueError, match="need Discrete"):
        model.predict(np.zeros(3, np.float32), action_masks=np.ones(3, bool))
    with pytest.raises(ValueError, match="need Discrete"):
        ExportedPolicy(model, action_masks=True)


def test_nothing_is_asked_where_nothing_is_masked(monkeypatch):
    """No mask is stored, and the environments are asked for the method once, not at each step."""
    model = make_model(env=make_vec_env(RandomEnv, 2, seed=0))
    asked = []
    has_attr = model.env.has_attr
    monkeypatch.setattr(model.env, "has_attr", lambda name: (asked.append(name), has_attr(name))[1])
    monkeypatch.setattr(model.env, "env_method", lambda name, **_: pytest.fail(f"asked for {name}"))
    model.learn(128)
    assert asked == ["action_masks", "action_mask"], "the second is what MaskablePPO does not read, either"
    assert model.rollout_buffer.action_masks is None
    # And where the next environments have masks they are found
    model.set_env(make_vec_env(lambda: MaskedEnv3(), 2, seed=0))
    model.learn(64)
    assert model.rollout_buffer.action_masks is not None


def test_a_method_of_nearly_the_same_name_is_said():
    class Misspelled(RandomEnv):
        def action_mask(self):
            return np.ones(3, bool)

    with pytest.warns(UserWarning, match="action_mask, which is not read: name it action_masks"):
        make_model(env=make_vec_env(Misspelled, 2, seed=0)).learn(64)


class MaskedEnv3(RandomEnv):
    def action_masks(self):
        return np.array([True, False, True])

    def step(self, action):
        assert action != 1
        return super().step(action)


def test_save_and_load(tmp_path):
    model = make_model(n_envs=2)
    model.learn(64)
    model.save(tmp_path / "model")
    again = SHMPPO.load(tmp_path / "model", make_vec_env(MaskedEnv, 2, seed=0))
    again.learn(64)
    assert again.rollout_buffer.action_masks is not None


@pytest.mark.parametrize("actions", SPACES)
def test_export(actions, tmp_path):
    model = make_model(actions)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(2)
    rng = np.random.default_rng(0)
    program = export_torch(model, action_masks=True).module()
    export_onnx(model, tmp_path / "policy.onnx", action_masks=True)
    run = onnx_step(tmp_path / "policy.onnx")
    session = run.__closure__[0].cell_contents
    assert [i.name for i in session.get_inputs()][-2:] == ["episode_start", "action_masks"]
    env = MaskedEnv(actions)
    env.reset(seed=0)
    policy = ExportedPolicy(model, action_masks=True)
    state, own = policy.initial_state(3), None
    differs = 0
    for t in range(20):
        obs, start = rng.uniform(-1, 1, (3, 2)).astype(np.float32), np.full(3, t % 8 == 0)
        rows = []
        for _ in range(3):
            env.draw()
            rows.append(env.action_masks())
        masks = np.stack(rows)
        plain, _ = model.policy.predict(obs, own, start, deterministic=True)
        expected, own = model.predict(obs, own, start, deterministic=True, action_masks=masks)
        feed = {f"state.{i}": tensor.numpy() for i, tensor in enumerate(state)}
        by_onnx = session.run(None, {"obs": obs, "episode_start": start, "action_masks": masks, **feed})[0]
        with th.no_grad():
            action, state = program(*map(th.as_tensor, (obs,)), state, th.as_tensor(start), th.as_tensor(masks))
        for got in (action.numpy(), by_onnx):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        differs += (plain != expected).any()
    assert differs > 5
    with pytest.raises(ValueError, match="action_masks must be"):
        ExportedPolicy(model, action_masks=1)


def test_callers_that_pass_no_masks(tmp_path):
    """They are told once; WithMasks asks for them, with memory, and for environments without masks it does nothing."""
    model = make_model()
    vector = make_vec_env(MaskedEnv, 2, seed=5)
    with pytest.warns(UserWarning, match=r"got no action masks.*MaskableEvalCallback.*WithMasks") as said:
        for _ in range(2):
            model.predict(np.zeros((2, 2), np.float32))
    assert len(said) == 1
    with pytest.raises(RuntimeError, match="illegal"), pytest.warns(UserWarning, match="got no action masks"):
        make_model().learn(64, EvalCallback(Monitor(MaskedEnv()), eval_freq=20, n_eval_episodes=8, verbose=0))
    with_masks = WithMasks(model, vector)
    results = []
    for evaluate, one in ((sb3_evaluate, with_masks), (evaluate_policy, model)):
        vector.seed(5)
        results.append(evaluate(one, vector, 4, return_episode_rewards=True))
    assert results[0] == results[1] and results[0][1] == [7] * 4
    assert sb3_evaluate(WithMasks(model, env := Monitor(MaskedEnv())), env, 4, return_episode_rewards=True)[1] == [7] * 4
    for env in (vector, MaskedEnv()):
        obs = env.reset(seed=1)[0] if env is not vector else env.reset()
        predictor = StatefulPredictor(WithMasks(model, env))
        for _ in range(5):
            obs, *_ = env.step(predictor.act(obs))

    model.learn(64)
    model.save(tmp_path / "model")
    for env in (None, make_vec_env(MaskedEnv, 2)):  # a loaded model knows that it had masks
        with pytest.warns(UserWarning, match="got no action masks"):
            SHMPPO.load(tmp_path / "model", env).predict(np.zeros((2, 2), np.float32))


@pytest.mark.filterwarnings("error")
def test_nobody_is_told_where_there_are_no_masks():
    env = make_vec_env(RandomEnv, 2, seed=0)
    model = make_model(env=env)
    model.predict(np.zeros((2, 3), np.float32))
    rewards = sb3_evaluate(WithMasks(model, env), env, 4, warn=False)
    assert len(rewards) == 2
    masked = make_model()
    masked.policy.predict(np.zeros((2, 2), np.float32))  # and who asks the policy has chosen so


def test_pictures_and_cards_have_masks():
    model = make_model()
    model.learn(64)
    assert record_episode(model, MaskedEnv(), seed=1).actions
    results = card.evaluate(model, make_vec_env(MaskedEnv, 2, seed=1), 4)
    assert len(results["episode_rewards"]) == 4
