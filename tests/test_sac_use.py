"""SHMSAC in use: schedules of updates, callbacks, saving, buffers on disk, all spaces, bad input."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numbered_env import ONE_ACTION, ThreeSteps, three_steps
from small_envs import RandomEnv, RecallEnv
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
from torch import nn

from sb3_shm import SHMSAC, StatefulPredictor
from sb3_shm.memory import MEMORIES
from sb3_shm.memory.base import map_state, state_tensors
from sb3_shm.shm_sac import SHMSACPolicy

SMALL = dict(memory_kwargs=dict(memory_size=6), encoder_arch=[8], net_arch=[8], shortcut_size=8)
# No size is the default, and no two are equal
SIZES = dict(
    memory_kwargs=dict(memory_size=7, output_size=5), encoder_arch=[12, 9], net_arch=dict(pi=[11], qf=[13]), shortcut_size=10
)
QUICK = dict(buffer_size=600, learning_starts=20, seq_len=2, batch_size=4, seed=0)
TWO_ACTIONS = spaces.Box(-0.5, 2, (2,), np.float32)


def make(env: VecEnv, policy: str = "MlpSHMPolicy", policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> SHMSAC:
    return SHMSAC(policy, env, policy_kwargs=SMALL if policy_kwargs is None else policy_kwargs, **{**QUICK, **kwargs})


def weights(model: SHMSAC) -> th.Tensor:
    return nn.utils.parameters_to_vector(model.policy.parameters()).clone()


def check_tape(model: SHMSAC, inner: list[ThreeSteps], atol: float = 0) -> None:
    """The tape holds all that the environments' episodes showed, and nothing else."""
    tape = model.replay_buffer
    for i, one in enumerate(inner):
        episodes = [episode for episode in one.episodes if episode["actions"]]
        n = tape.written[i]
        assert n <= tape.buffer_size and n == sum(len(episode["observations"]) for episode in episodes)
        taken = tape.is_transition[i, :n]
        for name, array in (("observations", tape.tape[""][i, :n, 0]), ("actions", None), ("rewards", tape.rewards[i, :n])):
            expected = np.float32([value for episode in episodes for value in episode[name]])
            if name == "actions":
                low, high = model.action_space.low[0], model.action_space.high[0]
                array, expected = tape.actions[i, :n, 0], 2 * (expected - low) / (high - low) - 1
            np.testing.assert_allclose(array if name == "observations" else array[taken], expected, atol=max(atol, 1e-6))
        assert tape.terminals[i, :n][taken].tolist() == [t for episode in episodes for t in episode["terminals"]]
        assert tape.steps[i, :n].tolist() == [t for episode in episodes for t in range(len(episode["observations"]))]


# ---------------------------------------------------------------------------------------------------- schedules of updates


@pytest.mark.parametrize(
    "n_envs, train_freq, gradient_steps, updates",
    [
        (1, 1, 1, 40),  # after steps 21, 22, ..., 60
        (1, 1, 2, 80),
        (1, 4, 1, 10),  # a quarter of an update per step: after 24, 28, ..., 60
        (1, 4, -1, 40),
        (1, (2, "episode"), 1, 7),  # after 24, 30, ..., 60
        (1, (2, "episode"), -1, 42),
        (1, 1, 0, 0),
        (3, 1, 1, 14),  # after 21, 24, ..., 60
        (3, 4, -1, 48),  # after 24, 36, 48, 60
        (3, (2, "step"), 5, 35),  # after 24, 30, ..., 60
    ],
)
def test_number_of_updates(n_envs, train_freq, gradient_steps, updates):
    env, inner = three_steps(n_envs)
    model = make(env, train_freq=train_freq, gradient_steps=gradient_steps, batch_size=1).learn(60)
    assert (model.num_timesteps, model._n_updates) == (60, updates)
    check_tape(model, inner)
    theirs = SAC("MlpPolicy", env, learning_starts=20, train_freq=train_freq, gradient_steps=gradient_steps, batch_size=1)
    assert theirs.learn(60)._n_updates == updates


def test_updates_wait_for_the_first_window():
    """31 rows are there after 23 steps of three-step episodes, which take four rows each."""
    env, _ = three_steps(1)
    assert make(env, seq_len=30, learning_starts=5).learn(60)._n_updates == 60 - 22
    assert make(env, seq_len=None, learning_starts=0).learn(60)._n_updates == 60 - 2


def test_batch_without_a_transition_that_counts():
    """A single window may hold nothing but the last observation of an episode that is over."""

    class OneStep(RandomEnv):
        def __init__(self):
            super().__init__(longest=1, action_space=ONE_ACTION)

    model = make(make_vec_env(OneStep, 1, seed=0), seq_len=1, batch_size=1, learning_starts=2).learn(30)
    assert model._n_updates == 28 and th.isfinite(weights(model)).all()


@pytest.mark.parametrize("learning_starts", [10**6, 0], ids=["warm-up", "acting"])
@pytest.mark.parametrize("steps", [7, 9])
def test_the_memory_advances(learning_starts, steps):
    """The state after some steps is that of reading the running (or just ended) episode's observations in one go."""
    env, inner = three_steps(2)
    kwargs = dict(memory="gru", actor_memory_kwargs=dict(hidden_size=5), position="sine")
    model = make(env, learning_starts=learning_starts, gradient_steps=0, policy_kwargs=kwargs).learn(2 * steps)
    for i, one in enumerate(inner):
        read = [episode for episode in one.episodes if episode["actions"]][-1]
        assert len(read["actions"]) == (steps - 1) % 3 + 1
        with th.no_grad():
            obs = th.tensor(read["observations"][:-1])[:, None]
            body = model.actor.body
            _, state = body(obs, body.trunk.initial_state(1), th.zeros(1, len(obs), dtype=th.bool))
        for ours, expected in zip(state_tensors(model._last_state), state_tensors(state), strict=True):
            assert expected.any()
            th.testing.assert_close(ours[i], expected[0])


