"""Action masks in SHMSAC: legal actions alone are done, each row of the tape has its mask, and what is learned goes by it."""

import math
import pickle
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from test_export import onnx_step
from test_shm_sac import BARE, SMALL, NoMemory, collect, watch

from sb3_shm import SHMSAC, tell_last_mask
from sb3_shm.envs.batched import BatchedTask, BatchedVecEnv
from sb3_shm.envs.single import SingleEnv
from sb3_shm.envs.vector import BatchedVectorEnv
from sb3_shm.sharing.export import ExportedPolicy, export_onnx, export_torch
from sb3_shm.shm_sac.targets import reachable_entropy
from sb3_shm.training.masks import check_masks

N = 3


def legal(obs):
    """Which of three actions are legal is a function of the observation, so that each row of a tape tells its mask."""
    return (1 + np.asarray(obs, int)[..., :1] % 7) >> np.arange(N) & 1 == 1


class ByObservation(gym.Env):
    """An illegal action raises. Episodes of three steps end, those of two are cut off, one after the other."""

    observation_space = spaces.Box(0, 1000, (1,), np.float32)
    action_space = spaces.Discrete(N)

    def __init__(self):
        self.episodes = 0

    def draw(self):
        self.obs = self.np_random.integers(1000, size=1).astype(np.float32)
        return self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self.t = 0
        return self.draw(), {}

    def action_masks(self):
        return legal(self.obs)

    def step(self, action):
        if not legal(self.obs)[action]:
            raise RuntimeError(f"{action} is illegal")
        self.t += 1
        is_cut = self.episodes % 2 == 0
        return self.draw(), float(self.np_random.normal()), not is_cut and self.t == 3, is_cut and self.t == 2, {}


class ByObservationTask(BatchedTask):
    """The same for copies in step; odd copies are cut off."""

    observation_space = ByObservation.observation_space
    action_space = ByObservation.action_space

    def __init__(self, n_envs=1):
        super().__init__(n_envs)
        self.t = np.zeros(n_envs, np.int64)
        self.rng = np.random.default_rng(0)
        self.obs = np.zeros((n_envs, 1), np.float32)

    def action_masks(self):
        return legal(self.obs)

    def reset(self, indices, generators):
        self.t[indices] = 0
        self.obs[indices] = self.rng.integers(1000, size=(len(indices), 1))

    def observe(self):
        return self.obs.copy()

    def step(self, actions):
        assert legal(self.obs)[np.arange(self.n_envs), actions].all(), "illegal"
        self.t += 1
        self.obs = self.rng.integers(1000, size=(self.n_envs, 1)).astype(np.float32)
        is_odd = np.arange(1, self.n_envs + 1) % 2 == 1
        over = self.t == 2 + np.arange(self.n_envs) % 2
        return np.ones(self.n_envs, np.float32), over & ~is_odd, over & is_odd

    def render(self, index):
        return np.zeros((1, 1, 3), np.uint8)


def make(env=None, **kwargs):
    arguments = dict(buffer_size=200, batch_size=4, seq_len=6, learning_starts=10, seed=0, policy_kwargs=SMALL)
    return SHMSAC("MlpSHMPolicy", env or make_vec_env(ByObservation, 2, seed=0), **{**arguments, **kwargs})


def check_tape(model, knows_last=True):
    """Each row has the mask of its observation, but those of real ends, whose values do not count."""
    tape = model.replay_buffer
    n_last = 0
    for env in range(tape.n_envs):
        for row in range(min(tape.written[env], tape.buffer_size)):
            is_last = not tape.is_transition[env, row] and not (tape.is_open[env] and row == tape.written[env] - 1)
            if is_last and (tape.terminals[env, row - 1] or not knows_last):
                continue
            n_last += is_last
            np.testing.assert_array_equal(tape.action_masks[env, row], legal(tape.tape[""][env, row]))
    assert n_last > 3 or not knows_last
    return n_last


