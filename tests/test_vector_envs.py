"""Gymnasium's vector environments: ours through ``gym.make_vec``, and anybody's as the algorithms' environment."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.vector import BatchedVectorEnv
from sb3_shm.training.gymnasium_vectors import GymnasiumVecEnv

MODES = list(AutoresetMode)
SMALL = dict(encoder_arch=[8, 8], memory_kwargs=dict(memory_size=4))


class InfoEnv(RandomEnv):
    """RandomEnv with infos: of resets, of steps, and of some steps."""

    def __init__(self, has_parts: bool = False):
        space = spaces.Dict(a=spaces.Box(-2, 2, (3,), np.float32), b=spaces.Discrete(4)) if has_parts else None
        super().__init__(space)

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {"left": self.left}

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        info = {"action": int(action), "nested": {"half": self.left / 2}}
        return obs, reward, terminated, truncated, info | ({"is_success": True} if terminated else {})

    def double(self, x):
        return 2 * x


def equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


def compare(ours, reference, n_steps=60, seed=3):
    """Step both alike; return how many episodes ended by termination and by truncation."""
    assert ours.observation_space == reference.observation_space and ours.action_space == reference.action_space
    generator = np.random.default_rng(0)
    for env in (ours, reference):
        env.seed(seed)
    kept = obs = ours.reset()
    assert equal(obs, reference.reset()) and ours.reset_infos == reference.reset_infos
    copies = {key: part.copy() for key, part in obs.items()} if isinstance(obs, dict) else obs.copy()
    ends = [0, 0]
    for _ in range(n_steps):
        actions = generator.integers(ours.action_space.n, size=ours.num_envs)
        (obs, rewards, dones, infos), (expected, *others, expected_infos) = ours.step(actions), reference.step(actions)
        assert equal(obs, expected) and rewards.dtype == np.float32
        for array, other in zip((rewards, dones), others, strict=True):
            assert np.array_equal(array, other) and array.dtype == other.dtype
        for info, expected_info in zip(infos, expected_infos, strict=True):
            if "episode" in info:
                assert equal(info.pop("terminal_observation"), expected_info.pop("terminal_observation"))
                episode, expected_episode = info.pop("episode"), expected_info.pop("episode")
                assert episode["l"] == expected_episode["l"] and abs(episode["r"] - expected_episode["r"]) < 1e-4
                ends[info["TimeLimit.truncated"]] += 1
            # Which only TimeLimit's and not every DummyVecEnv's infos hold in the middle of an episode
            expected_info.setdefault("TimeLimit.truncated", False)
            info.setdefault("TimeLimit.truncated", False)
            assert info == expected_info
        assert ours.reset_infos == reference.reset_infos
    assert equal(kept, copies)  # what it handed out before stays as it was
    return ends


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_parts", [False, True], ids=["Box", "Dict"])
def test_adapter_is_in_step_with_single_environments(mode, has_parts):
    vector = SyncVectorEnv([lambda: InfoEnv(has_parts)] * 3, copy=False, autoreset_mode=mode)
    terminated, truncated = compare(GymnasiumVecEnv(vector), DummyVecEnv([lambda: Monitor(InfoEnv(has_parts))] * 3))
    assert terminated > 5 and truncated > 5


@pytest.mark.parametrize("mode", MODES)
def test_adapter_over_processes(mode):
    ours = GymnasiumVecEnv(AsyncVectorEnv([InfoEnv] * 2, autoreset_mode=mode))
    try:
        compare(ours, DummyVecEnv([lambda: Monitor(InfoEnv())] * 2), n_steps=30)
        assert ours.env_method("double", 4) == [8, 8] and ours.get_attr("longest", [1]) == [9]
        assert not ours.has_attr("action_masks")
        ours.step(np.zeros(2, int))  # such a question leaves the processes alive
    finally:
        ours.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])  # it refuses the third
def test_adapter_over_wrappers(mode):
    """Their view of an observation counts, of the last one, too."""

    def double(obs):
        return 2 * obs

    transform, space = gym.wrappers.TransformObservation, spaces.Box(-4, 4, (3,), np.float32)
    vector = SyncVectorEnv([InfoEnv] * 3, autoreset_mode=mode)
    vector = gym.wrappers.vector.VectorizeTransformObservation(vector, transform, func=double, observation_space=space)
    compare(GymnasiumVecEnv(vector), DummyVecEnv([lambda: transform(Monitor(InfoEnv()), double, space)] * 3))


def test_adapter_asks_environments():
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 3, vectorization_mode="sync", render_mode="rgb_array"))
    assert env.get_attr("spec")[0].id == "CartPole-v1" and env.render_mode == "rgb_array"
    assert env.get_attr("gravity") == [9.8] * 3 and not env.has_attr("nothing")
    env.set_attr("gravity", 1.0)
    assert env.get_attr("gravity", 2) == [1.0]
    with pytest.raises(NotImplementedError, match="Cannot set 'gravity'"):
        env.set_attr("gravity", 2.0, indices=[0])
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert (
        env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3 and env.env_is_wrapped(gym.wrappers.ClipReward) == [False] * 3
    )
    env.set_options({"low": 0.01, "high": 0.02})
    assert (env.reset() >= 0.01).all() and not (env.reset() >= 0.01).all()  # for one reset
    env.set_options([{"low": 0.01}, {}, {}])
    with pytest.raises(ValueError, match="same options"):
        env.reset()


def test_adapter_refuses():
    with pytest.raises(ValueError, match=r"NEXT_STEP.*vectorization_mode='sync'"):
        GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2))
    with pytest.raises(ValueError, match="NEXT_STEP"):
        env = AsyncVectorEnv([RandomEnv], shared_memory=False)
        try:
            GymnasiumVecEnv(env)
        finally:
            env.close()
    with pytest.raises(ValueError, match="use VecNormalize of Stable-Baselines3"):
        GymnasiumVecEnv(gym.wrappers.vector.NormalizeObservation(SyncVectorEnv([RandomEnv] * 2)))
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    env.reset()
    with pytest.raises(ValueError, match="actions must be whole numbers"):
        env.step(np.array([0.9, 1.7]))
    env.step(np.array([0.0, 1.0]))
    env = SyncVectorEnv([RandomEnv])
    env.metadata = {"autoreset_mode": "NextStep"}
    with pytest.raises(ValueError, match=r"must be a gymnasium\.vector\.AutoresetMode"):
        GymnasiumVecEnv(env)

    class Forgetful(gym.vector.VectorWrapper):
        def step(self, actions):
            return *super().step(actions)[:4], {}

    env = GymnasiumVecEnv(Forgetful(SyncVectorEnv([RandomEnv], autoreset_mode=AutoresetMode.SAME_STEP)))
    env.reset()
    with pytest.raises(ValueError, match=r"no infos\['final_obs'\]"):
        for _ in range(10):
            env.step(np.zeros(1, int))


@pytest.mark.parametrize("mode", MODES)
def test_infos_that_are_not_one_value_per_environment(mode):
    """They are left out, whatever they are."""
    odd = {"speed": 0.5, "log": {"a": 1.0}, "list": [1], "nothing": None, "scalar": np.array(1.0), "long": np.ones(3)}

    class Odd(gym.vector.VectorWrapper):
        def reset(self, **kwargs):
            obs, infos = super().reset(**kwargs)
            return obs, None if mode == AutoresetMode.DISABLED else infos | odd

        def step(self, actions):
            *others, infos = super().step(actions)
            return *others, infos | odd | {"both": [3, 4], "part": np.arange(2), "_part": np.array([False, True])}

    listed = GymnasiumVecEnv(gym.wrappers.vector.DictInfoToList(SyncVectorEnv([RandomEnv] * 2, autoreset_mode=mode)))
    listed.reset()
    assert len(listed.step(np.zeros(2, int))[-1]) == 2
    env = GymnasiumVecEnv(Odd(SyncVectorEnv([RandomEnv] * 2, autoreset_mode=mode)))
    env.reset()
    ends = 0
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros(2, int))
        for i in np.flatnonzero(~dones):
            assert infos[i].pop("log", {}) == {}
            assert infos[i] == {"both": 3 + i} | ({"part": 1} if i else {})
        ends += sum("terminal_observation" in info for info in infos)
    assert ends > 3


@pytest.mark.parametrize(("algorithm", "mode"), [(SHMPPO, AutoresetMode.NEXT_STEP), (SHMSAC, AutoresetMode.SAME_STEP)])
def test_algorithms_take_them_as_they_are(algorithm, mode):
    def train(env):
        arguments = dict(n_steps=16) if algorithm is SHMPPO else dict(learning_starts=20, batch_size=2, seq_len=4)
        model = algorithm("MlpSHMPolicy", env, seed=1, policy_kwargs=SMALL, **arguments).learn(64)
        return model, [parameter.detach().numpy() for parameter in model.policy.parameters()]

    model, parameters = train(SyncVectorEnv([RandomEnv] * 2, autoreset_mode=mode))
    _, expected = train(make_vec_env(RandomEnv, 2))
    assert all(np.array_equal(a, b) for a, b in zip(parameters, expected, strict=True))
    assert len(model.ep_info_buffer) > 5
    evaluate_policy(model, model.get_env(), n_eval_episodes=3)
    model.set_env(SyncVectorEnv([RandomEnv] * 2))


@pytest.mark.parametrize(
    "env_id", ["VisualMatch60-v0", "CartPoleNoVel-v0", "PendulumNoVel-v0", "RepeatPreviousEasyPrevAction-v0"]
)
def test_make_vec_makes_ours(env_id):
    env = gym.make_vec(env_id, 4, vectorization_mode="vector_entry_point")
    assert isinstance(env, BatchedVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    adapted, reference = GymnasiumVecEnv(env), make_batched_env(env_id, 4)
    if isinstance(env.single_action_space, spaces.Box):
        for one in (adapted, reference):
            one.seed(0)
            one.reset()
        for _ in range(201):
            (obs, *_, infos), (expected, *_) = (one.step(np.ones((4, 1), np.float32)) for one in (adapted, reference))
            assert np.array_equal(obs, expected)
        assert "terminal_observation" not in infos[0]
    else:
        assert sum(compare(adapted, reference, n_steps=250)) > 3


@pytest.mark.parametrize("limit", [{}, dict(max_episode_steps=13), dict(max_episode_steps=-1)])
@pytest.mark.parametrize("env_id", ["RepeatPreviousEasy-v0", "VisualMatch60-v0", "WindUniform-v0", "CartPoleNoVel-v0"])
def test_ours_do_as_gymnasiums_would(env_id, limit):
    """Everything that SyncVectorEnv returns in the same mode."""
    ours = gym.make_vec(env_id, 3, vectorization_mode="vector_entry_point", **limit)
    kwargs = dict(vectorization_mode="sync", vector_kwargs=dict(autoreset_mode=AutoresetMode.SAME_STEP))
    sync = gym.make_vec(env_id, 3, **kwargs, **limit)
    assert ours.observation_space == sync.observation_space and ours.action_space == sync.action_space
    assert equal(ours.reset(seed=5)[0], sync.reset(seed=5)[0])
    sync.action_space.seed(0)
    for _ in range(120):
        actions = sync.action_space.sample()
        (*arrays, infos), (*expected, expected_infos) = ours.step(actions), sync.step(actions)
        for array, other in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(array, other, atol=1e-6)
            assert array.dtype == other.dtype
        assert infos.get("_final_obs") is None or infos["_final_obs"].tolist() == expected_infos["_final_obs"].tolist()
        assert ("final_obs" in infos) == ("final_obs" in expected_infos)
        for obs, other in zip(infos.get("final_obs", ()), expected_infos.get("final_obs", ()), strict=True):
            assert (obs is None and other is None) or equal(obs, other)
    before = ours.reset(seed=[1, None, 2])[0]
    after = ours.reset(seed=1, options={"reset_mask": np.array([False, True, False])})[0]
    assert equal(before[[0, 2]], after[[0, 2]])
    assert equal(after[1], ours.reset(seed=[0, 2, 0])[0][1])


def test_ours_are_seeded_and_reset_as_gymnasiums():
    ours = gym.make_vec("PendulumNoVel-v0", 2)
    sync = gym.make_vec("PendulumNoVel-v0", 2, vectorization_mode="sync")
    for seed in (5, (1, 2), [3, None], None):
        assert equal(ours.reset(seed=seed)[0], sync.reset(seed=seed)[0])
        assert ours.np_random_seed == sync.np_random_seed and len(ours.np_random) == 2
    for env in (ours, gym.make_vec("PendulumNoVel-v0", 2)):
        env.reset(seed=[7, 8], options={"reset_mask": np.array([True, False])})
        env.reset(seed=[7, 8], options={"reset_mask": np.array([False, True])})
        obs = env.step(np.zeros((2, 1), np.float32))[0]  # each copy has begun
    sync.reset(seed=7)
    np.testing.assert_allclose(obs, sync.step(np.zeros((2, 1), np.float32))[0], atol=1e-6)


def test_ours_refuse():
    env = gym.make_vec("RepeatPreviousEasy-v0", 2, vectorization_mode="vector_entry_point")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, int))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, int))
    for wrong in (
        dict(seed=[1]),
        dict(options={"reset_mask": np.array([False, False])}),
        dict(options={"reset_mask": np.array([True])}),
        dict(options={"reset_mask": np.array([1, 0])}),
    ):
        with pytest.raises(ValueError, match="There are 2 copies"):
            env.reset(**wrong)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="render_mode"):
        gym.make_vec("RepeatPreviousEasy-v0", 2, vectorization_mode="vector_entry_point", render_mode="ansi")
    with pytest.raises(ValueError, match="no options but reset_mask, got low: vectorization_mode='sync'"):
        gym.make_vec("CartPoleNoVel-v0", 2).reset(options={"low": 0.01})
    with pytest.raises(TypeError, match="batched PendulumNoVel-v0 has no argument g: vectorization_mode='sync'"):
        gym.make_vec("PendulumNoVel-v0", 2, g=9.81)
    with pytest.raises(ValueError, match=r"max_episode_steps \(-1 for no limit\) must be"):
        gym.make_vec("WindUniform-v0", 2, vectorization_mode="vector_entry_point", max_episode_steps=0)
    assert gym.make_vec("CartPoleNoVel-v0", 2, max_episode_steps=7).task.max_steps == 7
    pictures = gym.make_vec("VisualMatch60-v0", 2, render_mode="rgb_array").render()
    assert len(pictures) == 2 and pictures[0].shape[-1] == 3


def test_every_batched_id_has_a_vector_entry_point():
    for env_id in BATCHED_TASKS:
        assert isinstance(gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point"), BatchedVectorEnv)
        assert json.loads(gym.spec(env_id).to_json())["id"] == env_id
