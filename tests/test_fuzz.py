"""Drawn constructions and first updates: each works, or is refused with an error that names the argument."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import MEMORIES
from sb3_shm.memory.base import state_tensors
from sb3_shm.shm_ppo.rollout import SHORTEST

# Each argument's legal and illegal values. Combinations that cannot work are in `conflict`.
SHARED: dict[str, tuple[list[Any], list[Any]]] = {
    "learning_rate": ([0, 1e-3, 1e-2, np.float32(1e-3), "schedule"], [-1e-3, "fast", np.nan, np.inf, True, None, [1e-3]]),
    "gamma": ([0, 0.9, 1, np.float32(0.5)], [-0.1, 1.1, "x", np.nan, None, True]),
    "seed": ([None, 0, 7, np.int64(3)], [-1, 1.5, "x", True, 2**32]),
    "stats_window_size": ([1, 50, np.int64(5)], [0, -1, 2.5, "x", None, True]),
    "verbose": ([0, np.int64(0)], [-1, "x", None, 0.5]),
    "device": (["cpu", "auto", th.device("cpu")], ["tpu", None, "cpu:x"]),
    "policy_kwargs": ([], ["memory", [1], 3]),
    "use_sde": ([False, True], [1, "x", None]),
    "sde_sample_freq": ([-1, 2, np.int64(3)], [-2, 0.5, "x", None, True]),
}
PPO: dict[str, tuple[list[Any], list[Any]]] = {
    **SHARED,
    "n_steps": ([4, 6, 8, np.int32(8)], [0, -4, 2.5, "8", True, [4]]),
    "seq_len": ([None, 1, 2, 4, np.int64(2)], [0, -1, 1.5, "x", True]),
    "batch_size": ([None, 4, 8, 12, np.int8(8)], [0, -1, 4.0, "x", False]),
    "n_epochs": ([1, 2, np.int64(2)], [0, -1, 1.5, "x", None, True]),
    "gae_lambda": ([0, 0.95, 1], [-0.1, 1.1, "x", np.nan, None]),
    "clip_range": ([0.1, np.float64(0.2), "schedule"], [0, -0.2, "x", np.nan, None, True]),
    "clip_range_vf": ([None, 0.2, "schedule"], [0, -0.2, "x", np.inf, True]),
    "normalize_advantage": ([True, False, np.bool_(True)], ["yes", 2, None]),
    "normalize_values": ([True, False], ["no", 2, None]),
    "ent_coef": ([0, 0.01, -0.01], ["auto", None, np.nan, True]),
    "vf_coef": ([0, 0.5], [-1, "x", None, np.inf]),
    "max_grad_norm": ([None, 0.5, 1e-3], [0, -1, "x", np.nan]),
    "target_kl": ([None, 0.01], [0, -1, "x"]),
    "kl_coef": ([0, 0.2], [-1, "x", None, np.nan]),
    "kl_target": ([None, 0.01], [0, -1, "x"]),
    "vf_loss_clip": ([None, 1.0], [0, -1, "x"]),
    "rollout_buffer_class": ([None], [dict]),
}
SAC: dict[str, tuple[list[Any], list[Any]]] = {
    **SHARED,
    "buffer_size": ([60, 200, np.int16(90)], [0, -1, 2.5, "x", None, True]),
    "learning_starts": ([0, 5, np.int64(3)], [-1, 2.5, "x", None, True]),
    "batch_size": ([1, 3, np.int64(2)], [0, -1, 2.5, "x", None, True]),
    "tau": ([0.005, 0, 1, np.float32(0.5)], [-0.1, 1.1, "x", None]),
    "train_freq": ([1, 3, [2, "step"], (1, "step"), np.int64(2)], [0, -1, "x", 0.5, (1, "epoch"), (0, "step"), None, True]),
    "gradient_steps": ([-1, 1, 2], [-2, 0.5, "x", None, True]),
    "seq_len": ([None, 1, 4, np.int64(3)], [0, -1, 2.5, "x", True]),
    "burn_in": ([None, 0, np.int64(0)], [-1, 1.5, "x", True]),
    "replay_context": ([True, False], ["x", 2, None]),
    "ent_coef": (["auto", "auto_0.5", 0, 0.1], ["aut", -1, None, "auto_0", True]),
    "target_update_interval": ([1, 2, np.int64(3)], [0, -1, 1.5, "x", None]),
    "target_entropy": (["auto", -1.0, 0.5], ["x", None, np.nan]),
    "action_noise": ([None, "normal"], ["x", 0.1]),
    "optimize_memory_usage": ([False], [True]),
    "n_steps": ([1, 3, np.int64(2)], [0, -1, 1.5, "x", None]),
    "use_sde_at_warmup": ([True, False], ["x", 2, None]),
    "replay_buffer_class": ([None], [dict]),
}
POLICY: dict[str, tuple[list[Any], list[Any]]] = {
    "memory": (sorted(MEMORIES), ["ntm", 3, None, "SHM"]),
    "memory_kwargs": ([], [dict(size=3), "x", [3]]),
    "encoder_arch": ([[], [5], (6, 4), [np.int64(3)]], [[0], [-1], 5, [2.5], "x", [True]]),
    "position": ([None, "sine"], ["cosine", 3, True]),
    "memory_layers": ([1, 2], [0, -1, 1.5, "x", None, True]),
    "share_memory": ([True, False], ["x", 2, None]),
    "normalize_images": ([True, False], ["x", 2, None]),
    "optimizer_kwargs": ([None, dict(eps=1e-4)], [dict(speed=1), "x"]),
    "net_arch": ([None, [], [5], [4, 3]], [[0], [-1], 5, "x", [2.5], dict(pi=[3], xf=[3])]),
    "lstm_hidden_size": ([], [3]),
}
PPO_POLICY = {
    **POLICY,
    "net_arch": ([*POLICY["net_arch"][0], dict(pi=[3], vf=[]), dict(vf=[2])], POLICY["net_arch"][1]),
    "ortho_init": ([True, False], ["x", 2, None]),
    "log_std_init": ([0, -1.5], ["x", None, np.nan, True]),
}
SAC_POLICY = {
    **POLICY,
    "net_arch": ([*POLICY["net_arch"][0], dict(pi=[3], qf=[])], [*POLICY["net_arch"][1], dict(pi=[3])]),
    "shortcut_size": ([None, 3], [0, -1, 2.5, "x", True]),
    "n_critics": ([1, 3, np.int64(2)], [0, -1, 1.5, "x", None, True]),
}
SIZE = ([1, 4, np.int64(3)], [0, -1, 2.5, "x", True])
FLAG = ([True, False], ["x", 2, None])
MATRIX = {"memory_size": SIZE, "output_size": ([None, *SIZE[0]], SIZE[1]), "layer_norm": FLAG, "shortcut": FLAG}
PAPER_SHM = {
    **MATRIX,
    "theta": (["random", "fixed", "neural"], ["free", None, 3]),
    "calibration": (["hadamard", "none", "random", "constant"], ["x", None]),
    "n_theta": ([1, 5, 256], [0, 257, 2.5, None]),
    "clip": ([None, 100.0, 0.5], [0, -1, "x", np.nan]),
    "backend": (["auto", "reference"], ["gpu", None]),
}
TRANSFORMER = {
    "hidden_size": ([4, 8], SIZE[1]),
    "output_size": ([None, 3], SIZE[1]),
    "n_layers": ([1, 2], SIZE[1]),
    "n_heads": ([1, 2, 4], SIZE[1]),
    "window": ([1, 5], SIZE[1]),
}
MEMORY_ARGUMENTS: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    "shm": {
        **PAPER_SHM,
        "keys": (["unit", "softmax", "sum"], ["x", None]),
        "read_gain": ([None, 1.0], [0, -1, "x"]),
        "previous_input": FLAG,
        "tied_start": FLAG,
        "calibration_scale": ([0, 0.1, 1], ["x", None, np.nan]),
    },
    "shm_paper": PAPER_SHM,
    "gru": {"hidden_size": SIZE, "num_layers": ([1, 2], SIZE[1])},
    "lstm": {"hidden_size": SIZE, "num_layers": ([1, 2], SIZE[1])},
    "mlp": {"output_size": SIZE},
    "frame_stack": {"n_frames": SIZE, "output_size": SIZE},
    "ffm": {
        "memory_size": SIZE,
        "n_contexts": SIZE,
        "output_size": ([None, 3], SIZE[1]),
        "min_period": ([1, 2.5], [0, -1, "x", None]),
        "max_period": ([8, 1024], [0, -1, "x", None]),
    },
    "lru": {"memory_size": SIZE, "output_size": ([None, 3], SIZE[1]), "max_phase": ([0.1, 6.28], ["x", None, -1])},
    "s6": {"memory_size": SIZE, "n_states": SIZE, "conv_size": SIZE, "step_rank": ([None, 1, 3], SIZE[1])},
    "linear_attention": MATRIX,
    "fwp": {**MATRIX, "feature_map": (["elu", "dpfp"], ["x", None])},
    "mlstm": MATRIX,
    "gpt": TRANSFORMER,
    "gtrxl": TRANSFORMER,
}
BOX = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATIONS = [
    (spaces.Box(-2, 2, (3,), np.float32), True),
    (spaces.Box(-2, 2, (2, 2), np.float64), True),
    (spaces.Box(-5, 5, (2,), np.int64), True),
    (spaces.Box(0, 255, (5, 4, 3), np.uint8), True),
    (spaces.Discrete(3), True),
    (spaces.MultiDiscrete([2, 3]), True),
    (spaces.MultiBinary(3), True),
    (spaces.MultiBinary([2, 2]), True),
    (spaces.Dict(a=BOX, b=spaces.Discrete(2)), True),
    (spaces.Box(-1, 1, (0,), np.float32), False),
    (spaces.Box(-1, 1, (), np.float32), False),
    (spaces.Text(3), False),
    (spaces.Graph(BOX, None), False),
    (spaces.Sequence(BOX), False),
    (spaces.OneOf([BOX, BOX]), False),
    (spaces.Tuple([BOX, BOX]), False),
    (spaces.Dict(a=spaces.Dict(b=BOX)), False),
    (spaces.Discrete(3, start=1), False),
]
ACTIONS = [
    (BOX, True, True),  # for SHMPPO, for SHMSAC
    (spaces.Box(-2, 3, (1,), np.float64), True, True),
    (spaces.Box(-1, 1, (2, 2), np.float32), True, True),
    (spaces.Discrete(3), True, True),
    (spaces.MultiDiscrete([2, 3]), True, False),
    (spaces.MultiBinary(2), True, False),
    (spaces.MultiBinary([2, 2]), False, False),
    (spaces.Box(-1, 1, (0,), np.float32), False, False),
    (spaces.Box(-np.inf, np.inf, (2,), np.float32), False, False),
    (spaces.Box(0, 3, (2,), np.int64), False, False),
    (spaces.Tuple([BOX, BOX]), False, False),
    (spaces.Text(3), False, False),
]


class Case:
    """What was drawn, and the names of the arguments that are illegal."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.kwargs: dict[str, Any] = {}
        self.policy_kwargs: dict[str, Any] = {}
        self.bad: set[str] = set()

    def __repr__(self) -> str:
        return (
            f"{self.algorithm}({self.observation_space}, {self.action_space}, n_envs={self.n_envs}, "
            f"{self.kwargs}, policy_kwargs={self.policy_kwargs}), illegal: {sorted(self.bad)}"
        )