def test_warm_up_acts_at_random_then_the_policy_acts():
    """A policy whose action is known: nothing of it is seen before ``learning_starts``, nothing else after."""
    env, _ = three_steps(2)
    model = make(env, gradient_steps=0)
    with th.no_grad():
        for head in (model.actor.mu, model.actor.log_std):
            head.weight.zero_()
        model.actor.mu.bias.fill_(0.3)
        model.actor.log_std.bias.fill_(-20)
    model.learn(60)
    tape = model.replay_buffer
    for i in range(2):
        actions = tape.actions[i, : tape.written[i], 0][tape.is_transition[i, : tape.written[i]]]
        assert len(actions) == 30
        assert len(set(actions[:10].tolist())) == 10 and actions[:10].std() > 0.3
        np.testing.assert_allclose(actions[10:], np.tanh(0.3), atol=1e-6)


@pytest.mark.parametrize(
    "action_space", [spaces.Box(np.array([-1, 0]), np.array([2, 5]), dtype=np.float64), spaces.Discrete(5)]
)
def test_warm_up_draws_as_gymnasium_does(action_space):
    """The actions of a step are those that the seeded space samples one after the other."""
    model = make(make_vec_env(RandomEnv, 3, env_kwargs=dict(action_space=action_space)), seed=4)
    model._setup_learn(10)
    model.action_space.seed(5)
    actions, _ = model._sample_action(100, None, 3)
    action_space.seed(5)
    np.testing.assert_allclose(actions, [action_space.sample() for _ in range(3)], rtol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_action_noise(n_envs):
    """Added to the scaled action in warm-up and later, clipped, and the environment gets what is stored."""
    env, inner = three_steps(n_envs, spaces.Box(-0.5, 2, (1,), np.float32))
    noise = NormalActionNoise(np.array([10.0]), np.array([1e-3]))
    model = make(env, action_noise=noise).learn(90)
    assert (model.replay_buffer.actions[model.replay_buffer.is_transition & (model.replay_buffer.rewards > 0)] == 1).all()
    assert {action for one in inner for episode in one.episodes for action in episode["actions"]} == {2.0}
    check_tape(model, inner)


# ---------------------------------------------------------------------------------------------------- callbacks and logs


class StopAfter(BaseCallback):
    """Stops at one step, then never again."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps != self.step


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("stop", [4, 6, 26, 30], ids=["within", "end", "within-later", "end-later"])
@pytest.mark.parametrize("train_freq", [1, 4])
def test_stop_by_callback_and_go_on(n_envs, stop, train_freq):
    """SB3 drops the step at which a callback stops; a tape with a hole would join two episodes, or skip an observation."""
    env, inner = three_steps(n_envs)
    model = make(env, train_freq=train_freq)
    model.learn(60, callback=StopAfter(stop))
    assert model.num_timesteps == stop
    check_tape(model, inner)
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps >= stop + 30
    check_tape(model, inner)
    model.learn(24)  # begins anew: the episode that ran does not go on
    check_tape(model, inner)


def test_callbacks(tmp_path):
    env = make_vec_env(RecallEnv, 2, seed=0)
    callbacks = [
        EvalCallback(
            make_vec_env(RecallEnv, 2), eval_freq=20, n_eval_episodes=3, best_model_save_path=str(tmp_path), verbose=0
        ),
        CheckpointCallback(20, str(tmp_path), name_prefix="shm", save_replay_buffer=True),
        StopTrainingOnMaxEpisodes(8),
    ]
    model = make(env).learn(1000, callback=callbacks, progress_bar=True)
    assert model.num_timesteps == 2 * 8 * 4  # per environment
    assert (tmp_path / "best_model.zip").exists()
    resumed = SHMSAC.load(tmp_path / "shm_40_steps", env=env)
    resumed.load_replay_buffer(tmp_path / "shm_replay_buffer_40_steps.pkl")
    # SB3 asks the callbacks before it stores the step: 19 are there, in four whole episodes and one of three steps
    assert resumed.num_timesteps == 40 and resumed.replay_buffer.written.tolist() == [4 * 5 + 4] * 2
    assert resumed.learn(20, reset_num_timesteps=False).num_timesteps == 60
    assert resumed.replay_buffer.written.tolist() == [24 + 2 * 5 + 3] * 2
    # The checkpoint lacks the update after step 40; and 42, ..., 60 are not 42, ..., 62
    assert resumed._n_updates == model._n_updates - 2


def test_log_has_sacs_keys(tmp_path):
    keys = {}
    env, _ = three_steps(1)
    kwargs = dict(learning_starts=20, batch_size=4)
    for name, model in (("ours", make(env)), ("theirs", SAC("MlpPolicy", env, **kwargs))):
        model.set_logger(configure(str(tmp_path / name), ["csv"]))
        model.learn(60, log_interval=1)
        keys[name] = set((tmp_path / name / "progress.csv").read_text().splitlines()[0].split(","))
    assert keys["ours"] == keys["theirs"] and "train/ent_coef_loss" in keys["ours"]
    make(env, tensorboard_log=str(tmp_path)).learn(30)
    assert list((tmp_path / "SHMSAC_1").glob("events*"))


def test_size_of_the_tape_is_printed(capsys):
    env, _ = three_steps(1)
    make(env, verbose=1).learn(1, log_interval=None)
    assert "The replay buffer takes 1.08e-05 GB" in capsys.readouterr().out  # 600 rows of 18 bytes
    make(env).learn(1)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------- in pieces, saving


@pytest.mark.parametrize("n_envs, train_freq", [(1, 1), (2, 1), (2, 4), (1, (1, "episode"))])
def test_in_pieces_equals_at_once(n_envs, train_freq):
    """Steps, updates, tape and weights, with pieces that end within episodes and in warm-up."""

    def run(pieces: list[int]) -> SHMSAC:
        env = make_vec_env(RandomEnv, n_envs, seed=0, env_kwargs=dict(action_space=TWO_ACTIONS))
        model = make(env, train_freq=train_freq, gradient_steps=-1, replay_context=True)
        for i, steps in enumerate(pieces):
            model.learn(steps, reset_num_timesteps=i == 0)
        return model

    # In episodes there is no telling how many steps a piece takes
    once, pieces = run([72]), run([16, 8, 40, 8] if isinstance(train_freq, int) else [1, 1, 30])
    if not isinstance(train_freq, int):
        once = run([pieces.num_timesteps])
    assert once.num_timesteps == pieces.num_timesteps and once._n_updates == pieces._n_updates > 0
    assert once._episode_num == pieces._episode_num
    for name, array in vars(once.replay_buffer).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, getattr(pieces.replay_buffer, name), err_msg=name)
    np.testing.assert_array_equal(once.replay_buffer.tape[""], pieces.replay_buffer.tape[""])
    assert th.equal(weights(once), weights(pieces))


@pytest.mark.parametrize("action_space", [TWO_ACTIONS, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.1", 0.3])
def test_save_and_load(action_space, ent_coef, tmp_path):
    """A loaded model with the loaded tape updates like the one that was saved, bit by bit."""
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=action_space))
    model = make(env, ent_coef=ent_coef, policy_kwargs=SIZES, learning_rate=0.01, target_entropy=-0.9).learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "tape")
    th.manual_seed(99)
    loaded = SHMSAC.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "tape")
    assert (loaded.num_timesteps, loaded._n_updates, loaded.target_entropy) == (40, model._n_updates, -0.9)
    if ent_coef == 0.3:
        assert loaded.ent_coef_tensor == 0.3
    else:
        assert loaded.log_ent_coef == model.log_ent_coef != np.log(1 if ent_coef == "auto" else 0.1)
    after = []
    for one in (model, loaded):
        one._setup_learn(1, reset_num_timesteps=False)
        th.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  # SB3's generator
        one.train(3, 4)
        entropy = one.ent_coef_tensor if ent_coef == 0.3 else one.log_ent_coef.detach()
        after.append(th.cat((weights(one), entropy.view(-1))))
    assert th.equal(*after)
    env = make_vec_env(RandomEnv, 3, env_kwargs=dict(action_space=action_space))
    assert SHMSAC.load(tmp_path / "model", env=env).learn(60, reset_num_timesteps=False).num_timesteps >= 100


def test_load_in_the_middle_of_an_episode(tmp_path):
    """The loaded model resets the environments, and the tape knows."""
    env, inner = three_steps(2)
    model = make(env).learn(40)  # 20 steps each, two of the seventh episode
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "tape")
    loaded = SHMSAC.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "tape")
    loaded.learn(10, reset_num_timesteps=False)
    check_tape(loaded, inner)
    assert loaded.replay_buffer.steps[0, 24:30].tolist() == [0, 1, 2, 0, 1, 2]


def test_policy_alone(tmp_path):
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=TWO_ACTIONS))
    kwargs = dict(SIZES, actor_memory="lstm", actor_memory_kwargs=dict(hidden_size=6), position="sine", n_critics=3)
    model = make(env, policy_kwargs=kwargs).learn(30)
    model.policy.save(tmp_path / "policy")
    policy = SHMSACPolicy.load(tmp_path / "policy")
    assert th.equal(nn.utils.parameters_to_vector(policy.parameters()), weights(model))
    np.testing.assert_array_equal(play(policy, *episodes()), play(model, *episodes()))


@pytest.mark.parametrize(
    "memory, observation_space, action_space",
    [(name, None, TWO_ACTIONS if i % 2 else spaces.Discrete(3)) for i, name in enumerate(MEMORIES)]
    + [("shm", spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), TWO_ACTIONS)],
)
def test_actor_alone(memory, observation_space, action_space, tmp_path):
    """It predicts, remembers, is saved and loaded as SB3's actors do."""
    policy = "MlpSHMPolicy" if observation_space is None else "MultiInputSHMPolicy"
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=observation_space, action_space=action_space), seed=0)
    kwargs = dict(encoder_arch=[8], net_arch=[8], memory=memory, shortcut_size=None)
    model = make(env, policy, kwargs, learning_starts=10**6)
    actor = model.actor
    assert actor.features_extractor is actor.body.features_extractor is not model.critic.features_extractor
    assert model.critic.features_extractor is model.critic.body.features_extractor
    actor.save(tmp_path / "actor")
    loaded = type(actor).load(tmp_path / "actor", device="cpu")
    assert (tmp_path / "actor").stat().st_size < 1.2 * sum(4 * p.numel() for p in actor.parameters()) + 50_000
    players = [model.policy, actor, loaded]
    obs, start, states = env.reset(), np.ones(2, bool), [None] * len(players)
    for _ in range(12):  # episodes start within
        chosen = []
        for i, player in enumerate(players):
            actions, states[i] = player.predict(obs, states[i], start, deterministic=True)
            chosen.append(actions)
        for actions in chosen[1:]:
            np.testing.assert_array_equal(actions, chosen[0])
        obs, _, start, _ = env.step(chosen[0])


