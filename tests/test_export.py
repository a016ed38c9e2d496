"""Exported policies act as `predict` does, step by step over whole episodes."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import Memoryless, RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import sb3_shm.memory
from sb3_shm import SHMPPO, SHMSAC, RecurrentSHMPolicy
from sb3_shm.memory.base import state_tensors
from sb3_shm.memory.old_shm import OldSHM
from sb3_shm.sharing.export import ExportedPolicy, export_onnx, export_torch

BOX = spaces.Box(np.array([-1, 0, -3], np.float32), np.array([1, 5, 0.5], np.float32))
MEMORIES = {
    "random": dict(memory_kwargs=dict(memory_size=6)),
    "fixed": dict(memory_kwargs=dict(memory_size=6, theta="fixed", layer_norm=False, shortcut=False, clip=None)),
    "neural-sine": dict(memory_kwargs=dict(memory_size=6, theta="neural"), position="sine"),
    "softmax": dict(memory_kwargs=dict(memory_size=6, keys="softmax", read_gain=2.0, clip=0.1)),
    "old": dict(memory=OldSHM, memory_kwargs=dict(memory_size=6, time_scales=(1, 20), clip=0.1, key_bias=0.5)),
    "calibration-random": dict(memory_kwargs=dict(memory_size=6, calibration="random")),
    "gru-sine": dict(memory="gru", memory_kwargs=dict(hidden_size=6, num_layers=2), position="sine"),
    "lstm": dict(memory="lstm", memory_kwargs=dict(hidden_size=6)),
}
ACTIONS = {
    "box": BOX,
    "box64": spaces.Box(-2.0, 3.0, (2, 2), np.float64),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "multibinary": spaces.MultiBinary(4),
}


# Those of the package that are not above. Small windows, so that they are full
OTHERS = {"gpt": dict(hidden_size=8, window=5), "gtrxl": dict(hidden_size=8, window=5), "frame_stack": dict(n_frames=3)}
OTHERS = {name: dict(memory=name, memory_kwargs=OTHERS.get(name, {})) for name in sb3_shm.memory.MEMORIES}
OTHERS = {name: kwargs for name, kwargs in OTHERS.items() if name not in ("shm", "gru", "lstm")}


def make_model(algorithm, memory="random", action="discrete", observation_space=None, policy="MlpSHMPolicy", normalize=None):
    env = make_vec_env(
        RandomEnv, 2, seed=0, env_kwargs=dict(action_space=ACTIONS[action], observation_space=observation_space)
    )
    if normalize is not None:
        env = VecNormalize(env, **normalize)
    policy_kwargs = dict((MEMORIES | OTHERS)[memory], encoder_arch=[8])
    if algorithm is SHMPPO:
        policy_kwargs["ortho_init"] = True  # without biases, which would decide alone
    model = algorithm(policy, env, seed=0, policy_kwargs=policy_kwargs)
    with th.no_grad():  # away from the small initial weights, so that actions differ and some reach their bounds
        for parameter in model.policy.parameters():
            parameter.mul_(2)
    return model


def drawn(space: spaces.Space, n: int):
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return np.stack(samples)


def check_steps(step, model, n: int, steps: int, space=None, normalize=lambda obs: obs, atol: float = 1e-4) -> None:
    """
    Compare a function with ``predict``, through episodes that begin at different times in each row.

    :param step: (obs, tuple of state arrays, episode_start) -> (action, tuple of state arrays)
    """
    space = space or model.observation_space
    space.seed(1)
    rng = np.random.default_rng(2)
    expected_state = None
    shapes = [(tensor.shape, tensor.numpy().dtype) for tensor in state_tensors(model.policy.pi_trunk.initial_state(n))]
    # Not the initial state: where an episode starts it must not matter
    state = tuple(np.full(shape, 3, dtype) for shape, dtype in shapes)
    seen = []
    for t in range(steps):
        obs = drawn(space, n)
        start = rng.random(n) < (1 if t == 0 else 0.05)
        expected, expected_state = model.predict(normalize(obs), expected_state, start, deterministic=True)
        action, state = step(obs, state, start)
        assert action.dtype == expected.dtype and action.shape == expected.shape
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=atol)
        for got, wanted in zip(state, state_tensors(expected_state), strict=True):
            # Against the largest entry: what was large is rounded, and may be small after some steps of gates that multiply
            scale = float(wanted.abs().max()) if wanted.numel() else 1.0
            np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=10 * atol * max(1.0, scale))
        seen.append(expected)
    assert len(np.unique(np.concatenate(seen), axis=0)) > 1, "the policy does the same whatever it sees"


def torch_step(module):
    def step(obs, state, start):
        tensors = {k: th.as_tensor(o) for k, o in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
        with th.no_grad():
            action, after = module(tensors, tuple(map(th.as_tensor, state)), th.as_tensor(start))
        return action.numpy(), tuple(tensor.numpy() for tensor in after)

    return step


def onnx_step(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def step(obs, state, start):
        feed = {f"obs.{key}": o for key, o in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        feed |= {f"state.{i}": array for i, array in enumerate(state)}
        action, *after = session.run(None, {**feed, "episode_start": start})
        return action, tuple(after)

    return step


def models(algorithm):
    actions = ["box", "box64", "discrete"] + ["multidiscrete", "multibinary"] * (algorithm is SHMPPO)
    memories = list(MEMORIES)
    # Every memory and every action, not every pair
    return [(algorithm, memory, actions[i % len(actions)]) for i, memory in enumerate(memories)]


@pytest.mark.parametrize("algorithm, memory, action", models(SHMPPO) + models(SHMSAC))
def test_module(algorithm, memory, action):
    model = make_model(algorithm, memory, action)
    policy = ExportedPolicy(model)
    check_steps(torch_step(policy), model, n=3, steps=60)
    # A copy: what happens to the model later changes nothing
    before = [tensor.clone() for tensor in policy.state_dict().values()]
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    assert all(th.equal(a, b) for a, b in zip(before, policy.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "algorithm, memory, action",
    [(SHMPPO, "random", "multidiscrete"), (SHMSAC, "neural-sine", "box"), (SHMSAC, "lstm", "discrete")],
)
def test_torch_export_in_batches_of_any_size(algorithm, memory, action, tmp_path):
    model = make_model(algorithm, memory, action)
    export_torch(model, tmp_path / "policy.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its future
        module = th.export.load(tmp_path / "policy.pt2").module()
    for n in (1, 2, 5):
        check_steps(torch_step(module), model, n, steps=20)


def check_both_exports(model, folder, ns, steps):
    """One program for any number of environments, as torch reads it and as ONNX Runtime does."""
    pytest.importorskip("onnxscript")
    export_onnx(model, folder / "policy.onnx")
    assert [path.name for path in folder.iterdir()] == ["policy.onnx"], "weights must be inside"
    module = export_torch(model).module()
    for n in ns:
        check_steps(onnx_step(folder / "policy.onnx"), model, n, steps)
        check_steps(torch_step(module), model, n, steps)


EVERY_DAY = ["random", "gru-sine"]


@pytest.mark.parametrize(
    "algorithm, memory, action",
    [pytest.param(*case, marks=() if case[1] in EVERY_DAY else pytest.mark.slow) for case in models(SHMPPO) + models(SHMSAC)],
)
def test_over_1000_steps(algorithm, memory, action, tmp_path):
    check_both_exports(make_model(algorithm, memory, action), tmp_path, ns=[3], steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, action", [(SHMPPO, "discrete"), (SHMSAC, "box")])
@pytest.mark.parametrize("memory", OTHERS)
def test_other_memories(algorithm, memory, action, tmp_path):
    check_both_exports(make_model(algorithm, memory, action), tmp_path, ns=[1, 4], steps=150)


@pytest.mark.parametrize("memory", OTHERS)
def test_other_memories_in_torch(memory):
    algorithm, action = (SHMPPO, "discrete") if list(OTHERS).index(memory) % 2 else (SHMSAC, "box")
    model = make_model(algorithm, memory, action)
    check_steps(torch_step(export_torch(model).module()), model, n=3, steps=40)


DICT = spaces.Dict(
    {
        "z_first": spaces.Box(-5, 5, (3,), np.float32),
        "image": spaces.Box(0, 255, (3, 40, 40), np.uint8),
        "card": spaces.Discrete(4),
        "hand": spaces.MultiDiscrete([2, 3]),
        "flags": spaces.MultiBinary(3),
    }
)


def test_dict_observations_are_several_inputs(tmp_path):
    pytest.importorskip("onnxscript")
    model = make_model(SHMPPO, "neural-sine", "box", DICT, "MultiInputSHMPolicy", dict(norm_obs_keys=["z_first"]))
    env = model.get_env()
    env.reset()
    for _ in range(20):
        env.step([env.action_space.sample() for _ in range(2)])
    normalizer = model.get_vec_normalize_env()
    normalize = partial(VecNormalize.normalize_obs, normalizer)
    check_steps(torch_step(ExportedPolicy(model, normalizer)), model, 3, 20, DICT, normalize)
    export_onnx(model, tmp_path / "policy.onnx", normalizer)
    check_steps(onnx_step(tmp_path / "policy.onnx"), model, 3, 20, DICT, normalize)


SMALL_PICTURE = spaces.Box(0, 255, (3, 7, 7), np.uint8)


@pytest.mark.parametrize(
    "space", [DICT["image"], SMALL_PICTURE, DICT["card"], DICT["hand"], DICT["flags"], spaces.Box(-2, 2, (2, 3), np.float64)]
)
def test_observation_spaces(space):
    policy = "CnnSHMPolicy" if space in (DICT["image"], SMALL_PICTURE) else "MlpSHMPolicy"
    for algorithm in (SHMPPO, SHMSAC):
        model = make_model(algorithm, "random", "box", space, policy)
        check_steps(torch_step(ExportedPolicy(model)), model, 2, 20)


def test_small_pictures_of_numbers_as_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    kwargs = dict(normalize_images=False, features_extractor_kwargs=dict(n_values=200))
    env = make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=SMALL_PICTURE, action_space=BOX))
    model = SHMPPO("CnnSHMPolicy", env, seed=0, policy_kwargs=kwargs)
    export_onnx(model, tmp_path / "policy.onnx")
    check_steps(onnx_step(tmp_path / "policy.onnx"), model, 3, 20, SMALL_PICTURE)


def test_normalised_observations():
    space = spaces.Box(-2, 300, (3,), np.float32)
    model = make_model(SHMPPO, "random", "box", space, normalize=dict(clip_obs=1.3, epsilon=0.1))
    model.learn(256)
    normalizer = model.get_vec_normalize_env()
    with pytest.warns(UserWarning, match="trained on normalised observations"):
        bare = ExportedPolicy(model)
    policy = ExportedPolicy(model, normalizer)
    check_steps(torch_step(policy), model, 3, 30, space, normalizer.normalize_obs)
    check_steps(torch_step(bare), model, 3, 30, spaces.Box(-1, 1, (3,), np.float32))
    obs = normalizer.observation_space.sample()[None]
    start, state = th.ones(1, dtype=th.bool), policy.initial_state(1)
    assert not th.equal(policy(th.as_tensor(obs), state, start)[0], bare(th.as_tensor(obs), state, start)[0])
    other = make_model(SHMPPO, "random", "box", spaces.Box(-1, 1, (4,), np.float32))
    with pytest.raises(ValueError, match="vec_normalize must give what the policy takes"):
        ExportedPolicy(other, normalizer)
    with pytest.raises(ValueError, match="must be a VecNormalize or None"):
        ExportedPolicy(model, normalizer.venv)


def test_memory_of_the_actor_alone_or_of_the_critic():
    for kwargs in (dict(share_memory=True), dict(actor_memory="gru", shortcut_size=None)):
        env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=BOX))
        model = SHMSAC("MlpSHMPolicy", env, seed=0, policy_kwargs=kwargs)
        check_steps(torch_step(ExportedPolicy(model)), model, 3, 30)
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), seed=0, policy_kwargs=dict(share_memory=False))
    check_steps(torch_step(ExportedPolicy(model)), model, 3, 30)


class Contrary(RecurrentSHMPolicy):
    def _predict(self, *args, **kwargs):
        actions, state = super()._predict(*args, **kwargs)
        return 1 - actions, state


class Undecided(Memoryless):
    def forward(self, x, state, episode_start, context=None):
        return (x if x.sum() > 0 else -x), state


def test_what_cannot_be_exported():
    with pytest.raises(ValueError, match="must be an SHMPPO or an SHMSAC"):
        ExportedPolicy(PPO("MlpPolicy", "CartPole-v1"))
    with pytest.raises(ValueError, match="must be an SHMPPO or an SHMSAC"):
        ExportedPolicy(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Contrary does not act as its base class"):
        ExportedPolicy(SHMPPO(Contrary, make_vec_env(RandomEnv, 2, env_kwargs=dict(action_space=spaces.Discrete(2)))))
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), policy_kwargs=dict(memory=Undecided))
    with pytest.raises(ValueError, match="cannot trace Undecided"):
        export_torch(model)
