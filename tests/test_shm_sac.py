"""SHMSAC: its mathematics by hand and against SB3's SAC, memories of actor and critic, seeds, learning."""

from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numbered_env import ONE_ACTION, three_steps, transitions_of
from small_envs import Memoryless, RandomEnv, RecallEnv
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_shm import SHMSAC
from sb3_shm.memory import GRU, SHM, Memory
from sb3_shm.shm_sac.body import Reading
from sb3_shm.shm_sac.tape import MemoryReplayBuffer

SMALL = dict(memory_kwargs=dict(memory_size=6), encoder_arch=[8], net_arch=[8], shortcut_size=8)


class SumMemory(Memory):
    """Gives out the sum of its inputs since the episode's start."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, input_size)

    def initial_state(self, n):
        return (th.zeros(n, self.input_size),)

    def forward(self, x, state, episode_start, context=None):
        total, outputs = state[0], []
        for t in range(x.shape[1]):
            total = th.where(episode_start[:, t, None], 0, total) + x[:, t]
            outputs.append(total)
        return th.stack(outputs, dim=1), (total,)


class NoMemory(Memory):
    """Gives nothing out."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, 0)

    def initial_state(self, n):
        return ()

    def forward(self, x, state, episode_start, context=None):
        return x[..., :0], state


BARE = dict(encoder_arch=[], shortcut_size=None)  # heads see the memory and the raw observation (and action)


def collect(model: SHMSAC, steps: int) -> None:
    """Steps in each environment at random, without an update."""
    model.learning_starts = 10**9
    model.learn(steps * model.n_envs)


def watch(model: SHMSAC, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keep the next update's batch, and the values of the taken actions with their gradients."""
    seen: dict[str, Any] = {}
    sample, of_taken = model.replay_buffer.sample, model.critic.of_taken

    def keep_sample(*args, **kwargs):
        seen["rows"] = sample(*args, **kwargs)
        return seen["rows"]

    def keep_values(*args):
        seen["q"] = of_taken(*args)
        seen["q"].retain_grad()
        return seen["q"]

    monkeypatch.setattr(model.replay_buffer, "sample", keep_sample)
    monkeypatch.setattr(model.critic, "of_taken", keep_values)
    return seen


def targets_of(seen: dict[str, Any]) -> th.Tensor:
    """
    The critic's targets, (N, T): the loss's gradient by a value is (value - target) / number of transitions that count.
    It is the same target for both critics, and no other transition has a gradient.
    """
    mask, q = seen["rows"].mask, seen["q"]
    assert (q.grad[:, ~mask] == 0).all()
    both = (q.detach() - q.grad * mask.sum()) * mask
    th.testing.assert_close(both[0], both[1], atol=1e-4, rtol=1e-4)
    return both[0]


def set_linear(layer: nn.Linear, weight: list[float], bias: float) -> None:
    with th.no_grad():
        layer.weight.copy_(th.tensor([weight]))
        layer.bias.fill_(bias)


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussian samples of torch's distributions are their means."""
    monkeypatch.setattr(
        th.distributions.normal, "_standard_normal", lambda shape, dtype, device: th.zeros(shape, dtype=dtype, device=device)
    )


def test_targets_by_hand(monkeypatch):
    """
    Observations 1 2 3, cut with 4 seen last; then 10 20, terminated with 30 seen last. The target critics are
    Q' = memory + obs / 10 and 5 more, the memory is a sum, so with γ = 1/2 and no entropy the target is
    r + (sum up to the next observation + next observation / 10) / 2.
    """
    env, _ = three_steps(1)
    kwargs = dict(BARE, memory=SumMemory, net_arch=[])
    model = SHMSAC("MlpSHMPolicy", env, gamma=0.5, ent_coef=0.0, seq_len=None, buffer_size=20, policy_kwargs=kwargs)
    for obs, end in ((1, ""), (2, ""), (3, "cut"), (10, ""), (20, "terminated")):
        scale = 10 if obs >= 10 else 1
        model.replay_buffer.add(
            np.array([[obs]]),
            np.array([[obs + scale]]),
            np.zeros((1, 1)),
            np.array([100.0 * obs]),
            np.array([bool(end)]),
            [{"TimeLimit.truncated": end == "cut"}],
        )
    set_linear(model.critic_target.q_networks[0][0], [1, 0.1, 0], 5)
    set_linear(model.critic_target.q_networks[1][0], [1, 0.1, 0], 0)
    expected = {
        1: 100 + (1 + 2 + 0.2) / 2,
        2: 200 + (1 + 2 + 3 + 0.3) / 2,
        3: 300 + (1 + 2 + 3 + 4 + 0.4) / 2,  # the time-out: its memory has read the last observation
        10: 1000 + (10 + 20 + 2) / 2,  # the sum begins anew
        20: 2000,
    }
    model._setup_learn(1)
    for seq_len, burn_in, wanted in (
        (None, 0, expected),
        (6, 0, expected),  # the whole tape: 1 2 3 4 10 20 30
        (6, 5, expected),  # complete from the episode's start on
        (2, 0, {1: 101.6, 2: 203.15, 3: 300 + (3 + 4 + 0.4) / 2, 10: 1016, 20: 2000}),  # windows know what is in them
        (2, 1, {1: 101.6, 2: 203.15, 3: 300 + (2 + 3 + 4 + 0.4) / 2, 10: 1016, 20: 2000}),
    ):
        model.replay_buffer.set_windows(seq_len, burn_in)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda high, size: np.arange(high))
            if seq_len == 2:  # of all windows these: 1 2 3 alone, the second or both that count; 10 20 30
                chosen = {0: [0, 2, 4], 1: [0, 1, 4]}[burn_in]
                patch.setattr(np.random, "randint", lambda high, size, chosen=chosen: np.array(chosen))
            seen = watch(model, patch)
            model.train(1, 1)
            set_linear(model.critic_target.q_networks[0][0], [1, 0.1, 0], 5)
            set_linear(model.critic_target.q_networks[1][0], [1, 0.1, 0], 0)
        targets, rows = targets_of(seen), seen["rows"]
        got = {rows.observations[i, t].item(): targets[i, t].item() for i, t in rows.mask.nonzero().tolist()}
        assert got == pytest.approx(wanted, rel=1e-5), (seq_len, burn_in)