def test_actor_of_a_shared_memory_alone():
    actor = make(make_vec_env(RandomEnv, 1), policy_kwargs=dict(SMALL, share_memory=True)).actor
    assert actor.features_extractor is None
    with pytest.raises(ValueError, match="the critic's memory: use the policy's predict"):
        actor.predict(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("n_envs, buffer_size, seq_len", [(1, 1000, 128), (1, 129, 128), (1, 100, 99), (3, 20, 5), (1, 2, 1)])
def test_default_windows_fit_into_the_tape(n_envs, buffer_size, seq_len):
    """But not those that somebody asked for, see test_bad_arguments."""
    env = make_vec_env(RandomEnv, n_envs, seed=0)
    model = make(env, seq_len="auto", buffer_size=buffer_size).learn(60)
    assert model.seq_len == model.replay_buffer.seq_len == seq_len and model.replay_buffer.burn_in == seq_len // 4
    assert SHMSAC("MlpSHMPolicy", env, buffer_size=buffer_size).seq_len == seq_len
    assert (model._n_updates > 0) == (seq_len < 60)


PICTURE = spaces.Box(0, 255, (36, 36, 3), np.uint8)


@pytest.mark.parametrize(
    "space, given, batch_size, seq_len",
    [
        (spaces.Box(-1, 1, (3,), np.float32), {}, 16, 128),
        (spaces.Box(-1, 1, (3, 3), np.float32), {}, 16, 128),
        (spaces.Dict(vector=spaces.Box(-1, 1, (3,), np.float32)), {}, 16, 128),
        (PICTURE, {}, 4, 64),
        (spaces.Box(0, 1, (3, 7, 7), np.float32), {}, 4, 64),
        (spaces.Dict(vector=spaces.Box(-1, 1, (3,), np.float32), picture=PICTURE), {}, 4, 64),
        (PICTURE, dict(batch_size=16), 16, 64),
        (PICTURE, dict(seq_len=128), 4, 128),
        (PICTURE, dict(seq_len=None), 4, None),
        (PICTURE, dict(buffer_size=10), 4, 9),
    ],
)
def test_default_batches(space, given, batch_size, seq_len):
    name = "MultiInputSHMPolicy" if isinstance(space, spaces.Dict) else "MlpSHMPolicy"
    model = SHMSAC(name, make_vec_env(lambda: RandomEnv(space), 1), policy_kwargs=SMALL, **given)
    assert (model.batch_size, model.seq_len, model.replay_buffer.seq_len) == (batch_size, seq_len, seq_len)


@pytest.mark.parametrize("seq_len", [2, None])
def test_tape_on_disk(seq_len, tmp_path):
    env, inner = three_steps(2)
    model = make(env, seq_len=seq_len).learn(40)
    model.save_replay_buffer(tmp_path / "tape")
    env, _ = three_steps(2)
    other = make(env, seq_len=4, burn_in=2)
    other.load_replay_buffer(tmp_path / "tape")
    check_tape(other, inner)
    assert (other.replay_buffer.seq_len, other.replay_buffer.burn_in) == (4, 2) and other.replay_buffer.can_sample()
    assert not other.replay_buffer.is_open.any()
    other.learn(20)
    assert other.replay_buffer.steps[0, 27:30].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(env_kwargs=dict(observation_space=spaces.Box(-1, 1, (4,), np.float32))), "observation space of the loaded"),
        (
            dict(env_kwargs=dict(action_space=spaces.Discrete(4))),
            "action space of the loaded buffer is Discrete.3., .* Discrete",
        ),
        (dict(n_envs=3), "number of environments of the loaded buffer is 2, that of the model is 3"),
        (dict(seq_len=300), "window of seq_len . 1 = 301 rows never fits into the 300 rows"),
    ],
)
def test_tape_that_does_not_fit(kwargs, message, tmp_path):
    """The model keeps its own."""
    make(make_vec_env(RandomEnv, 2)).learn(20).save_replay_buffer(tmp_path / "tape")
    seq_len = kwargs.pop("seq_len", 2)
    env = make_vec_env(RandomEnv, **{"n_envs": 2, **kwargs})
    model = make(env, seq_len=seq_len, buffer_size=2000).learn(30)
    own = model.replay_buffer
    before = own.written.copy(), own.rewards.copy()
    with pytest.raises(ValueError, match=message):
        model.load_replay_buffer(tmp_path / "tape")
    assert model.replay_buffer is own and own.seq_len == seq_len
    for ours, theirs in zip(before, (own.written, own.rewards), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.learn(30, reset_num_timesteps=False)


@pytest.mark.parametrize("theirs, ours", [(True, False), (False, True)])
def test_tape_with_other_rows_to_replay(theirs, ours, tmp_path):
    """Rows of θ that nobody keeps up would be replayed, or rows that nobody kept."""
    env, _ = three_steps(2)
    make(env, replay_context=theirs).learn(10).save_replay_buffer(tmp_path / "tape")
    model = make(env, replay_context=ours)
    own = model.replay_buffer
    with pytest.raises(ValueError, match=f"replay_context. of the loaded buffer is {theirs:d}, that of the model is {ours:d}"):
        model.load_replay_buffer(tmp_path / "tape")
    assert model.replay_buffer is own
    make(env, replay_context=theirs).save_replay_buffer(tmp_path / "empty")
    model.load_replay_buffer(tmp_path / "empty")  # of which nothing is missing
    model.learn(30)


def test_file_without_a_tape(tmp_path):
    env, _ = three_steps(1)
    SAC("MlpPolicy", env, buffer_size=50).learn(2).save_replay_buffer(tmp_path / "other")
    model = make(env)
    own = model.replay_buffer
    with pytest.raises(ValueError, match="must hold a MemoryReplayBuffer, it holds a ReplayBuffer"):
        model.load_replay_buffer(tmp_path / "other")
    model.save(tmp_path / "model.pkl")
    model.save_replay_buffer(tmp_path / "tape")
    for name, content in (("text", b"tape"), ("empty", b""), ("part", (tmp_path / "tape.pkl").read_bytes()[:200])):
        (tmp_path / f"{name}.pkl").write_bytes(content)
    for name in ("model", "text", "empty", "part"):
        with pytest.raises(ValueError, match=f"{name}.* holds no replay buffer, or a part of one"):
            model.load_replay_buffer(tmp_path / name)
    assert model.replay_buffer is own


# ---------------------------------------------------------------------------------------------------- predicting


def episodes(seed: int = 0, t: int = 20, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(t, n, 3)).astype(np.float32), rng.random((t, n)) < 0.1


def play(model: Any, observations: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Deterministic actions over T steps: observations (T, n, ...), starts (T, n)."""
    state, actions = None, []
    for obs, start in zip(observations, starts, strict=True):
        action, state = model.predict(obs, state, start, deterministic=True)
        actions.append(action)
    return np.stack(actions)


@pytest.mark.parametrize("action_space", [TWO_ACTIONS, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("share_memory", [False, True])
def test_predict(action_space, share_memory):
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=action_space))
    model = make(env, policy_kwargs=dict(SIZES, share_memory=share_memory), learning_rate=0.01).learn(30)
    obs, starts = episodes()
    expected = play(model, obs, starts)
    assert all(action_space.contains(action) for action in expected.reshape(-1, *action_space.shape))
    _, state = model.predict(obs[0])
    _, same = model.predict(obs[1], map_state(lambda s: s.numpy(), state), starts[1], deterministic=True)
    _, again = model.predict(obs[1], state, starts[1], deterministic=True)
    assert all(th.equal(a, b) for a, b in zip(state_tensors(same), state_tensors(again), strict=True))
    assert model.predict(obs[0, 0])[0].shape == action_space.shape
    samples = [model.predict(obs[0], state)[0] for _ in range(20)]
    assert np.ptp(samples, axis=0).any() and all(action_space.contains(action) for pair in samples for action in pair)
    with pytest.raises(ValueError, match=r"for 1 observation\(s\), tensors of the shapes"):
        model.predict(obs[0, :1], state)
    with pytest.raises(ValueError, match=r"state must be what predict\(\) returned, it holds NaN"):
        model.predict(obs[0], map_state(lambda s: s * np.nan if s.is_floating_point() else s, state))
    with pytest.raises(ValueError, match="observation of environment 1 is not finite"):
        model.predict(np.where(np.arange(2)[:, None] == 1, np.nan, obs[0]))
    predictor = StatefulPredictor(model)
    for _ in range(2):
        actions = [predictor.act(o, start) for o, start in zip(obs, starts, strict=True)]
        np.testing.assert_array_equal(np.stack(actions), expected)
        predictor.reset()
    kwargs = dict(seed=5, env_kwargs=dict(action_space=action_space))
    scores = [evaluate_policy(model, make_vec_env(RandomEnv, 2, **kwargs), 4) for _ in range(2)]
    assert scores[0] == scores[1]


# ---------------------------------------------------------------------------------------------------- spaces and wrappers

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action_space", [TWO_ACTIONS, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize(
    "policy, observation_space",
    [
        ("MlpSHMPolicy", spaces.Box(-1, 1, (2, 3), np.float64)),
        ("MlpSHMPolicy", spaces.Discrete(4)),
        ("MlpSHMPolicy", spaces.MultiDiscrete([3, 2])),
        ("MlpSHMPolicy", spaces.MultiBinary(3)),
        ("CnnSHMPolicy", IMAGE),
        ("MultiInputSHMPolicy", spaces.Dict({"image": IMAGE, "n": spaces.Discrete(3)})),
    ],
    ids=["box", "discrete", "multi_discrete", "multi_binary", "image", "dict"],
)
def test_spaces(policy, observation_space, action_space, n_envs):
    """All weights learn, from windows and whole episodes, and the model plays."""
    env = make_vec_env(
        RandomEnv, n_envs, env_kwargs=dict(observation_space=observation_space, action_space=action_space), seed=0
    )
    model = make(env, policy, learning_starts=30, learning_rate=0.01, seq_len=6)
    before = [p.clone() for p in [*model.actor.parameters(), *model.critic.parameters()]]
    model.learn(34)
    model.replay_buffer.set_windows(None, 0)
    model.train(1, 4)
    after = [*model.actor.parameters(), *model.critic.parameters()]
    assert all(not th.equal(a, b) for a, b in zip(before, after, strict=True))
    evaluate_policy(model, model.env, n_eval_episodes=2, warn=False)


def test_vec_normalize():
    """The tape is raw, the batch is normalised by today's statistics, and what the policy reads is normalised, too."""
    env, inner = three_steps(2)
    env = VecNormalize(env)
    model = make(env, learning_starts=0, gradient_steps=0).learn(60)
    check_tape(model, inner, atol=1e-4)
    rows = model.replay_buffer.sample(20, env)
    raw = rows.observations.numpy() * np.sqrt(env.obs_rms.var + env.epsilon) + env.obs_rms.mean
    places = np.isclose(model.replay_buffer.tape[""][:, :40].reshape(-1), raw.reshape(-1, 1), atol=1e-3)
    assert places.any(axis=1).all() and (rows.observations.abs() < 5).all()
    for i, t in rows.mask.nonzero().tolist():
        place = np.flatnonzero(places.reshape(*raw.shape[:2], -1)[i, t])[0]
        reward = model.replay_buffer.rewards[:, :40].ravel()[place]
        assert rows.rewards[i, t].item() == pytest.approx(reward / np.sqrt(env.ret_rms.var + env.epsilon), rel=1e-3)
    make(env).learn(60)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(policy_kwargs=dict(use_sde=True)), "no argument 'use_sde'"),
        (dict(sde_sample_freq=-2), "sde_sample_freq must be an integer, at least -1"),
        (dict(ent_coef="aut"), 'ent_coef must be a number from 0 on, "auto", or "auto_x"'),
        (dict(ent_coef="auto_x"), '"auto", or "auto_x" with x above 0, got .auto_x'),
        (dict(ent_coef="auto_0"), "with x above 0"),
        (dict(ent_coef="auto_-1"), "with x above 0"),
        (dict(ent_coef="auto_nan"), "with x above 0"),
        (dict(ent_coef="auto_"), "with x above 0"),
        (dict(ent_coef="auto_1e-50"), "with x above 0"),
        (dict(ent_coef="auto_1e39"), "with x above 0"),
        (dict(ent_coef="auto0.1"), "ent_coef must be a number"),
        (dict(ent_coef=""), "ent_coef must be a number"),
        (dict(ent_coef=1e39), "ent_coef must be a number"),
        (dict(ent_coef=True), "ent_coef must be a number"),
        (dict(target_entropy=1e39), "target_entropy .or .auto.. must be a finite number"),
        (dict(target_entropy=np.array([-2.0, 1.0])), "target_entropy .or .auto.. must be a finite number"),
        (dict(target_entropy="high"), "target_entropy .or .auto.. must be a finite number"),
        (dict(ent_coef=-0.1), "ent_coef must be a number from 0 on"),
        (dict(ent_coef=None), "ent_coef"),
        (dict(target_entropy="low"), 'target_entropy .or "auto". must be a finite number'),
        (dict(tau=-0.1), "tau must be a finite number, at least 0 and at most 1; got -0.1"),
        (dict(tau=1.1), "tau"),
        (dict(gamma=-0.1), "gamma must be .* at least 0 and at most 1"),
        (dict(gamma=float("nan")), "gamma"),
        (dict(learning_rate=-0.1), "learning_rate must be .* at least 0"),
        (dict(batch_size=0), r'batch_size \(or "auto"\) must be an integer, at least 1'),
        (dict(batch_size="all"), r'batch_size \(or "auto"\) must be an integer'),
        (dict(buffer_size=0), "buffer_size must be an integer, at least 1"),
        (dict(buffer_size=2), "buffer_size"),
        (dict(learning_starts=-1), "learning_starts must be an integer, at least 0"),
        (dict(gradient_steps=-2), "gradient_steps must be an integer, at least -1"),
        (dict(gradient_steps=0.5), "gradient_steps must be an integer"),
        (dict(target_update_interval=0), "target_update_interval must be an integer, at least 1"),
        (dict(train_freq=(1, "epoch")), "either 'step' or 'episode'"),
        (dict(train_freq=0.25), "train_freq"),
        (dict(train_freq=0), "train_freq must be an integer, at least 1; got 0"),
        (dict(train_freq=-1), "train_freq"),
        (dict(train_freq=(1, "episode")), "train_freq must be in .step. with several environments .2."),
        (dict(seq_len=0), "seq_len .* at least 1"),
        (dict(seq_len="whole"), "seq_len .None for whole episodes, or .auto.. must be an integer"),
        (dict(seq_len=300), "window of seq_len . 1 = 301 rows never fits into the 300 rows of one environment"),
        (dict(seq_len=4, burn_in=4), "burn_in must be below seq_len = 4"),
        (dict(seq_len=None, burn_in=1), "burn_in must be 0 with whole episodes"),
        (dict(policy_kwargs=dict(memory="ntm")), "Unknown memory 'ntm', choose one of 'shm'"),
        (dict(policy_kwargs=dict(actor_memory="ntm")), "Unknown memory 'ntm'"),
        (dict(policy_kwargs=dict(critic_memory=3)), "memory must be one of 'shm'"),
        (dict(policy_kwargs=dict(actor_memory="gru", actor_memory_kwargs=dict(memory_size=3))), "GRU has no argument"),
        (dict(policy_kwargs=dict(share_memory=True, actor_memory="gru")), "leave actor_memory out"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(theta="free"))), "'random', 'fixed', 'neural'"),
        (dict(policy_kwargs=dict(encoder_arch=(0,))), "encoder_arch .* must be an integer, at least 1"),
        (dict(policy_kwargs=dict(position=3)), "None, 'sine'"),
        (dict(policy_kwargs=dict(n_critics=0)), "n_critics must be an integer, at least 1"),
        (dict(policy_kwargs=dict(shortcut_size=0)), "shortcut_size .* at least 1"),
        (dict(policy_kwargs=dict(head_dtype="bfloat16")), "no argument 'head_dtype': all heads compute in float32"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(read_gain=1e39))), "read_gain .* must be a finite number"),
        (dict(policy_kwargs=dict(memory_kwargs=dict(calibration_scale=-1e39))), "calibration_scale must be a finite number"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(make_vec_env(RandomEnv, 2, env_kwargs=dict(action_space=ONE_ACTION)), **kwargs)


@pytest.mark.parametrize(
    "policy, spaces_, message",
    [
        (
            "Mlp",
            dict(action_space=spaces.MultiDiscrete([3, 2])),
            "SHMSAC acts in Box and Discrete .*: SHMPPO acts in this one",
        ),
        ("Mlp", dict(action_space=spaces.MultiBinary(3)), "SHMPPO acts in this one"),
        ("Mlp", dict(action_space=spaces.MultiDiscrete([[3, 2]])), "The action space must be .* one dimension"),
        ("Mlp", dict(action_space=spaces.MultiDiscrete([3, 2], start=[1, 1])), "The action space must be .* with start=0"),
        (
            "Mlp",
            dict(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32)),
            "finite bounds .*: write the bounds that are meant",
        ),
        ("Mlp", dict(action_space=spaces.Box(np.float32([-1, -np.inf]), np.float32([1, 1]))), "finite bounds"),
        ("Mlp", dict(action_space=spaces.Discrete(3, start=1)), "The action space must be .* with start=0"),
        ("Mlp", dict(action_space=spaces.Box(-5, 5, (2,), np.int64)), "a Box of float32 or float64"),
        (
            "Mlp",
            dict(observation_space=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])),
            "observation space must be Box",
        ),
        ("Mlp", dict(observation_space=spaces.Dict({"a": spaces.Discrete(3)})), "needs MultiInputSHMPolicy"),
        ("MultiInput", {}, "needs MlpSHMPolicy or CnnSHMPolicy"),
    ],
)
def test_wrong_spaces(policy, spaces_, message):
    with pytest.raises(ValueError, match=message):
        SHMSAC(f"{policy}SHMPolicy", RandomEnv(**spaces_))