@st.composite
def cases(draw: Any) -> Case:
    case = Case(draw(st.sampled_from(["SHMPPO", "SHMSAC"])))
    is_ppo = case.algorithm == "SHMPPO"
    n_bad = draw(st.sampled_from([0, 0, 1]))

    def fill(table: dict[str, tuple[list[Any], list[Any]]], into: dict[str, Any], most: int) -> None:
        for name in draw(st.lists(st.sampled_from(sorted(table)), max_size=most, unique=True)):
            legal, illegal = table[name]
            if len(case.bad) < n_bad and draw(st.booleans()) and illegal:
                into[name] = draw(st.sampled_from(illegal))
                case.bad.add(name)
            elif legal:
                into[name] = draw(st.sampled_from(legal))

    memory = draw(st.sampled_from(sorted(MEMORIES)))
    case.policy_kwargs = {"memory": memory, "encoder_arch": [6], "memory_kwargs": {}}
    fill(MEMORY_ARGUMENTS[memory], case.policy_kwargs["memory_kwargs"], 4)
    fill(PPO_POLICY if is_ppo else SAC_POLICY, case.policy_kwargs, 4)
    if "memory" not in case.bad and case.policy_kwargs["memory"] != memory:  # another one, with its own arguments
        case.policy_kwargs["memory"] = memory
    if is_ppo:
        case.kwargs = {"n_steps": 4, "n_epochs": 1}
    else:
        case.kwargs = {"seq_len": 2, "learning_starts": 4, "buffer_size": 60, "batch_size": 2, "train_freq": 4}
    fill(PPO if is_ppo else SAC, case.kwargs, 6)
    case.n_envs = draw(st.integers(1, 3))
    case.observation_space, case.action_space = OBSERVATIONS[0][0], ACTIONS[draw(st.sampled_from([0, 3]))][0]
    if draw(st.booleans()):
        case.observation_space, is_legal = draw(st.sampled_from(OBSERVATIONS[:9] if len(case.bad) == n_bad else OBSERVATIONS))
        case.bad |= set() if is_legal else {"observation space"}
    if draw(st.booleans()) and "observation space" not in case.bad:
        legal = [action for action in ACTIONS if action[1 if is_ppo else 2]]
        action = draw(st.sampled_from(legal if len(case.bad) >= n_bad else ACTIONS))
        case.action_space = action[0]
        case.bad |= set() if action[1 if is_ppo else 2] else {"action space"}
    case.as_yaml = draw(st.booleans())
    return case