VECTORS = {
    "single": ByObservation,
    "dummy": lambda: make_vec_env(ByObservation, 2, seed=0),
    "normalize": lambda: VecNormalize(make_vec_env(ByObservation, 2, seed=0), norm_obs=False),
    "subprocess": lambda: SubprocVecEnv([lambda: tell_last_mask(Monitor(ByObservation()))] * 2, start_method="fork"),
    "batched": lambda: BatchedVecEnv(ByObservationTask(3)),
    "copy": lambda: SingleEnv(ByObservationTask(1)),
    "gymnasium's": lambda: BatchedVectorEnv(ByObservationTask(3)),
    "next step": lambda: gym.vector.SyncVectorEnv([ByObservation] * 2),
    "same step": lambda: gym.vector.SyncVectorEnv([ByObservation] * 2, autoreset_mode=AutoresetMode.SAME_STEP),
    "disabled": lambda: gym.vector.SyncVectorEnv([ByObservation] * 2, autoreset_mode=AutoresetMode.DISABLED),
    "async": lambda: gym.vector.AsyncVectorEnv([ByObservation] * 2, context="fork"),
    "async, same step": lambda: gym.vector.AsyncVectorEnv(
        [lambda: tell_last_mask(ByObservation())] * 2, context="fork", autoreset_mode=AutoresetMode.SAME_STEP
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("vector", VECTORS)
def test_each_row_has_its_mask(vector):
    """Acting at random, then by the policy; the last observations' masks, too."""
    model = make(VECTORS[vector](), train_freq=20)
    model.learn(60 * model.n_envs)
    assert model._n_updates > 0
    check_tape(model)
    model.env.close()


def test_illegal_actions_would_raise():
    with pytest.raises(RuntimeError, match="illegal"):
        make(learning_starts=100).learn(100, use_masking=False)
    with pytest.raises(RuntimeError, match="illegal"):
        make(learning_starts=0).learn(100, use_masking=False)


def test_warm_up_is_uniform_over_what_is_legal():
    model = make(make_vec_env(ByObservation, 8, seed=0), buffer_size=8000, learning_starts=10**6)
    with pytest.warns(UserWarning, match="changed nothing"):
        model.learn(3000)
    tape = model.replay_buffer
    done = tape.is_transition & (np.arange(1000) < tape.written[:, None] - 1)
    masks, actions = tape.action_masks[done], tape.actions[done][:, 0]
    for mask in np.unique(masks, axis=0):
        counts = np.bincount(actions[(masks == mask).all(axis=1)], minlength=N)
        n, p = counts.sum(), mask / mask.sum()
        assert not counts[~mask].any() and n > 100
        np.testing.assert_allclose(counts, n * p, atol=4 * math.sqrt(n) / 2)


def test_a_last_mask_that_is_not_told():
    """It is taken to be as one step before, and that is said once."""
    model = make(SubprocVecEnv([ByObservation] * 2, start_method="fork"))
    with pytest.warns(UserWarning, match=r"Time ran out in environment \d, .*wrapper_class=sb3_shm.tell_last_mask") as said:
        model.learn(60)
    assert len(said) == 1
    check_tape(model, knows_last=False)
    tape = model.replay_buffer
    ends = np.argwhere(~tape.is_transition & (np.arange(tape.buffer_size) < tape.written[:, None] - 1))
    assert len(ends) > 8
    for env, row in ends:
        np.testing.assert_array_equal(tape.action_masks[env, row], tape.action_masks[env, row - 1])
    model.env.close()


@pytest.mark.parametrize("share_memory, seq_len, burn_in, n_steps", [(False, None, 0, 1), (True, 6, 2, 1), (False, 6, 0, 3)])
def test_losses_by_hand(share_memory, seq_len, burn_in, n_steps, monkeypatch):
    """Expectations over the legal actions, as sums in loops over transitions and actions."""
    kwargs = dict(BARE, memory=NoMemory, net_arch=[5], share_memory=share_memory)
    model = make(
        gamma=0.8,
        ent_coef="auto_0.4",
        target_entropy=0.7,
        seq_len=seq_len,
        burn_in=burn_in,
        n_steps=n_steps,
        learning_rate=0.01,
        policy_kwargs=kwargs,
    )
    collect(model, 60)
    with th.no_grad():
        for part in (model.actor, model.critic, model.critic_target):
            for parameter in part.parameters():  # observations of hundreds, moderate values; each part its own
                parameter.normal_(std=0.3)
        for first in (model.actor.latent_pi[0], *(q[0] for q in (*model.critic.q_networks, *model.critic_target.q_networks))):
            first.weight.mul_(0.01)
    before = deepcopy(model.policy)
    seen = watch(model, monkeypatch)
    model.train(1, 8)
    logged = model.logger.name_to_value
    rows = seen["rows"]

    def options(obs):
        """Probability of each legal action."""
        scores = before.actor.logits(before.actor.latent_pi(obs.view(1, 1)))[0].exp()
        which = [a for a in range(N) if legal(obs.view(1).numpy())[a]]
        return {a: scores[a] / sum(scores[b] for b in which) for a in which}

    def least(critic, obs):
        return [min(values) for values in zip(*(q(obs.view(1, 1))[0] for q in critic.q_networks), strict=True)]

    with th.no_grad():
        one, mask = {}, rows.mask
        value = {}
        for i, t in np.ndindex(*mask.shape):
            obs = rows.observations[i, t + 1]
            value[i, t] = sum(p * (least(before.critic_target, obs)[a] - 0.4 * p.log()) for a, p in options(obs).items())
            one[i, t] = rows.rewards[i, t] + 0.8 * (1 - rows.terminals[i, t]) * value[i, t]
        target = dict(one)
        for _ in range(n_steps - 1):
            target = {
                (i, t): rows.rewards[i, t]
                + 0.8
                * (1 - rows.terminals[i, t])
                * (target[i, t + 1] if t + 1 < mask.shape[1] and mask[i, t + 1] else value[i, t])
                for i, t in one
            }
        critic_losses, surpluses, actor_losses = [], [], []
        for i, t in mask.nonzero().tolist():
            obs, action = rows.observations[i, t], int(rows.actions[i, t])
            p = options(obs)
            q_taken = [q(obs.view(1, 1))[0][action] for q in before.critic.q_networks]
            critic_losses.append(sum(0.5 * (q - target[i, t]) ** 2 for q in q_taken))
            surpluses.append(sum(p[a] * p[a].log() for a in p) + 0.7 * math.log(len(p)) / math.log(N))
            q_now = least(model.critic, obs)
            actor_losses.append(sum(p[a] * (0.4 * p[a].log() - q_now[a]) for a in p))
    assert len(critic_losses) > 12
    assert {len(options(rows.observations[i, t])) for i, t in mask.nonzero().tolist()} == {1, 2, 3}
    assert logged["train/critic_loss"] == pytest.approx(np.mean(critic_losses), rel=1e-4)
    assert logged["train/ent_coef_loss"] == pytest.approx(-np.log(0.4) * np.mean(surpluses), rel=1e-4)
    assert logged["train/actor_loss"] == pytest.approx(np.mean(actor_losses), rel=1e-4)


def test_the_target_of_the_entropy_can_be_reached():
    masks = th.tensor([[True] * 4, [True, True, False, False], [False, True, False, False]])
    of_all = 0.9 * math.log(4)
    th.testing.assert_close(reachable_entropy(of_all, masks), th.tensor([of_all, 0.9 * math.log(2), 0]))
    assert reachable_entropy(of_all, None) == of_all
    assert reachable_entropy(0.0, th.ones(2, 1, dtype=th.bool)).tolist() == [0, 0]


class Forbidden(gym.Env):
    """
    Two places in turn. The best action by far is illegal in one of them, and nothing in the observation says so but the
    place: 3 steps, reward 1 for the best legal action.
    """

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def action_masks(self):
        return np.array([True, True, self.t % 2 == 1])

    def step(self, action):
        assert self.action_masks()[action]
        reward = float(action == (2 if self.t % 2 else 1))
        self.t += 1
        return np.full(1, self.t % 2, np.float32), reward, False, self.t == 6, {}


def test_learns_values_of_legal_actions():
    """With γ = 0.5 and no entropy the values are known: an illegal action in the targets would make them others."""
    kwargs = dict(BARE, memory=NoMemory, net_arch=[32])
    env = make_vec_env(Forbidden, 4, seed=0)
    model = make(
        env, gamma=0.5, ent_coef=0.01, learning_rate=0.01, tau=0.05, buffer_size=4000, batch_size=16, policy_kwargs=kwargs
    )
    with th.no_grad():  # what is illegal seems best
        for critic in (model.critic, model.critic_target):
            for q_network in critic.q_networks:
                q_network[-1].bias[2] = 10
    model.learn(1000)
    mean, _ = evaluate_policy(model, env, 4, warn=False)
    assert mean == 6
    obs = th.zeros(1, 1)
    with th.no_grad():
        values = [q_network(obs)[0] for q_network in model.critic.q_networks]
    for value in values:  # reward 1 at each step from here on, or from the next step on
        assert value[1].item() == pytest.approx(2, abs=0.15) and value[0].item() == pytest.approx(1, abs=0.15)
        assert value[2] > 4  # never done, never learned


def test_save_load_and_go_on(tmp_path):
    """The loaded model with the loaded tape updates like the one that was saved, bit by bit, and acts by masks."""
    model = make()
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "tape")
    env = make_vec_env(ByObservation, 2, seed=1)
    again = SHMSAC.load(tmp_path / "model", env)
    assert again._has_masks and again._last_masks is None
    again.load_replay_buffer(tmp_path / "tape")
    check_tape(again)
    after = []
    for one in (model, again):
        one._setup_learn(1, reset_num_timesteps=False)
        th.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  # SB3's generator
        one.train(3, 4)
        after.append(th.cat([parameter.flatten() for parameter in one.policy.parameters()]))
    assert th.equal(*after)
    callback = MaskableEvalCallback(
        Monitor(ByObservation()), eval_freq=20, n_eval_episodes=4, log_path=str(tmp_path), verbose=0
    )
    again.learn(60, callback, reset_num_timesteps=False)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[3, 2, 3, 2]]
    check_tape(again)


