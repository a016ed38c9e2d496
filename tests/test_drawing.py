"""Pictures of the tasks on the plane, and what draws them."""

import gymnasium as gym
import numpy as np
import pytest

from sb3_shm.envs import make_batched_env
from sb3_shm.envs.batched import BatchedVecEnv
from sb3_shm.envs.drawing import blank, draw_line, fill_disc, fill_rectangle, tiles
from sb3_shm.envs.meta.tasks import PointRobot, Wind
from sb3_shm.envs.single import SingleEnv


@pytest.mark.parametrize("env_id", ["WindTrain50-v0", "PointRobotTrain50-v0"])
def test_pictures(env_id):
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    task = env.task
    env.reset(seed=0)
    pictures = [env.render()]
    height, width, _ = pictures[0].shape

    def pixel(picture: np.ndarray, x: float, y: float) -> list[int]:
        row, column = round((task.view[3] - y) * task.scale), round((x - task.view[0]) * task.scale)
        return picture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].tolist()

    red, green = [200, 30, 30], [120, 210, 120]
    for _ in range(99):
        position = env.step(np.array([0.1, -0.2]))[0][:2]
        pictures.append(env.render())
        assert pictures[-1].dtype == np.uint8
        assert pictures[-1].shape == (height, width, 3)
        assert pixel(pictures[-1], *position) == red  # inside the view or at its border
    goal = np.broadcast_to(task.goal, (1, 2))[0]
    assert pixel(pictures[0], *goal) == green
    assert (pictures[0] != pictures[1]).any()
    # The way that it came stays in the picture
    assert (pictures[20] == [70, 110, 220]).all(axis=-1).sum() > 10
    assert gym.make(env_id).render() is None
    assert [image.shape for image in make_batched_env(env_id, 2).get_images()] == [(height, width, 3)] * 2


def test_picture_of_the_second_rollout():
    """The way of the first rollout turns grey, and its last point is not joined to the new start."""
    env = SingleEnv(PointRobot(), "rgb_array")
    env.reset(seed=0)
    for _ in range(100):
        env.step(np.array([0.0, 0.05]))
    grey, blue = [180, 180, 180], [70, 110, 220]
    first = env.render()
    assert not (first == grey).all(axis=-1).any()
    assert (first == blue).all(axis=-1).sum() > 20
    env.step(np.array([0.0, 0.0]))
    second = env.render()
    assert (second == grey).all(axis=-1).sum() > 20
    # One point's worth at most, below the red disc
    assert (second == blue).all(axis=-1).sum() < 10
    # A step is ten pixels long, and the disc covers four of them
    env.step(np.array([1.0, 0.0]))
    assert (env.render() == blue).all(axis=-1).sum() > 10


def test_wind_is_drawn():
    """No wind, no arrow; with wind it points where the wind blows."""
    still, blowing = Wind(max_wind=0.0), Wind(split="eval", n_tasks=150)
    orange = [230, 140, 0]
    for task, length in ((still, 4), (blowing, 30)):
        env = BatchedVecEnv(task)
        env.seed(1)
        env.reset()
        rows, columns = np.nonzero((task.render(0) == orange).all(axis=-1))
        assert max(np.ptp(rows), np.ptp(columns)) >= length if task is blowing else len(rows) <= 9


def test_rectangle():
    image = blank(4, 5, (1, 2, 3))
    assert image.shape == (4, 5, 3)
    fill_rectangle(image, 1, 2, 3, 4, (9, 9, 9))
    assert np.argwhere(image[..., 0] == 9).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    image = blank(4, 5)
    fill_rectangle(image, -3, -2, 1, 2, (0, 0, 0))
    fill_rectangle(image, -3, -2, -1, -1, (7, 7, 7))
    fill_rectangle(image, 3, 4, 99, 99, (0, 0, 0))
    assert np.argwhere(image[..., 0] == 0).tolist() == [[0, 0], [0, 1], [3, 4]]
    assert not (image == 7).any()


def test_disc():
    image = blank(11, 11)
    fill_disc(image, 5, 5, 2, (0, 0, 0))
    black = np.argwhere(image[..., 0] == 0)
    assert len(black) == 13  # points of the grid within 2 of a point of it
    assert (np.linalg.norm(black - 5, axis=1) <= 2).all()
    fill_disc(image, -20, 100, 3, (0, 0, 0))
    assert (image[..., 0] == 0).sum() == 13


def test_line():
    image = blank(9, 9)
    draw_line(image, [(1, 1), (1, 7), (7, 4)], (0, 0, 0))
    rows, columns = np.nonzero(image[..., 0] == 0)
    assert set(columns[rows == 1]) == set(range(1, 8))
    assert set(rows) == set(range(1, 8))  # no gap
    assert image[7, 4, 0] == 0
    image = blank(9, 9)
    draw_line(image, [(-5, 4), (20, 4)], (0, 0, 0), thickness=3)
    assert (image[:, 3:6] == 0).all()
    assert (image[:, [0, 1, 2, 6, 7, 8]] == 255).all()
    image = blank(3, 3)
    draw_line(image, [(1, 2)], (0, 0, 0))
    draw_line(image, np.zeros((0, 2)), (0, 0, 0))
    assert np.argwhere(image[..., 0] == 0).tolist() == [[1, 2]]


def test_a_frame_is_around_its_tile_alone():
    colours = np.array([[[9, 9, 9], [7, 7, 7]]])
    plain, framed = tiles(colours), tiles(colours, [[False, True]])
    assert plain.shape == framed.shape == (24, 48, 3) and np.array_equal(plain[:, :24], framed[:, :24])
    orange = (framed == (255, 150, 0)).all(axis=-1)
    assert orange[12].nonzero()[0].tolist() == [24, 25, 26, 27, 44, 45, 46, 47] and orange[:4, 24:].all()
    assert (framed[4:-4, 28:-4] == 7).all()