@pytest.mark.parametrize("n_envs", [1, 2, 3])
@pytest.mark.parametrize("seq_len, burn_in", [(None, 0), (1, 0), (2, 0), (5, 0), (5, 2), (9, 8)])
def test_targets_of_collected_episodes(n_envs, seq_len, burn_in, monkeypatch):
    """
    All of it: what the environment did is kept by the environment, the targets are recomputed with floats, step by step.
    The actor's mean and the critics are linear in memory and observation; there is no noise.
    """
    no_noise(monkeypatch)
    env, inner = three_steps(n_envs)
    kwargs = dict(BARE, memory=SumMemory, net_arch=[])
    model = SHMSAC(
        "MlpSHMPolicy",
        env,
        gamma=0.9,
        ent_coef=0.2,
        seq_len=seq_len,
        burn_in=burn_in,
        buffer_size=20 * n_envs,
        seed=0,
        policy_kwargs=kwargs,
    )
    collect(model, 19)  # 25 rows: the first episode is off the tape, and the last one goes on
    actor, target = (0.02, -0.03, 0.1, 0.3), ((0.4, -0.2, 0.5, 1.0), (0.1, 0.3, -0.5, 1.1))
    set_linear(model.actor.mu, [*actor[:2]], actor[2])
    set_linear(model.actor.log_std, [0, 0], actor[3])
    for q_network, (*weight, bias) in zip(model.critic_target.q_networks, target, strict=True):
        set_linear(q_network[0], weight, bias)

    def target_of(rows: list[tuple], terminal: bool, reward: float) -> float:
        """Rows: the observations that the memory has read, the next one included."""
        total, obs = sum(rows), rows[-1]
        mean = actor[0] * total + actor[1] * obs + actor[2]
        action = np.tanh(mean)
        log_prob = -actor[3] - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2 + 1e-6)
        q = min(w * total + x * obs + a * action + bias for w, x, a, bias in target)
        return reward + (not terminal) * 0.9 * (q - 0.2 * log_prob)

    transitions = transitions_of(inner)
    seen = watch(model, monkeypatch)
    model.train(1, 64)
    targets, rows = targets_of(seen), seen["rows"]
    steps, ends = set(), set()
    for i, t in rows.mask.nonzero().tolist():
        episode, step = transitions[rows.observations[i, t].item()]
        # What the window shows of the episode before the transition
        known = min(t, step)
        assert known == step or t >= burn_in
        read = episode["observations"][step - known : step + 2]
        expected = target_of(read, episode["terminals"][step], episode["rewards"][step])
        assert targets[i, t].item() == pytest.approx(expected, abs=2e-4), (episode, step, known)
        assert rows.actions[i, t].item() == pytest.approx(episode["actions"][step])
        steps.add((step, known))
        ends.add((step, episode["terminals"][step]))
    assert {(2, True), (2, False), (0, False)} <= ends  # terminated, cut, and in the middle
    if seq_len == 5 and burn_in == 0:
        assert {(2, 0), (2, 1), (2, 2)} <= steps
    if burn_in == 8 or seq_len is None:
        assert all(step == known for step, known in steps)