def test_policy_of_another_algorithm():
    from sb3_shm import RecurrentSHMPolicy

    with pytest.raises(ValueError, match="must be a SHMSACPolicy, got RecurrentSHMPolicy"):
        SHMSAC(RecurrentSHMPolicy, RandomEnv())


class Bad(RandomEnv):
    """At one of its steps something is not finite; 0 is the first reset."""

    def __init__(self, where: str, at_step: int, over: bool = False) -> None:
        super().__init__(longest=100)
        self.where, self.at_step, self.over, self.steps = where, at_step, over, 0

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.left = 99
        return obs * (np.nan if self.at_step == 0 and self.where == "observation" else 1), info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == self.at_step:
            terminated = self.over
            obs, reward = (obs * np.nan, reward) if self.where == "observation" else (obs, np.inf)
        return obs, reward, terminated, truncated, info


@pytest.mark.filterwarnings("ignore:invalid value")  # in the statistics of VecNormalize, before we see it
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "where, over, step, message",
    [
        ("observation", False, 25, "observation of environment 1 is not finite at its step 25"),
        ("observation", True, 25, "terminal observation of environment 1 is not finite at its step 25"),
        ("observation", False, 5, "observation of environment 1 is not finite at its step 5"),
        ("observation", False, 0, "observation of environment 1 is not finite at its step 0"),
        ("reward", False, 25, "reward of environment 1 is not finite at its step 25"),
        ("reward", True, 25, "reward of environment 1 is not finite at its step 25"),
    ],
)
def test_not_finite(where, over, step, message, normalize):
    """Named with environment and step, and nothing of that step is stored."""
    env: VecEnv = DummyVecEnv([RandomEnv, lambda: Bad(where, step, over)])
    model = make(VecNormalize(env) if normalize else env)
    with pytest.raises(ValueError, match=message):
        model.learn(100)
    tape = model.replay_buffer
    assert tape.written[1] == (step if step else 0)  # the rows of the steps before, and the newest observation
    if step:
        assert np.isfinite(tape.tape[""]).all() and np.isfinite(tape.rewards).all()
    assert th.isfinite(weights(model)).all()


