"""Models that earlier versions saved act, and train, as they did then. tests/old_models holds them and what they did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import SHM, PaperSHM
from sb3_shm.memory.old_shm import OldSHM
from sb3_shm.sharing.manifest import MANIFEST
from sb3_shm.sharing.safe_format import load_folder, save_folder
from sb3_shm.training.old_models import convert_policy_kwargs

FOLDER = Path(__file__).parent / "old_models"
CASES = {
    "ppo_plain": (SHMPPO, "CartPoleNoVel-v0", PaperSHM),
    "ppo_knobs": (SHMPPO, "CartPoleNoVel-v0", OldSHM),  # time_scales, key_bias, value_scale, calibration_scale
    "sac_plain": (SHMSAC, "PendulumNoVel-v0", PaperSHM),
    "sac_knobs": (SHMSAC, "PendulumNoVel-v0", OldSHM),  # time_scales in the critic, a GRU in the actor
    "ppo_unscaled": (SHMPPO, "CartPoleNoVel-v0", SHM),  # the form of today, before calibration_scale was part of the weights
}


def memories(model) -> list:
    trunks = model.policy.trunks if isinstance(model, SHMPPO) else (model.critic.body.trunk, model.actor.body.trunk)
    return [trunk.memory for trunk in trunks]


def check(model, name: str) -> None:
    then = np.load(FOLDER / f"{name}.npz")
    assert type(memories(model)[0]) is CASES[name][2]
    for memory in memories(model):
        assert type(memory) is not SHM or (name == "ppo_unscaled" and memory.calibration_scale == 1)
    state = None
    for t, obs in enumerate(then["obs"]):
        actions, state = model.predict(obs, state, np.full(2, t == 6), deterministic=True)
        np.testing.assert_allclose(actions, then["actions"][t], atol=1e-4)
    if isinstance(model, SHMPPO):
        assert model.normalize_values is (name == "ppo_unscaled")
        assert len(model.policy.trunks) == (2 if name == "ppo_knobs" else 1)
        state = model.policy.initial_state(2)
        th.manual_seed(3)  # the rows of θ that were drawn then
        for obs, values in zip(then["obs"], then["values"], strict=True):
            with th.no_grad():
                _, now, _, state, _ = model.policy(th.as_tensor(obs), state, th.zeros(2, dtype=th.bool))
            np.testing.assert_allclose(now, values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_zip(name, as_file, tmp_path):
    """It loads from a path and from an open file, trains on, and is saved as a model of today."""
    algorithm, env_id, _ = CASES[name]
    env = make_vec_env(env_id, 2, seed=5)
    if as_file:
        with open(FOLDER / f"{name}.zip", "rb") as file:
            model = algorithm.load(file, env=env)
    else:
        model = algorithm.load(FOLDER / name, env=env)
    check(model, name)
    before = th.nn.utils.parameters_to_vector(model.policy.parameters())
    model.learn(32)
    assert not th.equal(before, th.nn.utils.parameters_to_vector(model.policy.parameters()))
    model.save(tmp_path / "again")
    again = algorithm.load(tmp_path / "again")
    assert type(memories(again)[0]) is CASES[name][2] and again.policy_kwargs == model.policy_kwargs
    if algorithm is SHMPPO:
        assert again.normalize_values is (name == "ppo_unscaled")
    if name == "ppo_unscaled":
        assert memories(again)[0].calibration_scale == 1


@pytest.mark.parametrize("name", CASES)
def test_shared_folder(name, tmp_path):
    model = load_folder(FOLDER / f"{name}_folder")
    check(model, name)
    save_folder(model, tmp_path, dict(id=CASES[name][1], kwargs={}), None)
    check(load_folder(tmp_path), name)


def test_a_model_of_today_is_not_converted(tmp_path):
    SHMPPO("MlpSHMPolicy", "CartPole-v1", n_steps=16, policy_kwargs=dict(memory_kwargs=dict(memory_size=5))).save(
        tmp_path / "m"
    )
    model = SHMPPO.load(tmp_path / "m")
    assert type(memories(model)[0]) is SHM and model.normalize_values is True
    assert memories(model)[0].calibration_scale.item() == pytest.approx(0.1)


@pytest.mark.parametrize("is_old", [True, False])
def test_what_is_gone(is_old, tmp_path):
    """A model that names an argument that no longer exists loads without it, with the same weights."""
    model = SHMSAC("MlpSHMPolicy", make_vec_env("PendulumNoVel-v0"), policy_kwargs=dict(memory="gru", net_arch=[5]))
    model.policy_kwargs["head_dtype"] = "bfloat16"
    model.buffer_device = "auto"
    folder = tmp_path / "folder"
    folder.mkdir()
    save_folder(model, folder, dict(id="PendulumNoVel-v0", kwargs={}), None)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["arguments"]["buffer_device"] = "auto"
    if is_old:
        del model.memory_format
        manifest["format"] = 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    model.save(tmp_path / "model")
    model.policy._arguments["head_dtype"] = "bfloat16"
    model.policy.save(tmp_path / "policy")
    alone = type(model.policy).load(tmp_path / "policy")
    assert all(map(th.equal, alone.parameters(), model.policy.parameters()))
    for loaded in (SHMSAC.load(tmp_path / "model"), load_folder(folder)):
        assert loaded.policy_kwargs == dict(memory="gru", net_arch=[5]) and not hasattr(loaded, "buffer_device")
        assert all(map(th.equal, loaded.policy.parameters(), model.policy.parameters()))


@pytest.mark.parametrize(
    "then, now",
    [
        ({}, dict(memory="shm_paper")),
        (dict(memory="gru"), dict(memory="gru")),
        (
            dict(memory_kwargs=dict(memory_size=3, value_scale=2.0)),
            dict(memory="shm_paper", memory_kwargs=dict(memory_size=3)),
        ),
        (dict(memory=SHM, memory_kwargs=dict(key_bias=1)), dict(memory=OldSHM, memory_kwargs=dict(key_bias=1))),
        (
            dict(memory="gru", critic_memory="shm", critic_memory_kwargs=dict(time_scales=(1, 2))),
            dict(memory="gru", critic_memory=OldSHM, critic_memory_kwargs=dict(time_scales=(1, 2))),
        ),
        (
            dict(actor_memory_kwargs=dict(memory_size=4)),
            dict(memory="shm_paper", actor_memory="shm_paper", actor_memory_kwargs=dict(memory_size=4)),
        ),
    ],
)
def test_conversion(then, now):
    assert convert_policy_kwargs(then) == now