def conflicts(case: Case) -> set[str]:
    """The arguments that are legal alone but cannot go together; the error names one of them."""
    given, names = case.kwargs, set()
    n_envs = 1 if case.bad else case.n_envs
    if case.algorithm == "SHMPPO" and case.bad.isdisjoint(("n_steps", "seq_len", "batch_size")):
        n_steps, seq_len, batch_size = given["n_steps"], given.get("seq_len"), given.get("batch_size")
        if seq_len is None:
            seq_len = n_steps // max(parts for parts in range(1, -(-4 // n_envs) + 1) if n_steps % parts == 0)
            common = math.gcd(seq_len, min(batch_size or seq_len, n_steps * n_envs))
            seq_len = common if common >= SHORTEST else seq_len
        if n_steps % seq_len:
            names |= {"seq_len"}
        elif batch_size is not None and min(batch_size, n_steps * n_envs) % seq_len:
            names |= {"batch_size"}
    legal_window = case.algorithm == "SHMSAC" and case.bad.isdisjoint(("n_steps", "seq_len", "batch_size", "buffer_size"))
    if legal_window and given.get("seq_len") is not None and given.get("n_steps", 1) > given["seq_len"]:
        names |= {"n_steps"}
    if given.get("kl_target") is not None and not given.get("kl_coef"):
        names |= {"kl_coef"}
    if given.get("use_sde") is True and not isinstance(case.action_space, spaces.Box):
        names |= {"use_sde"}
    if given.get("action_noise") == "normal" and not isinstance(case.action_space, spaces.Box):
        names |= {"action_noise"}
    return names


