"""Small pictures: what reads them, and that MiniGrid's views run."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.policies import pictures as module
from sb3_shm.policies.pictures import SmallCNN, SmallCombinedExtractor, extract, picture_extractor

SMALL = dict(encoder_arch=[8, 8], memory_kwargs=dict(memory_size=4))
both = pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])


def pictures(height, width, channels=3):
    return spaces.Box(0, 255, (channels, height, width), np.uint8)


@pytest.mark.parametrize("size", [(3, 3), (3, 35), (7, 7), (8, 8), (9, 17), (35, 35)])
def test_every_pixel_counts(size):
    """Of no picture a row or column is cut off, as strides and pools would."""
    extractor = SmallCNN(pictures(*size), features_dim=16)
    picture = th.rand(1, 3, *size, requires_grad=True)
    y = extractor(picture)
    assert y.shape == (1, 16)
    y.sum().backward()
    assert (picture.grad.abs().sum(1) > 0).all()
    assert sum(parameter.numel() for parameter in extractor.parameters()) < 300_000  # however large the picture


def test_numbers_without_an_order():
    """One-hot: an exchange of two numbers is an exchange of two columns of the first layer's weight."""
    extractor = SmallCNN(pictures(3, 3, channels=2), n_values=4)
    numbers = th.randint(0, 4, (5, 2, 3, 3)).float()
    y = extractor(numbers)
    assert th.equal(extractor(numbers.where(numbers < 3, 200.0)), y)  # beyond the greatest
    exchanged = th.where(numbers == 0, 2.0, th.where(numbers == 2, 0.0, numbers))
    assert not th.allclose(extractor(exchanged), y)
    with th.no_grad():
        weight = extractor.cnn[0].weight.view(32, 2, 4, 3, 3)
        weight.copy_(weight[:, :, [2, 1, 0, 3]].clone())
    th.testing.assert_close(extractor(exchanged), y)


def test_who_reads_what():
    assert picture_extractor(pictures(36, 36)) is NatureCNN and picture_extractor(pictures(36, 35)) is SmallCNN
    vector, floats = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (3, 7, 7))
    assert picture_extractor(floats) is NatureCNN  # which refuses it: no picture unless normalize_images=False
    assert picture_extractor(floats, normalize_images=False) is SmallCNN
    assert picture_extractor(spaces.Dict(a=pictures(40, 40), b=vector, c=floats)) is CombinedExtractor
    space = spaces.Dict(a=pictures(40, 40), b=vector, c=pictures(7, 7), d=pictures(2, 7))
    assert picture_extractor(space) is SmallCombinedExtractor
    extractor = SmallCombinedExtractor(space, cnn_output_dim=10)
    kinds = {key: type(part).__name__ for key, part in extractor.extractors.items()}
    assert kinds == dict(a="NatureCNN", b="Flatten", c="SmallCNN", d="Flatten")
    obs = {key: th.zeros(2, *part.shape) for key, part in space.spaces.items()}
    assert extractor(obs).shape == (2, extractor.features_dim) == (2, 10 + 3 + 10 + 42)


@both
@pytest.mark.parametrize("is_dict", [False, True])
def test_algorithms_read_them(algorithm, is_dict, tmp_path):
    picture = spaces.Box(0, 255, (5, 7, 3), np.uint8)  # channels last, as environments have them
    space = spaces.Dict(view=picture, direction=spaces.Discrete(4)) if is_dict else picture
    arguments = dict(n_steps=16) if algorithm is SHMPPO else dict(learning_starts=16, batch_size=2, seq_len=4)
    policy = "MultiInputSHMPolicy" if is_dict else "CnnSHMPolicy"
    model = algorithm(policy, RandomEnv(space), seed=0, policy_kwargs=SMALL, **arguments).learn(32)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip")
    extractors = [part for part in loaded.policy.modules() if isinstance(part, SmallCNN)]
    assert extractors
    obs = space.sample()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    model.policy.save(tmp_path / "policy.zip")
    type(model.policy).load(tmp_path / "policy.zip")


def test_minigrid():
    minigrid = pytest.importorskip("minigrid")
    if "MiniGrid-MemoryS7-v0" not in gym.registry:  # imported before, by a test that took its ids away again
        minigrid.register_minigrid_envs()
    from minigrid.wrappers import ImgObsWrapper

    env = ImgObsWrapper(gym.make("MiniGrid-MemoryS7-v0"))
    kwargs = dict(normalize_images=False, features_extractor_kwargs=dict(n_values=11))
    model = SHMPPO("CnnSHMPolicy", env, n_steps=16, policy_kwargs=kwargs).learn(16)
    assert isinstance(model.policy.features_extractor, SmallCNN)


class WithBatchNorm(NatureCNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cnn.insert(1, th.nn.BatchNorm2d(32))


@pytest.mark.parametrize("extractor", [NatureCNN, SmallCNN, CombinedExtractor, SmallCombinedExtractor, WithBatchNorm])
def test_parts_give_what_all_give_at_once(extractor, monkeypatch):
    size = 8 if "Small" in extractor.__name__ else 36
    space = spaces.Dict(a=pictures(size, size), b=spaces.Box(-1, 1, (3,), np.float32))
    rows = dict(a=th.randint(256, (11, 3, size, size), dtype=th.uint8), b=th.rand(11, 3))
    if "Combined" not in extractor.__name__:
        space, rows = space["a"], rows["a"]
    model = BaseModel(space, spaces.Discrete(2), features_extractor_class=extractor)
    network = model.make_features_extractor()
    calls = []
    network.register_forward_hook(lambda _, inputs, output: calls.append(len(output)))
    results = []
    for at_a_time in (11, 4):
        monkeypatch.setattr(module, "AT_A_TIME", at_a_time)
        features = extract(model, rows, network)
        network.zero_grad()
        features.square().sum().backward()
        results.append([features, *(parameter.grad.clone() for parameter in network.parameters())])
    assert calls == ([11, 11] if extractor is WithBatchNorm else [11, 4, 4, 3])
    for at_once, in_parts in zip(*results, strict=True):
        th.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-5 * float(at_once.detach().abs().max()))


@both
def test_updates_with_parts_are_those_without(algorithm, monkeypatch):
    weights = []
    for at_a_time in (10**9, 5):
        monkeypatch.setattr(module, "AT_A_TIME", at_a_time)
        monkeypatch.setattr(th.optim.Adam, "step", lambda self: None)  # so that the last gradients are there to compare
        own = (
            dict(learning_starts=8, batch_size=2, seq_len=4)
            if algorithm is SHMSAC
            else dict(n_steps=8, batch_size=16, n_epochs=1)
        )
        env = make_vec_env(lambda: RandomEnv(spaces.Box(0, 255, (8, 8, 1), np.uint8)), 2, seed=0)
        model = algorithm("CnnSHMPolicy", env, seed=0, device="cpu", policy_kwargs=SMALL, **own).learn(16)
        weights.append([parameter.grad for parameter in model.policy.parameters() if parameter.grad is not None])
    assert weights[0]
    for at_once, in_parts in zip(*weights, strict=True):
        th.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-5 * float(at_once.abs().max()))