def test_wrappers_outside_of_vec_normalize_are_refused():
    """SB3 stores what VecNormalize saw: a wrapper outside would be missing on the tape."""
    env = make_vec_env("PendulumNoVel-v0", 2)
    model = make(VecFrameStack(VecNormalize(env), 2))
    with pytest.raises(ValueError, match=r"outermost, .* VecFrameStack"):
        model.learn(8)
    make(VecMonitor(VecNormalize(VecFrameStack(env, 2)))).learn(8)


def test_a_trained_policy_can_be_copied():
    model = make(make_vec_env("PendulumNoVel-v0", 1), learning_starts=10).learn(40)
    assert model._n_updates > 0
    obs = np.ones(2, np.float32)
    assert copy.deepcopy(model.policy).predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


@pytest.mark.parametrize("low, high", [([0, 0], [0, 1]), ([-3e38], [3e38])])
def test_boxes_that_cannot_be_scaled(low, high):
    space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    with pytest.raises(ValueError, match="low below high"):
        make(make_vec_env(RandomEnv, 1, env_kwargs=dict(action_space=space)))


def test_a_tape_loaded_in_an_episode_starts_anew_with_the_memory(tmp_path):
    model = make(make_vec_env("PendulumNoVel-v0", 1)).learn(7)
    model.save_replay_buffer(tmp_path / "tape")
    model.load_replay_buffer(tmp_path / "tape")
    assert model._last_episode_starts.all()
    model.learn(3, reset_num_timesteps=False)
    assert model.replay_buffer.steps[0, :12].tolist() == [*range(8), *range(4)]


