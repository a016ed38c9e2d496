import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from small_envs import RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_shm.envs import make_batched_env
from sb3_shm.envs.wrappers import MemoryInputs, MetaEpisode, VecHideEntries, VecMemoryInputs

KEYS = ("previous_action", "previous_reward", "first_step")
OBSERVATIONS = {
    "vector": spaces.Box(-2, 2, (3,), np.float32),
    "doubles": spaces.Box(-2, 2, (2,), np.float64),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
}
ACTIONS = {
    "continuous": spaces.Box(-1, 1, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(2),
}


def numbers(value: Any) -> Any:
    """What can be compared with ==."""
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items()}
    return np.asarray(value).tolist()


def expected(
    observation: Any, observation_space: spaces.Space, action: Any, action_space: spaces.Space, reward: float, first: bool
) -> Any:
    """The same by Gymnasium's flatten(), which takes one value at a time."""
    row = {
        "previous_action": np.zeros(spaces.flatdim(action_space)) if first else flatten(action_space, action),
        "previous_reward": [np.float32(reward)],
        "first_step": [float(first)],
    }
    if isinstance(observation_space, spaces.Dict):
        return numbers({**observation, **row})
    if len(observation_space.shape) > 1:
        return numbers({"observation": observation, **row})
    return np.concatenate([flatten(observation_space, observation), *row.values()]).astype(np.float32).tolist()