def test_in_pieces_equals_at_once():
    def run(pieces):
        model = make(replay_context=True)
        for i, steps in enumerate(pieces):
            model.learn(steps, reset_num_timesteps=i == 0)
        return model

    once, pieces = run([60]), run([6, 34, 20])
    np.testing.assert_array_equal(once.replay_buffer.action_masks, pieces.replay_buffer.action_masks)
    np.testing.assert_array_equal(once.replay_buffer.actions, pieces.replay_buffer.actions)
    check_tape(pieces)


def test_tapes_without_masks(tmp_path):
    """One of an earlier version loads; what is on it counts as all legal, and what comes has its masks."""

    class AllLegal(ByObservation):
        def step(self, action):
            action = int(np.flatnonzero(legal(self.obs))[0])
            return super().step(action)

    model = make(make_vec_env(AllLegal, 2, seed=0))
    model.learn(40, use_masking=False)
    assert model.replay_buffer.action_masks is None and model.replay_buffer.sample(4).action_masks is None
    vars(model.replay_buffer).pop("action_masks")
    model.save_replay_buffer(tmp_path / "tape")
    with open(tmp_path / "tape.pkl", "rb") as file:
        assert "action_masks" not in vars(pickle.load(file))
    other = make()
    other.load_replay_buffer(tmp_path / "tape")
    other.learn(60)
    tape = other.replay_buffer
    assert tape.action_masks[:, :20].all() and not tape.action_masks[:, 25:50].all(axis=-1).all()
    before = tape.action_masks.copy(), tape.written.copy()
    other.set_env(make_vec_env(AllLegal, 2, seed=0))
    other.learn(20, use_masking=False, reset_num_timesteps=False)  # and without masks all are legal
    for env, written in enumerate(before[1]):
        assert tape.action_masks[env, written : tape.written[env]].all()
        np.testing.assert_array_equal(tape.action_masks[env, :written], before[0][env, :written])