def fill_both(ours: MemoryReplayBuffer, theirs: Any, steps: int) -> dict[tuple, int]:
    """The same random transitions into both buffers. Returns SB3's place of each observation."""
    rng = np.random.default_rng(0)
    place = {}
    obs = rng.normal(size=(1, 3)).astype(np.float32)
    for t in range(steps):
        further = rng.normal(size=(1, 3)).astype(np.float32)
        args = (
            rng.uniform(-1, 1, size=(1, 2)).astype(np.float32),
            rng.normal(size=1),
            np.array([t % 7 == 6]),
            [{"TimeLimit.truncated": t % 2 == 0}],
        )
        for buffer in (ours, theirs):
            buffer.add(obs, further, *args)
        place[tuple(obs[0].tolist())] = t
        obs = rng.normal(size=(1, 3)).astype(np.float32) if args[2] else further
    return place


@pytest.mark.parametrize("ent_coef", ["auto_0.3", 0.2])
@pytest.mark.parametrize("seq_len, burn_in", [(1, 0), (5, 2), (None, 0)])
def test_without_memory_equals_sac(ent_coef, seq_len, burn_in, monkeypatch):
    """The same losses on the same transitions, and the same weights, optimizers and targets after each of three updates."""
    no_noise(monkeypatch)
    env = RandomEnv(action_space=spaces.Box(-1, 1, (2,), np.float32))
    kwargs = dict(ent_coef=ent_coef, gamma=0.9, tau=0.1, target_update_interval=1, learning_rate=1e-3, buffer_size=200, seed=0)
    theirs = SAC("MlpPolicy", env, policy_kwargs=dict(net_arch=[64, 64]), **kwargs)
    ours = SHMSAC(
        "MlpSHMPolicy",
        env,
        seq_len=seq_len,
        burn_in=burn_in,
        policy_kwargs=dict(BARE, memory=NoMemory, net_arch=[64, 64]),
        **kwargs,
    )
    renamed = {name.replace(".qf", ".q_networks."): w for name, w in theirs.policy.state_dict().items()}
    ours.policy.load_state_dict(renamed)
    place = fill_both(ours.replay_buffer, theirs.replay_buffer, 100)
    for model in (ours, theirs):
        model._setup_learn(1)
    for _ in range(3):
        with monkeypatch.context() as patch:
            seen = watch(ours, patch)
            ours.train(1, 16)
        rows = seen["rows"]
        taken = np.array([place[tuple(obs)] for obs in rows.observations[:, :-1][rows.mask].tolist()])
        assert len(taken) > 8
        with monkeypatch.context() as patch:
            # Places, then environments
            patch.setattr(np.random, "randint", lambda low, high, size, t=taken: t if np.ndim(size) == 0 else np.zeros_like(t))
            theirs.train(1, len(taken))
        losses = [name for name in theirs.logger.name_to_value if name.startswith("train/")]
        assert len(losses) == 5 + isinstance(ent_coef, str)  # with the learning rate and the number of updates
        for name in losses:
            assert ours.logger.name_to_value[name] == pytest.approx(theirs.logger.name_to_value[name], abs=1e-5), name
        renamed = {name.replace(".qf", ".q_networks."): w for name, w in theirs.policy.state_dict().items()}
        for name, weight in ours.policy.state_dict().items():
            th.testing.assert_close(weight, renamed[name], atol=1e-5, rtol=0)
        if isinstance(ent_coef, str):
            th.testing.assert_close(ours.log_ent_coef, theirs.log_ent_coef, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share_memory", [False, True])
@pytest.mark.parametrize("seq_len, burn_in", [(None, 0), (5, 2)])
def test_discrete_losses_by_hand(share_memory, seq_len, burn_in, monkeypatch):
    """Expectations over all actions, as sums in a loop over the transitions."""
    env, inner = three_steps(2, spaces.Discrete(3))
    kwargs = dict(BARE, memory=SumMemory, net_arch=[5], share_memory=share_memory)
    model = SHMSAC(
        "MlpSHMPolicy",
        env,
        gamma=0.8,
        ent_coef="auto_0.4",
        target_entropy=0.7,
        seq_len=seq_len,
        burn_in=burn_in,
        buffer_size=100,
        seed=0,
        learning_rate=0.01,
        policy_kwargs=kwargs,
    )
    collect(model, 21)
    for q_network in model.critic_target.q_networks:  # another than the critic
        nn.init.normal_(q_network[-1].weight)
    before = deepcopy(model.policy)
    seen = watch(model, monkeypatch)
    model.train(1, 8)
    logged = model.logger.name_to_value
    rows = seen["rows"]
    transitions = transitions_of(inner)

    def distribution(read: list[float]) -> th.Tensor:
        x = th.tensor([[sum(read), read[-1]]])
        return th.log_softmax(before.actor.logits(before.actor.latent_pi(x)), dim=1)[0]

    def q_values(critic: nn.Module, read: list[float]) -> list[th.Tensor]:
        x = th.tensor([[sum(read), read[-1]]])
        return [q_network(x)[0] for q_network in critic.q_networks]

    critic_losses, surpluses, actor_losses = [], [], []
    with th.no_grad():
        for i, t in rows.mask.nonzero().tolist():
            episode, step = transitions[rows.observations[i, t].item()]
            begin = step - min(t, step)
            read, further = episode["observations"][begin : step + 1], episode["observations"][begin : step + 2]
            log_p, log_p_next = distribution(read), distribution(further)
            q_next = [min(a, b) for a, b in zip(*q_values(before.critic_target, further), strict=True)]
            value = sum(log_p_next[a].exp() * (q_next[a] - 0.4 * log_p_next[a]) for a in range(3))
            target = episode["rewards"][step] + 0.8 * (not episode["terminals"][step]) * value
            q_taken = [q[episode["actions"][step]] for q in q_values(before.critic, read)]
            critic_losses.append(sum(0.5 * (q - target) ** 2 for q in q_taken))
            surpluses.append(sum(log_p[a].exp() * log_p[a] for a in range(3)) + 0.7)
            # The actor follows the critic that was just updated
            q_now = [min(a, b) for a, b in zip(*q_values(model.critic, read), strict=True)]
            actor_losses.append(sum(log_p[a].exp() * (0.4 * log_p[a] - q_now[a]) for a in range(3)))
    assert len(critic_losses) > 12
    assert logged["train/critic_loss"] == pytest.approx(np.mean(critic_losses), rel=1e-4)
    assert logged["train/ent_coef_loss"] == pytest.approx(-np.log(0.4) * np.mean(surpluses), rel=1e-4)
    assert logged["train/actor_loss"] == pytest.approx(np.mean(actor_losses), rel=1e-4)
    assert logged["train/ent_coef"] == pytest.approx(0.4)


@pytest.mark.parametrize("seq_len", [5, None])
def test_position_is_that_in_the_episode(seq_len, monkeypatch):
    """Also where a window begins within an episode."""
    env = make_vec_env(RandomEnv, 2, seed=0)
    model = SHMSAC("MlpSHMPolicy", env, buffer_size=400, seq_len=seq_len, seed=0, policy_kwargs=dict(SMALL, position="sine"))
    collect(model, 60)
    rows = model.replay_buffer.sample(16)
    assert (rows.steps[:, 0] > 0).any() == (seq_len is not None)
    position, seen = model.critic.body.trunk.position, []
    forward = position.forward
    monkeypatch.setattr(position, "forward", lambda x, index: forward(x, seen.append(index) or index))
    model.critic.body.read(rows)
    counts = rows.mask if seq_len is None else th.ones_like(rows.mask)  # nothing lies behind the last of the whole episodes
    assert th.equal(seen[0][:, :-1][counts], rows.steps[:, :-1][counts])


def test_discrete_actions_follow_the_logits():
    """Sampled with the Gumbel trick: as often as their probabilities say."""
    model = SHMSAC("MlpSHMPolicy", RandomEnv(), buffer_size=200, policy_kwargs=dict(BARE, memory=Memoryless, net_arch=[]))
    with th.no_grad():
        model.actor.logits.weight.zero_()
        model.actor.logits.bias.copy_(th.tensor([0.6, 0.1, 0.3]).log())
    obs = np.zeros((20_000, 3), dtype=np.float32)
    counts = np.bincount(model.predict(obs)[0], minlength=3) / len(obs)
    np.testing.assert_allclose(counts, [0.6, 0.1, 0.3], atol=0.015)
    assert (model.predict(obs, deterministic=True)[0] == 0).all()


def test_target_entropy():
    box = RandomEnv(action_space=spaces.Box(-1, 1, (2, 3), np.float32))
    for env, given, expected in ((box, "auto", -6), (RandomEnv(), "auto", 0.3 * np.log(3)), (box, -1.5, -1.5)):
        model = SHMSAC("MlpSHMPolicy", env, buffer_size=200, target_entropy=given, policy_kwargs=SMALL)
        assert model.target_entropy == pytest.approx(expected)


@pytest.mark.parametrize("action_space", [ONE_ACTION, spaces.Discrete(3)], ids=["box", "discrete"])
def test_shared_memory_is_trained_by_the_critic_alone(action_space, monkeypatch):
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(action_space=action_space), seed=0)
    model = SHMSAC("MlpSHMPolicy", env, buffer_size=400, seq_len=8, seed=0, policy_kwargs=dict(SMALL, share_memory=True))
    assert model.actor.body is None and model.policy.pi_trunk is model.critic.body.trunk
    body = list(model.critic.body.parameters())
    held = {id(p) for group in model.actor.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.actor.parameters()} and not held & {id(p) for p in body}
    collect(model, 40)
    after_critic = []
    critic_step = model.critic.optimizer.step

    def step(*args, **kwargs):
        after_critic.extend(p.grad.clone() for p in body)
        return critic_step(*args, **kwargs)

    monkeypatch.setattr(model.critic.optimizer, "step", step)
    heads = [p.detach().clone() for p in model.actor.parameters()]
    model.train(1, 8)
    assert all(grad.any() for grad in after_critic)
    assert all(th.equal(grad, p.grad) for grad, p in zip(after_critic, body, strict=True))
    assert all(not th.equal(old, new) for old, new in zip(heads, model.actor.parameters(), strict=True))