class SeededEnv(RandomEnv):
    """The kind of the end depends on the seed, too."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self.episodes = 0
        return super().reset(seed=seed, options=options)


def random_env(observations: str, actions: str) -> RandomEnv:
    # A space has a generator: each environment needs its own
    return SeededEnv(copy.deepcopy(OBSERVATIONS[observations]), copy.deepcopy(ACTIONS[actions]))


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_memory_inputs(observations, actions):
    env, bare = MemoryInputs(random_env(observations, actions)), random_env(observations, actions)
    spaces_ = bare.observation_space, bare.action_space
    env.action_space.seed(0)
    observation, _ = env.reset(seed=1)
    raw, _ = bare.reset(seed=1)
    first_steps = 1
    assert numbers(observation) == expected(raw, spaces_[0], None, spaces_[1], 0.0, True)
    for _ in range(40):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        raw, *rest = bare.step(action)[:4]
        assert [reward, terminated, truncated] == rest
        assert observation in env.observation_space
        assert numbers(observation) == expected(raw, spaces_[0], action, spaces_[1], reward, False)
        if terminated or truncated:
            observation, _ = env.reset()
            assert observation in env.observation_space
            assert numbers(observation) == expected(bare.reset()[0], spaces_[0], None, spaces_[1], 0.0, True)
            first_steps += 1
    assert first_steps > 3


@pytest.mark.parametrize("wrap", [MemoryInputs, lambda env: MetaEpisode(env, 2)], ids=["inputs", "meta"])
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_check_env(observations, actions, wrap):
    env = wrap(gym.wrappers.TimeLimit(random_env(observations, actions), 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Rewards know no bounds, the environment below is no spec's, and the wrapper must stay on
        warnings.filterwarnings("ignore", message=".*(infinity|is different from the unwrapped|EnvSpec|spec is None).*")
        sb3_check_env(env)
        gymnasium_check_env(env, skip_render_check=True)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_vec_memory_inputs(observations, actions):
    """Inside of each environment or around all of them: the same observations, terminal ones included."""
    inside = DummyVecEnv([lambda: MemoryInputs(random_env(observations, actions)) for _ in range(3)])
    around = VecMemoryInputs(DummyVecEnv([lambda: random_env(observations, actions) for _ in range(3)]))
    assert inside.observation_space == around.observation_space
    for env in (inside, around):
        env.seed(5)
    assert numbers(inside.reset()) == numbers(around.reset())
    n_ends = 0
    inside.action_space.seed(0)
    for _ in range(40):
        sampled = np.array([inside.action_space.sample() for _ in range(3)])
        (seen, rewards, dones, infos), (seen_1, rewards_1, dones_1, infos_1) = (env.step(sampled) for env in (inside, around))
        assert numbers(seen) == numbers(seen_1)
        assert numbers(rewards) == numbers(rewards_1)
        assert numbers(dones) == numbers(dones_1)
        for done, info, info_1 in zip(dones, infos, infos_1, strict=True):
            assert ("terminal_observation" in info_1) == done
            if done:
                n_ends += 1
                assert numbers(info["terminal_observation"]) == numbers(info_1["terminal_observation"])
                assert info_1["terminal_observation"] in around.observation_space
    assert n_ends > 6


def test_layout():
    """Observation, previous action, previous reward, first step."""
    env = MemoryInputs(RandomEnv(spaces.Box(2, 3, (2,), np.float32), spaces.Discrete(3)))
    np.testing.assert_array_equal(env.observation_space.low, [2, 2, 0, 0, 0, -np.inf, 0])
    np.testing.assert_array_equal(env.observation_space.high, [3, 3, 1, 1, 1, np.inf, 1])
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first[2:], [0, 0, 0, 0, 1])
    second, reward, *_ = env.step(1)
    np.testing.assert_array_equal(second[2:], np.float32([0, 1, 0, reward, 0]))
    assert env.reset()[0][2:].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("observations", ["vector", "image"])
@pytest.mark.parametrize(
    "on", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)], ids=str
)
def test_switches(observations, on):
    switches = dict(zip(KEYS, on, strict=True))
    everything = MemoryInputs(random_env(observations, "continuous"))
    some = MemoryInputs(random_env(observations, "continuous"), **switches)
    around = VecMemoryInputs(DummyVecEnv([lambda: random_env(observations, "continuous")]), **switches)
    around.seed(0)
    action = np.array([0.25, -0.5], dtype=np.float32)
    vec_seen = [around.reset(), around.step(action[None])[0]]
    full_seen, seen = ([env.reset(seed=0)[0], env.step(action)[0]] for env in (everything, some))
    for i, (full, part) in enumerate(zip(full_seen, seen, strict=True)):
        if observations == "image":
            assert part.keys() == {"observation", *(key for key in KEYS if switches[key])}
            assert all(numbers(part[key]) == numbers(full[key]) for key in part)
            assert numbers({key: value[0] for key, value in vec_seen[i].items()}) == numbers(part)
        else:
            kept = np.array([True] * 3 + [on[0]] * 2 + [on[1], on[2]])
            np.testing.assert_array_equal(part, full[kept])
            np.testing.assert_array_equal(vec_seen[i][0], part)
    assert part in some.observation_space


def test_zero_is_within_the_bounds():
    """Actions from 1 to 2 have no zero, but the first observation does."""
    env = MemoryInputs(RandomEnv(action_space=spaces.Box(np.float32([1, -3]), np.float32([2, -1]))))
    np.testing.assert_array_equal(env.observation_space.low[3:5], [0, -3])
    np.testing.assert_array_equal(env.observation_space.high[3:5], [2, 0])
    assert env.reset(seed=0)[0] in env.observation_space
    assert env.step(np.array([2, -3], dtype=np.float32))[0] in env.observation_space


def test_spaces_that_begin_elsewhere():
    space = spaces.Dict({"a": spaces.Discrete(2)})
    env = MemoryInputs(RandomEnv(space, spaces.Discrete(3, start=-1)))
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(-1)[0]["previous_action"], [1, 0, 0])
    bare = RandomEnv(spaces.MultiDiscrete([2, 3], start=[5, 1]))
    bare.action_space = spaces.MultiDiscrete([[2, 3], [2, 2]])
    env = MemoryInputs(bare)
    observation, _ = env.reset(seed=0)
    assert observation[:5].sum() == 2
    np.testing.assert_array_equal(env.step(np.array([[1, 2], [0, 1]]))[0][5:14], [0, 1, 0, 0, 1, 1, 0, 0, 1])


def test_bad_arguments():
    for wrap, env in (
        (MemoryInputs, RandomEnv()),
        (VecMemoryInputs, DummyVecEnv([RandomEnv])),
    ):
        with pytest.raises(ValueError, match="At least one"):
            wrap(env, previous_action=False, previous_reward=False, first_step=False)
    pair = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))
    with pytest.raises(ValueError, match="FlattenObservation"):
        MemoryInputs(RandomEnv(pair))
    with pytest.raises(ValueError, match="MultiBinary, got Tuple"):
        MemoryInputs(RandomEnv(action_space=pair))
    # The switch that does not look at the actions does not mind
    MemoryInputs(RandomEnv(action_space=pair), previous_action=False)
    taken = spaces.Dict({"first_step": spaces.Discrete(2), "rollout_done": spaces.Discrete(2)})
    with pytest.raises(ValueError, match=r"already have the keys \['first_step'\]"):
        MemoryInputs(RandomEnv(taken))
    with pytest.raises(ValueError, match=r"already have the keys \['rollout_done'\]"):
        MetaEpisode(RandomEnv(taken), 2)
    with pytest.raises(ValueError, match="n_rollouts"):
        MetaEpisode(RandomEnv(), 0)


def test_release_inputs():
    """Wind sees its previous action; Point Robot its done flag and the previous reward."""
    actions = np.random.default_rng(0).uniform(-1, 1, (230, 3, 2)).astype(np.float32)
    for env_id, switches, size in (
        ("WindTrain50-v0", {"previous_reward": False, "first_step": False}, 4),
        ("PointRobotTrain50-v0", {"previous_action": False, "first_step": False}, 4),
        ("PointRobotTrain50-v0", {}, 7),
    ):
        inside = make_vec_env(env_id, 3, seed=2, wrapper_class=MemoryInputs, wrapper_kwargs=switches)
        around = VecMemoryInputs(make_batched_env(env_id, 3, seed=2), **switches)
        assert inside.observation_space == around.observation_space
        assert around.observation_space.shape == (size,)
        np.testing.assert_array_equal(inside.reset(), around.reset())
        for action in actions:
            (seen, _, dones, infos), (seen_1, rewards, _, infos_1) = (env.step(action) for env in (inside, around))
            np.testing.assert_array_equal(seen, seen_1)
            if dones.any():
                assert dones.all()
                for info, info_1, own, reward in zip(infos, infos_1, action, rewards, strict=True):
                    last = info_1["terminal_observation"]
                    np.testing.assert_array_equal(info["terminal_observation"], last)
                    assert "Wind" not in env_id or (last[2:] == own).all()
                    assert "Robot" not in env_id or (last[2] == 1 and last[-1 if size == 4 else 5] == reward)
                assert (seen_1[:, 3:-1] == 0).all()
                assert (seen_1[:, -1] == (size == 7)).all()


def test_monitor_and_normalisation():
    env = make_vec_env("WindTrain50-v0", 2, seed=0, wrapper_class=MemoryInputs)
    assert env.env_is_wrapped(Monitor) == [True, True]
    normalised = VecMemoryInputs(VecNormalize(make_batched_env("PointRobotUpstream-v0", 2, seed=0), norm_reward=True))
    normalised.reset()
    seen, rewards, _, _ = normalised.step(np.zeros((2, 2)))
    np.testing.assert_array_equal(seen[:, 5], rewards.astype(np.float32))


def test_observations_and_actions_are_copies():
    """A user may keep what it was given and write over what it gave."""
    for observations in ("vector", "image"):
        env = VecMemoryInputs(DummyVecEnv([lambda observations=observations: random_env(observations, "continuous")] * 2))
        env.seed(0)
        first = env.reset()
        actions = np.full((2, 2), 0.5, dtype=np.float32)
        env.step_async(actions)
        actions[:] = -1
        second, _, dones, _ = env.step_wait()
        assert not dones.any()
        kept = copy.deepcopy((first, second))
        for _ in range(12):
            env.step(actions)
        assert [numbers(seen) for seen in kept] == [numbers(first), numbers(second)]
        row = second[:, 3:5] if observations == "vector" else second["previous_action"]
        assert (row == 0.5).all()


@pytest.mark.parametrize("env_id", ["WindTrain50-v0", "CartPoleNoVel-v0"])
def test_wrappers_can_be_copied(env_id):
    env = MetaEpisode(MemoryInputs(gym.make(env_id), first_step=False), 2)
    # A spec makes the same environment again
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.observation_space == env.observation_space
    assert str(again) == str(env)
    env.reset(seed=3)
    action = env.action_space.sample()
    env.step(action)
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        other = copy.deepcopy(env)
        for _ in range(40):
            (seen, *rest), (seen_1, *rest_1) = other.step(action)[:4], twin.step(action)[:4]
            np.testing.assert_array_equal(seen, seen_1)
            assert rest == rest_1
            if rest[1] or rest[2]:
                np.testing.assert_array_equal(other.reset()[0], twin.reset()[0])


@pytest.mark.parametrize("env_id", ["AcrobotNoVel-v0", "MountainCarContinuousNoVel-v1"])
def test_environments_with_hidden_entries_can_be_pickled(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    twin = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.step(action)[0], twin.step(action)[0])


@pytest.mark.parametrize("wrapper", [VecMemoryInputs, lambda env: VecHideEntries(env, [0])])
def test_vec_wrapper_can_be_copied(wrapper):
    env = wrapper(make_batched_env("WindTrain50-v0", 3, seed=1))
    env.reset()
    env.step(np.ones((3, 2)))
    twins = pickle.loads(pickle.dumps(env)), copy.deepcopy(env)
    for _ in range(210):
        seen = env.step(np.ones((3, 2)))[0]
        for twin in twins:
            np.testing.assert_array_equal(seen, twin.step(np.ones((3, 2)))[0])
    assert twins[0].get_attr("max_wind") == [0.1] * 3


def test_ppo_accepts():
    for policy, env in (
        ("MlpPolicy", VecMemoryInputs(make_batched_env("PointRobotTrain10-v0", 2, seed=0))),
        ("MultiInputPolicy", VecMemoryInputs(DummyVecEnv([lambda: random_env("image", "multi-discrete")] * 2))),
        ("MlpPolicy", make_vec_env(lambda: MetaEpisode(gym.make("WindUpstream-v0"), 2), 2)),
    ):
        PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(32)
