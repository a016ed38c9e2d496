"""Which winds and goals there are, and whose turn it is."""

import gymnasium as gym
import numpy as np
import pytest

from sb3_shm.envs import make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.meta import META_TASKS
from sb3_shm.envs.meta.tasks import PointRobot, Wind, released_goals, released_winds


def start(task: Wind | PointRobot, seed: int = 0) -> BatchedVecEnv:
    env = BatchedVecEnv(task)
    env.seed(seed)
    env.reset()
    return env


def test_released_winds():
    """The numbers that the release draws with numpy's global generator."""
    winds, order = released_winds()
    assert winds.shape == (200, 2)
    np.testing.assert_allclose(winds[0], [-0.047595064996883665, -0.06826320556910688], rtol=1e-15)
    np.testing.assert_allclose(winds[1], [-0.044374696101128056, -0.008136622557086665], rtol=1e-15)
    np.testing.assert_allclose(winds[199], [-0.04864836156945636, 0.028818885861950527], rtol=1e-15)
    assert order[:10].tolist() == [67, 193, 117, 142, 118, 27, 173, 11, 34, 196]
    assert order[-3:].tolist() == [45, 83, 130]
    with pytest.raises(ValueError, match="read-only"):
        winds[0] = 0


def test_released_goals():
    goals, order = released_goals()
    assert goals.shape == (200, 2)
    np.testing.assert_allclose(goals[0], [0.327248513218332, 0.9449383104713192], rtol=1e-14)
    np.testing.assert_allclose(goals[1], [0.9988467964965542, 0.048011218778232403], rtol=1e-14)
    np.testing.assert_allclose(goals[199], [0.65399333371853, 0.7565003102786697], rtol=1e-14)
    assert order[:10].tolist() == [33, 194, 175, 59, 170, 9, 54, 104, 18, 181]
    assert order[-3:].tolist() == [87, 179, 78]


@pytest.mark.parametrize("task_class, released", [(Wind, released_winds), (PointRobot, released_goals)])
@pytest.mark.parametrize("n_train", [10, 50])
def test_split(task_class, released, n_train):
    """Training and evaluation tasks have none in common, and are all together."""
    tasks, order = released()
    train = task_class(split="train", n_tasks=n_train).tasks
    evaluation = task_class(split="eval", n_tasks=200 - n_train).tasks
    np.testing.assert_array_equal(train[0], tasks[order[0]])
    np.testing.assert_array_equal(evaluation[-1], tasks[order[-1]])
    both = {tuple(task) for task in (*train.tolist(), *evaluation.tolist())}
    assert len(both) == 200
    assert both == {tuple(task) for task in tasks.tolist()}


@pytest.mark.parametrize("env_id", META_TASKS)
def test_seeds(env_id):
    """The same seed gives the same tasks, another seed others; so do the copies of one vector."""

    def tasks(seed: int) -> np.ndarray:
        env = make_batched_env(env_id, 8, seed=seed)
        drawn = []
        for _ in range(3):
            env.reset()
            env.step(np.zeros((8, 2)))
            drawn.append(env.task.task.copy())
        return np.array(drawn)

    first = tasks(0)
    np.testing.assert_array_equal(first, tasks(0))
    assert (first != tasks(100)).any()
    for task in first:
        assert len({tuple(row) for row in task.tolist()}) >= 3
    # Nor is it always the same task
    assert (first[0] != first[1]).any(axis=1).sum() >= 4


@pytest.mark.parametrize("n_tasks", [150, 190])
@pytest.mark.parametrize("task_class", [Wind, PointRobot])
@pytest.mark.parametrize("n_envs", [1, 10, None])
def test_evaluation_tasks_in_turn(task_class, n_tasks, n_envs):
    """One copy, ten copies or as many as there are tasks visit each task equally often."""
    n_envs = n_envs or n_tasks
    env = BatchedVecEnv(task_class(n_envs=n_envs, split="eval", n_tasks=n_tasks, rollout_steps=1))
    env.seed(33)
    numbers = {tuple(task): i for i, task in enumerate(env.task.tasks.tolist())}
    for repetition in range(2):
        # As evaluate_policy does, although the last one ended with new episodes
        env.reset()
        visits = np.zeros(n_tasks, dtype=int)
        for episode in range(n_tasks // n_envs):
            current = [numbers[tuple(task)] for task in env.task.task.tolist()]
            if repetition == episode == 0:
                assert current == [(33 + i) % n_tasks for i in range(n_envs)]
            np.add.at(visits, current, 1)
            for _ in range(env.task.n_rollouts):
                env.step(np.zeros((n_envs, 2)))
        assert (visits == 1).all()


def test_evaluation_begins_anew_with_a_seed():
    env = gym.make("WindEval150-v0")
    task = env.unwrapped.task
    env.reset(seed=5)
    first = task.task.copy()
    for _ in range(3):
        env.reset()
        np.testing.assert_array_equal(task.task, first)  # nothing was played yet
    env.step(np.zeros(2))
    env.reset()
    assert (task.task != first).any()
    env.reset(seed=5)
    np.testing.assert_array_equal(task.task, first)
    # Seeds that did not come from Gymnasium
    env.unwrapped.np_random = np.random.default_rng([1, 2])
    env.reset()
    np.testing.assert_array_equal(task.task[0], task.tasks[0])


def test_training_tasks_are_drawn_evenly():
    task = Wind(n_envs=500, split="train", n_tasks=10, rollout_steps=1)
    env = start(task)
    counts = dict.fromkeys(map(tuple, task.tasks.tolist()), 0)
    for _ in range(10):
        for wind in task.task.tolist():
            counts[tuple(wind)] += 1
        env.step(np.zeros((500, 2)))
    # 500 expected, standard deviation 21
    assert all(abs(count - 500) < 5 * 21 for count in counts.values())


def test_fresh_tasks_and_starts():
    """Quantiles of what is drawn, within five standard errors of 4,000 draws (at most 0.04 of the range)."""
    levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9])

    def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
        assert values.min() >= low
        assert values.max() <= high
        np.testing.assert_allclose(np.quantile(values, levels), low + (high - low) * levels, atol=0.04 * (high - low))

    for max_wind, kwargs in ((0.1, {}), (0.08, META_TASKS["WindUpstream-v0"][1])):
        wind = Wind(n_envs=4000, **kwargs)
        start(wind)
        for axis in range(2):
            assert_uniform(wind.task[:, axis], -max_wind, max_wind)
        assert abs(np.corrcoef(wind.task.T)[0, 1]) < 5 / np.sqrt(4000)
    robot = PointRobot(n_envs=4000, rollout_steps=1)
    env = start(robot)
    assert_uniform(np.arctan2(robot.goal[:, 1], robot.goal[:, 0]), 0, np.pi)
    first = robot.observe()
    env.step(np.zeros((4000, 2)))
    second = env.step(np.zeros((4000, 2)))[3]
    for observations in (first, np.array([info["terminal_observation"] for info in second])):
        assert_uniform(observations[:, 0], -1.5, 1.5)
        assert_uniform(observations[:, 1], -0.5, 1.5)