def test_own_memory_is_trained_by_the_actor(monkeypatch):
    """And the critic by its own loss: neither changes what the other trains."""
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(action_space=ONE_ACTION), seed=0)
    model = SHMSAC("MlpSHMPolicy", env, buffer_size=400, seq_len=8, seed=0, policy_kwargs=SMALL)
    collect(model, 40)
    grads = {}
    critic_step, actor_step = model.critic.optimizer.step, model.actor.optimizer.step

    def step(name, inner):
        grads[name] = [[p.grad is not None and p.grad.clone() for p in part.parameters()] for part in (actor, critic)]
        return inner()

    actor, critic = model.actor, model.critic
    monkeypatch.setattr(model.critic.optimizer, "step", lambda: step("critic", critic_step))
    monkeypatch.setattr(model.actor.optimizer, "step", lambda: step("actor", actor_step))
    model.train(1, 8)
    assert not any(grad is not False and grad.any() for grad in grads["critic"][0])
    assert all(grad.any() for grad in grads["critic"][1])
    assert all(grad.any() for grad in grads["actor"][0])
    assert all(th.equal(a, b) for a, b in zip(grads["critic"][1], grads["actor"][1], strict=True))


def test_values_of_chosen_actions_have_no_gradient_of_weights():
    model = SHMSAC("MlpSHMPolicy", RandomEnv(action_space=ONE_ACTION), buffer_size=200, seed=0, policy_kwargs=SMALL)
    critic, trunk = model.critic, model.critic.body.trunk
    reading = Reading(th.randn(2, 3, trunk.input_size), th.randn(2, 3, trunk.output_size))
    actions = th.rand(2, 3, 1, requires_grad=True)
    values, chosen = critic(reading, actions), critic.of_chosen(reading, actions)
    assert th.equal(values, chosen)
    (expected,) = th.autograd.grad(values.sum(), actions)
    chosen.sum().backward()
    assert th.equal(actions.grad, expected) and expected.any()
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())