# ---------------------------------------------------------------------------------------------- nothing without a word


@pytest.mark.parametrize("train_freq, gradient_steps", [(1, 1), (2, 1), (1, 5)])
def test_target_updates_are_counted_over_calls(train_freq, gradient_steps, tmp_path):
    """Of updates 0, 1, 2, ... those that 4 divides move the target, whatever a call makes, and after loading, too."""
    moved = []

    class Spy(SHMSAC):
        def train(self, gradient_steps, batch_size):
            for _ in range(gradient_steps if self.replay_buffer.can_sample() else 0):  # one by one: each counts
                before = nn.utils.parameters_to_vector(self.critic_target.parameters()).clone()
                super().train(1, batch_size)
                moved.append(not th.equal(before, nn.utils.parameters_to_vector(self.critic_target.parameters())))

    env = make_vec_env(RandomEnv, 1, seed=0, env_kwargs=dict(action_space=ONE_ACTION))
    freq = dict(train_freq=train_freq, gradient_steps=gradient_steps, target_update_interval=4, tau=0.5)
    model = Spy("MlpSHMPolicy", env, policy_kwargs=SMALL, **{**QUICK, **freq}).learn(50)
    model.save(tmp_path / "model")
    model = Spy.load(tmp_path / "model", env)
    model.learning_starts = 0
    model.learn(50, reset_num_timesteps=False)
    assert len(moved) > 30 and moved == [i % 4 == 0 for i in range(len(moved))]