def test_nothing_is_asked_where_nothing_is_masked(monkeypatch):
    model = make(make_vec_env(RandomEnv, 2, seed=0))
    monkeypatch.setattr(model.env, "env_method", lambda name, **_: pytest.fail(f"asked for {name}"))
    model.learn(60)
    assert model.replay_buffer.action_masks is None
    assert "step" not in vars(model.env.envs[0])


def test_reset_by_a_callback():
    """The transition keeps the mask of what it saw, and the next episode begins with its own."""
    model = make()
    model.learn(60, callback=lambda values, _: bool(values["self"].num_timesteps % 14 or len(values["env"].reset()) + 1))
    check_tape(model)


class Wrong(ByObservation):
    def action_masks(self):
        return np.zeros(N, bool) if self.t == 2 else super().action_masks()


@pytest.mark.parametrize("is_last", [False, True])
def test_no_legal_action(is_last):
    env = Wrong()
    env.episodes = 0 if not is_last else 1  # the first episode ends after three steps, or is cut off after two
    with pytest.raises(ValueError, match="environment 0 at its step 2 leaves no legal action"):
        make(DummyVecEnv([lambda: env])).learn(20)


class BoxWithMasks(RandomEnv):
    def action_masks(self):
        return np.ones(3, bool)


def test_box_actions_have_no_masks():
    model = make(make_vec_env(BoxWithMasks, 2, env_kwargs=dict(action_space=spaces.Box(-1, 1, (2,), np.float32))))
    with pytest.raises(ValueError, match=r"need Discrete, MultiDiscrete or MultiBinary actions, got Box.*use_masking=False"):
        model.learn(20)
    model.learn(20, use_masking=False)
    for call in (
        lambda: model.predict(np.zeros(3, np.float32), action_masks=np.ones(3, bool)),
        lambda: ExportedPolicy(model, action_masks=True),
    ):
        with pytest.raises(ValueError, match="need Discrete"):
            call()
    with pytest.raises(ValueError, match="use_masking must be"):
        model.learn(20, use_masking=1)