def through_yaml(values: dict[str, Any]) -> dict[str, Any]:
    """The same, those written to and read from YAML that it can hold."""
    read = {}
    for name, value in values.items():
        try:
            read[name] = yaml.safe_load(yaml.safe_dump(value))
        except yaml.representer.RepresenterError:
            read[name] = value
    return read


def build(case: Case) -> tuple[Any, dict[str, Any]]:
    """The model, and the arguments it was given."""
    kwargs, policy_kwargs = dict(case.kwargs), dict(case.policy_kwargs)
    if case.as_yaml:  # as from a file of hyperparameters
        kwargs, policy_kwargs = through_yaml(kwargs), through_yaml(policy_kwargs)
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(kwargs.get(name), str) and kwargs[name] == "schedule":
            kwargs[name] = lambda progress: 1e-3 + 0.01 * progress
    if isinstance(kwargs.get("action_noise"), str) and kwargs["action_noise"] == "normal":
        shape = case.action_space.shape
        kwargs["action_noise"] = NormalActionNoise(np.zeros(shape), 0.1 * np.ones(shape)) if shape else NormalActionNoise(0, 1)
    kwargs.setdefault("policy_kwargs", policy_kwargs)
    policy = "MultiInputSHMPolicy" if isinstance(case.observation_space, spaces.Dict) else "MlpSHMPolicy"
    env_kwargs = dict(observation_space=case.observation_space, action_space=case.action_space, longest=4)
    # A single environment is not yet in a VecEnv, of which Stable-Baselines3 can make few of the illegal spaces
    env = (
        RandomEnv(**env_kwargs)
        if case.n_envs == 1 or case.bad
        else make_vec_env(RandomEnv, case.n_envs, env_kwargs=env_kwargs)
    )
    return {"SHMPPO": SHMPPO, "SHMSAC": SHMSAC}[case.algorithm](policy, env, **kwargs), kwargs


