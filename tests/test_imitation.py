"""Demonstrations: what the policies say of whole episodes, and cloning."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import RandomEnv, RecallEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.imitation import clone

SMALL = dict(encoder_arch=[16, 16], memory_kwargs=dict(memory_size=8))
BOX = spaces.Box(-3, 1, (2,), np.float32)
both = pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])


def recall_episodes(n, length=4):
    """A player that knows the cue, in imitation's form and in Minari's by turns."""
    env, episodes = RecallEnv(length), []
    for seed in range(n):
        obs, actions, rewards = [env.reset(seed=seed)[0]], [], []
        terminated = False
        while not terminated:
            actions.append(env.cue)
            after, reward, terminated, *_ = env.step(actions[-1])
            obs.append(after)
            rewards.append(reward)
        if seed % 2:
            ends = np.arange(len(actions)) == len(actions) - 1
            episode = SimpleNamespace(
                observations=np.array(obs), actions=np.array(actions), rewards=rewards, terminations=ends
            )
        else:
            episode = SimpleNamespace(obs=np.array(obs), acts=np.array(actions), rews=np.array(rewards), terminal=True)
        episodes.append(episode)
    assert all(sum(getattr(e, "rews", getattr(e, "rewards", None))) == 1 for e in episodes)
    return episodes


@pytest.mark.parametrize("share_memory", [True, False])
def test_without_a_state_episodes_begin(share_memory):
    env = make_vec_env(
        RandomEnv, 1, env_kwargs=dict(observation_space=spaces.Dict(a=spaces.Box(-2, 2, (3,)), b=spaces.Discrete(4)))
    )
    policy = SHMPPO("MultiInputSHMPolicy", env, seed=0, policy_kwargs=dict(share_memory=share_memory, **SMALL)).policy
    policy.set_training_mode(False)
    obs = {"a": th.randn(3, 5, 3), "b": th.randint(0, 4, (3, 5))}
    actions = th.randint(0, 3, (3, 5))
    starts = th.zeros(3, 5, dtype=th.bool)
    starts[:, 0] = True
    th.manual_seed(0)
    ours = policy.evaluate_actions(obs, actions)
    th.manual_seed(0)
    expected = policy.evaluate_actions(obs, actions, policy.initial_state(3), starts)
    assert all(th.equal(a, b) for a, b in zip(ours, expected, strict=True))
    distribution, _ = policy.get_distribution(obs, deterministic=True)
    logits = distribution.distribution.logits.view(3, 5, -1)  # SB3's distributions are overwritten by the next
    state = policy.pi_trunk.initial_state(3)
    for t in range(5):
        one, state = policy.get_distribution({key: o[:, t] for key, o in obs.items()}, state, starts[:, t], deterministic=True)
        th.testing.assert_close(logits[:, t], one.distribution.logits)


def test_a_state_without_starts_goes_on():
    policy = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), policy_kwargs=dict(memory="gru")).policy
    policy.set_training_mode(False)
    actions = th.randint(0, 3, (2, 6))
    obs = th.as_tensor(np.stack([[RandomEnv().observation_space.sample() for _ in range(6)] for _ in range(2)]))
    with th.no_grad():
        whole, _, _ = policy.evaluate_actions(obs, actions)
        _, state, _ = policy._latents(obs[:, :4].flatten(0, 1), policy.initial_state(2), th.zeros(2, 4, dtype=th.bool))
        rest, _, _ = policy.evaluate_actions(obs[:, 4:], actions[:, 4:], state)
        th.testing.assert_close(rest, whole[:, 4:])
    with pytest.raises(ValueError, match="state and episode_starts go together"):
        policy.get_distribution(obs[:, 0], policy.pi_trunk.initial_state(2))


def test_a_flat_batch_is_refused():
    model = SHMPPO("MlpSHMPolicy", RandomEnv(), policy_kwargs=SMALL)
    for obs in (th.zeros(7, 3), th.zeros(2, 7, 4), th.zeros(3)):
        with pytest.raises(
            ValueError, match=r"N episodes of T steps .*, \(N, T, 3\): obs\[None\].*give state and episode_starts"
        ):
            model.policy.evaluate_actions(obs, th.zeros(7))
        with pytest.raises(ValueError, match=r"\(N, T, 3\)"):
            model.policy.get_distribution(obs)
        with pytest.raises(ValueError, match=r"\(N, T, 3\)"):
            SHMSAC("MlpSHMPolicy", RandomEnv(), policy_kwargs=SMALL).policy.log_prob(obs, th.zeros(7))


@pytest.mark.parametrize("kwargs", [dict(algorithm=SHMPPO), dict(algorithm=SHMSAC), dict(algorithm=SHMSAC, share_memory=True)])
def test_cloned_agents_remember(kwargs):
    algorithm = kwargs["algorithm"]
    policy_kwargs = SMALL | {key: value for key, value in kwargs.items() if key != "algorithm"}
    arguments = dict(n_steps=32) if algorithm is SHMPPO else dict(seq_len=None, batch_size=4)
    model = algorithm("MlpSHMPolicy", RecallEnv(), seed=0, policy_kwargs=policy_kwargs, **arguments)
    history = clone(model, recall_episodes(60), n_epochs=15, batch_size=4, learning_rate=5e-3)
    assert len(history) == 15 and history[-1]["validation_accuracy"] == 1
    assert history[-1]["loss"] < 0.1 and history[-1]["validation_loss"] < min(0.1, history[0]["validation_loss"])
    assert evaluate_policy(model, make_vec_env(RecallEnv, 4, seed=99), 20)[0] == 1
    if algorithm is SHMPPO:  # the discounted return of each step
        first = th.as_tensor(recall_episodes(1)[0].obs[None, :-1])
        values, *_ = model.policy.evaluate_actions(first, th.zeros(first.shape[:2]))
        expected = 0.99 ** th.arange(first.shape[1] - 1, -1, -1)
        assert (values[0] - expected).abs().max() < 0.3
    elif algorithm is SHMSAC and model.policy.actor.body is None:
        ours, target = model.critic.body.state_dict(), model.critic_target.body.state_dict()
        assert all(th.equal(ours[name], target[name]) for name in ours)
    model.learn(64)


@pytest.mark.parametrize("kwargs", [{}, dict(use_sde=True), dict(use_sde=True, squash=True)])
@both
def test_cloned_actions_have_the_environment_s_scale(algorithm, kwargs):
    """What squashes works within -1 and 1."""
    kwargs = dict(kwargs)
    squashes = dict(squash_output=True) if kwargs.pop("squash", False) and algorithm is SHMPPO else {}
    space = spaces.Box(-1, 1, (1,), np.float32)
    env = make_vec_env(
        RandomEnv, 1, env_kwargs=dict(observation_space=space, action_space=spaces.Box(-2, 6, (1,), np.float32))
    )
    model = algorithm("MlpSHMPolicy", env, seed=0, policy_kwargs=dict(SMALL, **squashes), **kwargs)
    obs = np.random.default_rng(0).uniform(-1, 1, (50, 5, 1)).astype(np.float32)
    clone(model, [SimpleNamespace(obs=o, acts=3 * o + 2, terminal=False) for o in obs], n_epochs=60, learning_rate=3e-3)
    actions, _ = model.predict(obs[:, 0], episode_start=np.ones(50, bool), deterministic=True)
    assert np.abs(actions - 3 * obs[:, 0] - 2).mean() < 0.35


@pytest.mark.parametrize("normalize_values", [True, False])
def test_values_are_normalised_if_they_shall_be(normalize_values):
    env = make_vec_env(RecallEnv, 1)
    model = SHMPPO("MlpSHMPolicy", env, normalize_values=normalize_values, seed=0, policy_kwargs=SMALL)
    clone(model, recall_episodes(8), n_epochs=1, batch_size=4)
    assert (model.policy.value_statistics[-1] == 1) == (not normalize_values)


@both
def test_continuous_actions_of_episodes_of_several_lengths(algorithm):
    """An action is what was seen two steps ago; the padding of short episodes counts nowhere."""
    space = spaces.Box(-1, 1, (2,), np.float32)
    generator, episodes = np.random.default_rng(0), []
    for length in generator.integers(3, 9, size=40):
        obs = generator.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions = np.concatenate((np.zeros((2, 2), np.float32), obs[:-2])) - 1  # in [-2, 0]
        episodes.append(SimpleNamespace(obs=obs, acts=actions, terminal=False))
    env = VecNormalize(make_vec_env(RandomEnv, 1, env_kwargs=dict(observation_space=space, action_space=BOX)), training=False)
    model = algorithm("MlpSHMPolicy", env, seed=0, policy_kwargs=SMALL)
    history = clone(model, episodes, n_epochs=3, batch_size=8)
    assert history[-1]["loss"] < history[0]["loss"] and np.isnan(history[-1]["validation_accuracy"])
    obs = th.zeros(1, 4, 2)
    longer = th.cat((obs, th.ones(1, 3, 2)), dim=1)
    actions = th.full((1, 7, 2), -0.5)
    if algorithm is SHMSAC:
        th.manual_seed(0)
        short = model.policy.log_prob(obs, actions[:, :4])
        th.manual_seed(0)
        assert short.isfinite().all() and model.policy.log_prob(longer, actions)[:, :4].shape == short.shape
        # of the same distribution that acts: the density of the sample that options() draws
        reading, _ = model.policy.acting_body(obs[0], model.policy.pi_trunk.initial_state(1), th.zeros(1, 4, dtype=th.bool))
        sample, log_prob, _ = model.actor.options(reading)
        th.testing.assert_close(model.actor.log_prob(reading, sample), log_prob[..., 0], atol=1e-3, rtol=1e-3)


def test_refusals():
    model = SHMPPO("MlpSHMPolicy", RandomEnv(), policy_kwargs=SMALL)
    good = SimpleNamespace(obs=np.zeros((4, 3)), acts=np.zeros(3, int), terminal=True)
    for wrong, message in (
        (
            SimpleNamespace(obs=np.zeros((4, 3))),
            r"Episode 1 must have obs, acts and terminal .*observations, actions and term",
        ),
        (SimpleNamespace(obs=np.zeros((5, 3)), acts=np.zeros(3, int)), "Episode 1 must have as many observations as actions"),
        (SimpleNamespace(obs=np.zeros((0, 3)), acts=np.zeros(0, int)), "Episode 1 must have as many observations as actions"),
        (
            SimpleNamespace(obs=np.zeros((3, 3)), acts=np.array([0, 1, 3])),
            "The actions of episode 1 must be of the action space",
        ),
        (
            SimpleNamespace(obs=np.full((3, 3), np.nan), acts=np.zeros(3, int)),
            "observation of episode 1 of step 0 is not finite",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            clone(model, [good, wrong])
    with pytest.raises(ValueError, match="two or more, got 1"):
        clone(model, [good])
    with pytest.raises(ValueError, match="must be a SHMPPO or SHMSAC"):
        clone(None, [good, good])
    for name, wrong in dict(n_epochs=0, batch_size=0, learning_rate=0, validation_fraction=1, max_grad_norm=0).items():
        with pytest.raises(ValueError, match=name):
            clone(model, [good, good], **{name: wrong})
    assert np.isnan(clone(model, [good, good], n_epochs=1, validation_fraction=0)[0]["validation_loss"])


def test_statistics_that_have_seen_nothing_begin_with_the_episodes():
    """Between 0 and 1,000 a fresh VecNormalize, clip_obs=10, would show nearly all as one number."""
    space = spaces.Dict(a=spaces.Box(0, 1000, (1,), np.float32), b=spaces.Discrete(2))
    generator = np.random.default_rng(0)
    episodes = []
    for _ in range(30):
        a = generator.uniform(0, 1000, (10, 1)).astype(np.float32)
        obs = dict(a=a, b=np.zeros(10, int))
        episodes.append(SimpleNamespace(obs=obs, acts=(a[:, 0] > 500).astype(int), terminal=True))
    env_kwargs = dict(observation_space=space, action_space=spaces.Discrete(2))
    env = VecNormalize(make_vec_env(RandomEnv, 1, env_kwargs=env_kwargs), norm_obs_keys=["a"])
    model = SHMPPO("MultiInputSHMPolicy", env, seed=0, policy_kwargs=SMALL)
    assert clone(model, episodes, n_epochs=10, learning_rate=1e-2)[-1]["validation_accuracy"] > 0.9
    seen = np.concatenate([episode.obs["a"] for episode in episodes])
    statistics = env.obs_rms["a"]
    assert abs(statistics.count - 300) < 1 and np.allclose(statistics.mean, seen.mean(axis=0), rtol=1e-3)
    clone(model, episodes, n_epochs=1)
    assert abs(statistics.count - 300) < 1, "what has seen something stays as it is"
    env = VecNormalize(make_vec_env(RandomEnv, 1), training=False)
    episode = SimpleNamespace(obs=np.ones((4, 3)), acts=np.zeros(3, int))
    clone(SHMPPO("MlpSHMPolicy", env, policy_kwargs=SMALL), [episode] * 2, n_epochs=1)
    assert env.obs_rms.count < 1 and not env.obs_rms.mean.any()
    env.training = True
    wrong = SimpleNamespace(obs=np.ones((4, 1)), acts=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"must be of \(3,\), in episode 1 they are of \(1,\)"):
        clone(SHMPPO("MlpSHMPolicy", env, policy_kwargs=SMALL), [episode, wrong], n_epochs=1)


def test_rewards_are_one_finite_number_a_step():
    model = SHMPPO("MlpSHMPolicy", RandomEnv(), seed=0, normalize_values=False, policy_kwargs=SMALL)

    def episode(rewards):
        return SimpleNamespace(obs=np.zeros((4, 3)), acts=np.zeros(3, int), rews=rewards, terminal=True)

    good = episode(np.ones(3))
    for rewards in (
        [1, np.nan, 1],
        [1, np.inf, 1],
        [1, 1e300, 1],
        np.ones(2),
        np.ones(4),
        np.ones((1, 3)),
        np.ones((3, 2)),
        ["a"] * 3,
    ):
        with pytest.raises(ValueError, match="The rewards of episode 1 must be 3 finite numbers, got"):
            clone(model, [good, episode(rewards)])
    assert all(part.isfinite().all() for part in model.policy.parameters())
    losses = []
    for shape in ((3,), (3, 1)):
        model = SHMPPO("MlpSHMPolicy", RandomEnv(), seed=0, normalize_values=False, policy_kwargs=SMALL)
        clone(model, [episode(np.arange(3.0).reshape(shape) * k) for k in (1, 10, 3)], n_epochs=1)
        losses.append(model.policy.value_net.weight.detach().clone())
    assert th.equal(*losses), "(T, 1) is (T,)"


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Discrete(3), [0, 0.7, 1]),
        (spaces.Discrete(3), [0, np.nan, 1]),
        (spaces.Discrete(3), np.eye(3)),
        (spaces.Discrete(3), ["left", "right", "left"]),
        (spaces.Discrete(3), ["0", "1", "2"]),
        (spaces.Discrete(3), [None, 0, 1]),
        (spaces.Discrete(3), [[0], [1, 2], [0]]),
        (spaces.MultiDiscrete([2, 2]), np.zeros(3)),
        (spaces.Box(-1, 1, (1,), np.float32), [[0], [np.nan], [0]]),
    ],
)
def test_actions_are_of_the_action_space(space, actions):
    env = make_vec_env(RandomEnv, 1, env_kwargs=dict(action_space=space))
    model = SHMPPO("MlpSHMPolicy", env, policy_kwargs=SMALL)
    good = SimpleNamespace(obs=np.zeros((4, 3)), acts=np.zeros((3, *space.shape)), terminal=True)
    clone(model, [good, good], n_epochs=1)  # whole numbers of another type are actions
    with pytest.raises(ValueError, match="The actions of episode 1 must be of the action space"):
        clone(model, [good, SimpleNamespace(obs=np.zeros((4, 3)), acts=actions)])


def test_observations_are_of_the_observation_space():
    space = spaces.Dict(a=spaces.Box(-2, 2, (3,), np.float32), b=spaces.MultiDiscrete([2, 4]))
    env = make_vec_env(RandomEnv, 1, env_kwargs=dict(observation_space=space))
    model = SHMPPO("MultiInputSHMPolicy", env, policy_kwargs=SMALL)
    a, b = np.zeros((4, 3)), np.zeros((4, 2), int)
    good = SimpleNamespace(obs=dict(a=a, b=b), acts=np.zeros(3, int))
    out_of_range = b.copy()
    out_of_range[2] = (1, 4)
    for obs, message in (
        (dict(a=a), "The observation of episode 1 must be a dict of the keys a, b, got the keys a"),
        (dict(a=a, b=np.zeros((4, 5), int)), "observations of episode 1 do not fit the space Dict"),
        (a, "keys a, b, got ndarray"),
        (
            dict(a=a, b=out_of_range),
            r"part 'b' of the observation of episode 1 of step 2 is not of the space MultiDiscrete.*: \[1 4\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            clone(model, [good, SimpleNamespace(obs=obs, acts=np.zeros(3, int))])
    clone(model, [good, SimpleNamespace(obs=dict(a=a, b=b, more=a), acts=np.zeros(3, int))], n_epochs=1)


def test_minari():
    minari = pytest.importorskip("minari.dataset.episode_data")
    env = gym.make("CartPole-v1")
    data = dict(id=0, rewards=np.ones(3), terminations=np.zeros(3, bool), truncations=np.zeros(3, bool), infos={})
    episode = minari.EpisodeData(observations=np.zeros((4, 4), np.float32), actions=np.zeros(3, np.int64), **data)
    assert clone(SHMPPO("MlpSHMPolicy", env, policy_kwargs=SMALL), [episode] * 3, n_epochs=1)[0]["loss"] > 0