def test_target_updates_within_a_call():
    """Two calls of three updates are six: the first and the fifth move the target."""
    model = make(make_vec_env(RandomEnv, 1), learning_starts=10**6, target_update_interval=4, tau=1.0)
    with pytest.warns(UserWarning, match="changed nothing"):
        model.learn(30)
    for after in (3, 6):
        model.train(3, 4)
        ours, theirs = (nn.utils.parameters_to_vector(net.parameters()) for net in (model.critic, model.critic_target))
        assert model._n_updates == after and not th.equal(ours, theirs)  # with tau = 1 equal right after a move
    model.train(2, 4)
    assert not th.equal(*(nn.utils.parameters_to_vector(net.parameters()) for net in (model.critic, model.critic_target)))
    model.train(1, 4)  # the ninth
    assert th.equal(*(nn.utils.parameters_to_vector(net.parameters()) for net in (model.critic, model.critic_target)))


class Endless(RandomEnv):
    """Its episodes do not end."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.left = -1
        return result


@pytest.mark.parametrize(
    "env, kwargs, steps, message",
    [
        (
            RandomEnv,
            dict(learning_starts=30),
            30,
            r"learn\(30\) changed nothing: .* after learning_starts = 30 steps: lower it",
        ),
        (
            RandomEnv,
            dict(learning_starts=0, seq_len=40),
            20,
            "no environment made seq_len = 40 steps: lower seq_len, or learn",
        ),
        (
            Endless,
            dict(learning_starts=0, seq_len=None),
            20,
            "seq_len=None whole episodes .* none has ended: learn for longer, or",
        ),
    ],
)
def test_nothing_is_learned(env, kwargs, steps, message):
    model = make(make_vec_env(env, 1, seed=0), **kwargs)
    before = weights(model)
    with pytest.warns(UserWarning, match=message):
        model.learn(steps)
    assert th.equal(before, weights(model)) and model._n_updates == 0


def test_episodes_that_do_not_end_are_told_while_learning():
    model = make(make_vec_env(Endless, 2), seq_len=None, buffer_size=5000)
    told = []

    def callback(locals_, globals_):
        told.append(any("No episode has ended in 1000 steps" in str(warning.message) for warning in caught))
        return True

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(2100, callback=callback)
    assert not told[999] and told[1000]
    assert sum("No episode has ended" in str(warning.message) for warning in caught) == 1


def test_no_word_where_something_is_learned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(make_vec_env(RandomEnv, 1)).learn(40)
        model.learn(2, reset_num_timesteps=False)
        make(make_vec_env(RandomEnv, 1), gradient_steps=0).learn(40)  # asked for
        make(make_vec_env(RandomEnv, 1)).learn(40, callback=StopAfter(5))


@pytest.mark.parametrize("before, after", [(3, 2), (3, 1), (1, 3), (2, 2)])
def test_action_noise_of_another_number_of_environments(before, after, tmp_path):
    def envs(n):
        return make_vec_env(RandomEnv, n, seed=0, env_kwargs=dict(action_space=TWO_ACTIONS))

    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2))
    model = make(envs(before), action_noise=noise).learn(30)
    model.save(tmp_path / "model")
    loaded = SHMSAC.load(tmp_path / "model", envs(after)).learn(30)
    assert loaded.action_noise().shape == ((after, 2) if after > 1 else (2,))
    assert loaded._n_updates > model._n_updates


def test_episodes_of_several_environments_after_loading(tmp_path):
    model = make(make_vec_env(RandomEnv, 1), train_freq=(1, "episode"))
    model.save(tmp_path / "model")
    assert SHMSAC.load(tmp_path / "model", make_vec_env(RandomEnv, 1)).train_freq == model.train_freq
    with pytest.raises(ValueError, match=r'train_freq must be in "step" with several environments \(2\)'):
        SHMSAC.load(tmp_path / "model", make_vec_env(RandomEnv, 2))


def test_bad_action_noise():
    env = make_vec_env(RandomEnv, 1, env_kwargs=dict(action_space=TWO_ACTIONS))
    with pytest.raises(ValueError, match=r"action_noise must be an ActionNoise of SB3, .* got 0\.1"):
        make(env, action_noise=0.1)
    with pytest.raises(ValueError, match=r"action_noise must have the shape of the actions, \(2,\), got \(3,\)"):
        make(env, action_noise=NormalActionNoise(np.zeros(3), np.ones(3)))


def test_a_tape_loaded_where_there_is_none(tmp_path):
    """The buffer is often dropped before a model is kept or copied."""
    model = make(make_vec_env("PendulumNoVel-v0", 1), seq_len=3, burn_in=2).learn(30)
    model.save_replay_buffer(tmp_path / "tape")
    written = model.replay_buffer.written.tolist()
    model.replay_buffer = None
    with pytest.raises(ValueError, match="replay_buffer is None: load one with load_replay_buffer"):
        model.learn(5)
    model.load_replay_buffer(tmp_path / "tape")
    assert model.replay_buffer.written.tolist() == written
    assert (model.replay_buffer.seq_len, model.replay_buffer.burn_in) == (3, 2)
    model.learn(5, reset_num_timesteps=False)
    del model.replay_buffer
    model.load_replay_buffer(tmp_path / "tape")