def check(case: Case) -> bool:
    """:return: whether it was accepted"""
    illegal = case.bad | conflicts(case)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Each epoch ends with a smaller minibatch|batch_size = .* is more than a rollout has"
            )
            model, kwargs = build(case)
    except (ValueError, TypeError) as error:
        assert illegal, f"refused, though all is legal: {error}"
        text = f"{type(error).__name__}: {error}"
        named = {"optimizer_kwargs": "speed", "memory_kwargs": "size", "use_sde": "gSDE"}
        assert any(name in text or named.get(name, name) in text for name in illegal), text
        return False
    assert not illegal, "accepted"
    # No argument is ignored
    for name, value in kwargs.items():
        if name in (
            "device",
            "policy_kwargs",
            "train_freq",
            "action_noise",
            "target_entropy",
            "replay_buffer_class",
        ):
            continue
        kept = getattr(model, name, value) if name != "stats_window_size" else model._stats_window_size
        assert kept == value or callable(kept), f"{name}: {kept}"
    trunk = model.policy.pi_trunk
    n_layers = case.policy_kwargs.get("memory_layers", 1)
    memories = [trunk.memory] if n_layers == 1 else list(trunk.memory.layers)
    assert [type(memory) for memory in memories] == [MEMORIES[case.policy_kwargs["memory"]]] * n_layers
    assert (trunk.position is not None) == (case.policy_kwargs.get("position") == "sine")
    for name, value in case.policy_kwargs["memory_kwargs"].items():
        if isinstance(getattr(memories[0], name, None), (int, float, str)) and value is not None:
            assert all(getattr(memory, name) == value for memory in memories), name
    # The first updates
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).clone()
    model.learn(1 if case.algorithm == "SHMPPO" else 8 * case.n_envs)
    after = th.nn.utils.parameters_to_vector(model.policy.parameters())
    assert model._n_updates > 0
    assert th.isfinite(after).all()
    is_still = case.kwargs.get("target_kl") is not None or case.kwargs.get("learning_rate") == 0
    assert is_still or not th.equal(before, after)
    obs = model.env.reset()
    actions, state = model.predict(obs, deterministic=True)
    assert all(case.action_space.contains(action) for action in actions), actions
    assert all(th.isfinite(tensor).all() for tensor in state_tensors(state))
    return True


FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)


@settings(max_examples=150, **FUZZ)
@given(cases())
def test_constructions(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=10_000, **FUZZ)
@given(cases())
def test_ten_thousand_constructions(case):
    check(case)