def test_gru_acts_and_shm_criticises():
    """The released meta-RL code's choice, in one line."""
    model = SHMSAC("MlpSHMPolicy", RandomEnv(), buffer_size=200, policy_kwargs=dict(actor_memory="gru"))
    assert isinstance(model.actor.body.trunk.memory, GRU) and isinstance(model.critic.body.trunk.memory, SHM)
    assert isinstance(model.critic_target.body.trunk.memory, SHM)
    kwargs = dict(memory_kwargs=dict(memory_size=5), actor_memory="lstm", actor_memory_kwargs=dict(hidden_size=7))
    model = SHMSAC("MlpSHMPolicy", RandomEnv(), buffer_size=200, learning_starts=80, policy_kwargs=kwargs).learn(84)
    assert model.actor.body.trunk.output_size == 7 and model.critic.body.trunk.output_size == 5
    kwargs = dict(memory="gru", critic_memory="shm", critic_memory_kwargs=dict(memory_size=9))
    model = SHMSAC("MlpSHMPolicy", RandomEnv(), buffer_size=200, policy_kwargs=kwargs)
    assert isinstance(model.actor.body.trunk.memory, GRU) and model.critic.body.trunk.memory.memory_size == 9


@pytest.mark.parametrize("action_space", [ONE_ACTION, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("share_memory", [False, True])
def test_same_seed_same_run(action_space, share_memory):
    def run(seed: int) -> tuple[th.Tensor, np.ndarray]:
        env = make_vec_env(RandomEnv, 2, seed=seed, env_kwargs=dict(action_space=action_space))
        model = SHMSAC(
            "MlpSHMPolicy",
            env,
            buffer_size=400,
            learning_starts=60,
            seq_len=10,
            batch_size=4,
            seed=seed,
            policy_kwargs=dict(SMALL, share_memory=share_memory, position="sine"),
        ).learn(100)
        assert model._n_updates == 20
        return nn.utils.parameters_to_vector(model.policy.parameters()), model.replay_buffer.actions

    first, again, other = run(7), run(7), run(8)
    assert th.equal(first[0], again[0]) and not th.equal(first[0], other[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("share_memory", [False, True])
def test_random_rows_are_drawn_afresh(share_memory):
    """By default nothing of the drawing is kept: the same batch is read differently each time, by all networks."""
    env = make_vec_env(RandomEnv, 2, seed=0)
    model = SHMSAC(
        "MlpSHMPolicy", env, buffer_size=400, seq_len=8, seed=0, policy_kwargs=dict(SMALL, share_memory=share_memory)
    )
    collect(model, 40)
    rows = model.replay_buffer.sample(4)
    assert rows.context is None and model.replay_buffer.contexts.size == 0
    for body in {model.policy.acting_body, model.critic.body, model.critic_target.body}:
        with th.no_grad():
            assert not th.allclose(body.read(rows).memory, body.read(rows).memory)


@pytest.mark.parametrize("share_memory", [False, True])
def test_stored_rows_are_replayed(share_memory, monkeypatch):
    """With ``replay_context`` the acting memory, and it alone, gets in the update the rows that it drew when it acted."""
    env, _ = three_steps(2)
    model = SHMSAC(
        "MlpSHMPolicy",
        env,
        buffer_size=400,
        seq_len=8,
        seed=0,
        replay_context=True,
        policy_kwargs=dict(SMALL, share_memory=share_memory),
    )
    drawn = {}
    draw = model.policy.pi_trunk.draw_context

    def keep(*args):
        context = draw(*args)
        for obs, row in zip(model._last_obs, context, strict=True):
            drawn[obs.item()] = row.item()
        return context

    with monkeypatch.context() as patch:
        patch.setattr(model.policy.pi_trunk, "draw_context", keep)
        collect(model, 40)
    assert len(drawn) == 80 and len(set(drawn.values())) > 20
    used: dict[str, list] = dict(acting=[], critic=[], target=[])
    for name, body in (
        ("acting", model.policy.acting_body),
        ("critic", model.critic.body),
        ("target", model.critic_target.body),
    ):
        if name == "critic" and share_memory:
            continue
        inner = body.trunk.memory.forward

        def forward(x, state, start, context=None, name=name, inner=inner):
            used[name].append(context)
            return inner(x, state, start, context)

        monkeypatch.setattr(body.trunk.memory, "forward", forward)
    seen = watch(model, monkeypatch)
    model.train(1, 16)
    rows = seen["rows"]
    assert rows.context.shape == (16, 9, 1) and rows.context.dtype == th.uint8
    for i, t in rows.mask.nonzero().tolist():
        assert rows.context[i, t].item() == drawn[rows.observations[i, t].item()]
    # Shared: the critic reads before and after its update
    assert len(used["acting"]) == 1 + share_memory
    assert all(th.equal(context, rows.context) for context in used["acting"])
    # The others draw their own
    assert len(used["critic"]) == (0 if share_memory else 2) and len(used["target"]) == 1
    others = [*used["critic"], *used["target"]]
    assert not any(th.equal(context, rows.context) for context in others)
    assert not any(th.equal(a, b) for a, b in pairwise(others))


def play(model: Any, observations: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Deterministic actions over T steps: observations (T, n, ...), starts (T, n)."""
    state, actions = None, []
    for obs, start in zip(observations, starts, strict=True):
        action, state = model.predict(obs, state, start, deterministic=True)
        actions.append(action)
    return np.stack(actions)


@pytest.mark.parametrize("kwargs", [{}, dict(share_memory=True), dict(actor_memory="lstm"), dict(position="sine")])
def test_deterministic_actions(kwargs, tmp_path):
    """Repeatable, alone as in a batch, before as after saving; and the memory matters."""
    box = spaces.Box(-0.5, 2, (2,), np.float32)
    env = make_vec_env(RandomEnv, 3, seed=0, env_kwargs=dict(action_space=box))
    model = SHMSAC(
        "MlpSHMPolicy",
        env,
        buffer_size=300,
        learning_starts=90,
        seq_len=8,
        batch_size=4,
        seed=0,
        learning_rate=0.01,
        policy_kwargs=dict(SMALL, **kwargs),
    ).learn(120)
    rng = np.random.default_rng(0)
    observations, starts = rng.normal(size=(20, 3, 3)).astype(np.float32), rng.random((20, 3)) < 0.1
    together = play(model, observations, starts)
    assert together.shape == (20, 3, 2) and (together >= -0.5).all() and (together <= 2).all()
    np.testing.assert_array_equal(play(model, observations, starts), together)
    for i in range(3):
        alone = play(model, observations[:, i], starts[:, i : i + 1])
        np.testing.assert_allclose(alone, together[:, i], atol=1e-5)  # BLAS adds up in another order
    assert np.abs(play(model, observations, np.ones_like(starts)) - together).max() > 1e-4
    model.save(tmp_path / "model")
    th.manual_seed(99)
    np.testing.assert_array_equal(play(SHMSAC.load(tmp_path / "model"), observations, starts), together)


class RecallBox(RecallEnv):
    """The last step's action must go to the cue's side: it earns up to 1, or as much less. No memory gets 0."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action):
        obs, _, over, truncated, info = super().step(0)
        return obs, (2 * self.cue - 1) * float(action[0]) if over else 0.0, over, truncated, info


@pytest.mark.parametrize("env_class", [RecallEnv, RecallBox], ids=["discrete", "box"])
def test_learns_to_recall(env_class):
    """A cue of the first step decides the last one: with a memory it is learnt, without it cannot be."""
    scores = {}
    for memory in ("shm", Memoryless):
        solved = StopTrainingOnRewardThreshold(0.9)
        evaluation = EvalCallback(
            make_vec_env(env_class, 8, seed=1), solved, n_eval_episodes=50, eval_freq=50, verbose=0, warn=False
        )
        SHMSAC(
            "MlpSHMPolicy",
            make_vec_env(env_class, 8, seed=0),
            learning_rate=5e-3,
            buffer_size=20_000,
            learning_starts=400,
            batch_size=32,
            tau=0.1,
            gamma=0.95,
            ent_coef=0.05,
            seq_len=None,
            seed=0,
            policy_kwargs=dict(
                memory=memory,
                memory_kwargs=dict(memory_size=8) if memory == "shm" else None,
                encoder_arch=[32],
                net_arch=[32],
                shortcut_size=8,
            ),
        ).learn(5000 if memory == "shm" else 2000, callback=evaluation)
        scores[memory] = evaluation.best_mean_reward
    assert scores["shm"] > 0.9 and scores[Memoryless] < 0.5, scores