def test_predict_and_export(tmp_path):
    model = make(policy_kwargs=dict(SMALL, share_memory=True))
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(2)
    rng = np.random.default_rng(0)
    program = export_torch(model, action_masks=True).module()
    export_onnx(model, tmp_path / "policy.onnx", action_masks=True)
    session = onnx_step(tmp_path / "policy.onnx").__closure__[0].cell_contents
    state, own, differs = ExportedPolicy(model, action_masks=True).initial_state(5), None, 0
    for t in range(20):
        obs, start = rng.integers(1000, size=(5, 1)).astype(np.float32), np.full(5, t % 8 == 0)
        masks = legal(obs)
        plain, _ = model.policy.predict(obs, own, start, deterministic=True)
        drawn, _ = model.predict(obs, own, start, action_masks=masks)
        assert masks[np.arange(5), drawn].all()
        expected, own = model.predict(obs, own, start, deterministic=True, action_masks=masks)
        feed = {f"state.{i}": tensor.numpy() for i, tensor in enumerate(state)}
        by_onnx = session.run(None, {"obs": obs, "episode_start": start, "action_masks": masks, **feed})[0]
        with th.no_grad():
            action, state = program(th.as_tensor(obs), state, th.as_tensor(start), th.as_tensor(masks))
        np.testing.assert_array_equal(action.numpy(), expected)
        np.testing.assert_array_equal(by_onnx, expected)
        assert masks[np.arange(5), expected].all()
        agrees = masks[np.arange(5), plain]
        np.testing.assert_array_equal(plain[agrees], expected[agrees])  # the best of all is the best of some
        differs += not agrees.all()
    assert differs > 5


def test_actor_alone_takes_masks():
    model = make()
    obs = np.arange(7, dtype=np.float32)[:, None]
    ours, _ = model.predict(obs, deterministic=True, action_masks=legal(obs))
    np.testing.assert_array_equal(model.actor.predict(obs, deterministic=True, action_masks=legal(obs))[0], ours)


def test_masks_are_checked_at_once():
    """As one array, whatever the environments return; 0 and 1 do, and rows that are not flat."""
    space = spaces.Discrete(3)
    rows = [np.array([True, False, True]), np.array([False, True, False])]
    for masks in (rows, tuple(rows), np.stack(rows), [row.tolist() for row in rows], [row.astype(np.int8) for row in rows]):
        np.testing.assert_array_equal(check_masks(masks, space, 2), np.stack(rows))
    square = check_masks([np.eye(2, dtype=bool)], spaces.MultiBinary(2), 1)
    assert square.tolist() == [[True, False, False, True]]
    kept = check_masks(rows, space, 2)
    rows[0][:] = False  # an environment may write into its mask
    assert kept[0].any()


def test_telling_twice_and_copies():
    """tell_last_mask may be called twice, and what it returns pickles."""
    env = tell_last_mask(tell_last_mask(ByObservation()))
    copy = pickle.loads(pickle.dumps(env))
    for one in (env, copy, deepcopy(env)):
        one.episodes = 1  # the next is cut off
        one.reset(seed=0)
        infos = [one.step(int(legal(one.obs).argmax()))[-1] for _ in range(2)]
        assert "terminal_action_masks" not in infos[0]
        np.testing.assert_array_equal(infos[1]["terminal_action_masks"], legal(one.obs))
