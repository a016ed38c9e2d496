"""Folders that a stranger made or broke: each is refused with a ValueError, or is a model that acts; nothing in it is run."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sharing import BOX, actions, make_model, nothing_unpickled
from small_envs import Memoryless, RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.sharing.__main__ import load_into_logs
from sb3_shm.sharing.folder import check_env_kwargs, load_model_folder, read_config
from sb3_shm.sharing.manifest import read_manifest
from sb3_shm.sharing.safe_format import load_folder, save_folder
from sb3_shm.sharing.statistics import load_vec_normalize

safetensors_numpy = pytest.importorskip("safetensors.numpy")
yaml = pytest.importorskip("yaml")

SMALL = dict(encoder_arch=[8], net_arch=[5], memory_kwargs=dict(memory_size=4))
_started: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn") or (event, arguments[:1]) == (
        "import",
        ("this",),
    ):
        _started.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    observations = spaces.Dict({"a": BOX, "b": spaces.MultiDiscrete([2, 3])})
    gpt = dict(memory="gpt", position="sine", share_memory=False, memory_kwargs=dict(hidden_size=8, window=5))
    env = VecNormalize(make_vec_env(RandomEnv, 2))
    dict_env = VecNormalize(make_vec_env(RandomEnv, 2, env_kwargs=dict(observation_space=observations)), norm_obs_keys=["a"])
    box_env = make_vec_env(RandomEnv, 2, env_kwargs=dict(action_space=BOX))
    models = [
        SHMPPO("MlpSHMPolicy", env, n_steps=16, policy_kwargs=SMALL, learning_rate=LinearSchedule(1e-3, 1e-4, 0.5)),
        SHMPPO("MultiInputSHMPolicy", dict_env, n_steps=16, policy_kwargs=gpt),
        SHMSAC("MlpSHMPolicy", box_env, train_freq=(2, "step"), policy_kwargs=dict(SMALL, memory="shm", actor_memory="gru")),
    ]
    for normalised in (env, dict_env):
        normalised.reset()
        for _ in range(20):
            normalised.step(np.zeros(2, int))
    result = []
    for i, model in enumerate(models):
        result.append(tmp_path_factory.mktemp("folder") / str(i))
        result[-1].mkdir()
        environment = dict(id="WindTrain50-v0", kwargs=dict(split="eval", n_tasks=10))
        save_folder(model, result[-1], environment, model.get_vec_normalize_env())
        (result[-1] / "config.yml").write_text("n_envs: 2\nnormalize: true\npolicy: MlpSHMPolicy\n")
    return result


def changed(folder: Path, tmp_path: Path, **changes: object) -> Path:
    """:return: a copy of the folder with other entries in its manifest"""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    manifest = json.loads((folder / "sb3_shm.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = manifest
        for name in parents:
            inner = inner[name]
        inner[last] = value
    (copy / "sb3_shm.json").write_text(json.dumps(manifest))
    return copy


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(algorithm=["shm_ppo"]), "Unknown algorithm"),
        (dict(policy=["MlpSHMPolicy"]), "policy in sb3_shm.json must be a str or dict"),
        (dict(policy=dict(__class__=["os", "system"])), "__class__ in sb3_shm.json must be a name"),
        (dict(policy=dict(__class__="torch.nn.ReLU")), "policy must be|must be a RecurrentSHMPolicy"),
        (dict(policy_kwargs=None), "policy_kwargs in sb3_shm.json must be a dict"),
        (dict(policy_kwargs__net_arch=nested(900)), "sb3_shm.json.*nested more than 32 deep"),
        (dict(arguments__learning_rate=dict(linear=["a", 0, 1])), "each number of learning_rate"),
        (dict(arguments__learning_rate=dict(cosine=[1])), "arguments in sb3_shm.json .* learning_rate must be a number or"),
        (dict(arguments__n_steps=10**9, arguments__seq_len=7), "n_steps must be an integer, at least 1 and at most 1048576"),
        (dict(arguments__stats_window_size="many"), "stats_window_size"),
        (dict(arguments__normalize_advantage="no"), "normalize_advantage must be true or false"),
        (dict(arguments__seed=-1), "seed must be an integer, at least 0"),
        (dict(n_envs=0), "n_envs in sb3_shm.json must be an integer, at least 1"),
        (dict(n_envs=2.0), "n_envs in sb3_shm.json must be a int"),
        (dict(n_envs=10**12), "n_envs in sb3_shm.json must be an integer, at least 1 and at most 65536"),
        (dict(num_timesteps=-5), "num_timesteps"),
        (dict(torch_variables=[]), "torch_variables in sb3_shm.json must be a dict"),
        (dict(observation_space__shape=[10**5, 10**5]), "10000000000 numbers, more than"),
        (dict(observation_space__shape=[-1]), "observation_space in sb3_shm.json .* no space"),
        (dict(observation_space__dtype="O"), "dtype must be one of"),
        (dict(observation_space__low="nan"), "a bound is no number"),
        (dict(observation_space=dict(type="Discrete", n=10**30, start=0)), "must be a number of 64 bits"),
        (dict(vec_normalize=[1]), "vec_normalize in sb3_shm.json .* must be a mapping"),
        (dict(vec_normalize__clip_obs=-1), "clip_obs must be"),
        (dict(vec_normalize__norm_obs="yes"), "norm_obs must be true or false"),
    ],
)
def test_what_a_manifest_may_not_say(folders, tmp_path, changes, words):
    copy = changed(folders[0], tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        load_folder(copy)
        load_vec_normalize(copy)


def test_files_that_are_none(folders, tmp_path):
    copy = changed(folders[0], tmp_path)
    for text, words in (
        ("[" * 100_000, "sb3_shm.json is damaged"),
        ('{"library": "sb3-shm", "format": 2, "a": NaN}', "must be a number of 64 bits"),
        ('{"library": "sb3-shm", "format": true}', "format must be a whole number"),
        ('{"library": "sb3-shm", "format": 2, "a": ' + "9" * 5000 + "}", "sb3_shm.json is damaged"),
        (" " * (2**24 + 1), "it has 16777217 bytes"),
        ("[]", "must be a mapping"),
    ):
        (copy / "sb3_shm.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_manifest(copy)
    for name in ("sb3_shm.json", "model.safetensors", "vec_normalize.safetensors", "config.yml"):
        copy = changed(folders[0], tmp_path)
        (copy / name).unlink()
        (copy / name).mkdir()
        with pytest.raises(ValueError, match=name):
            load_folder(copy)
            load_vec_normalize(copy)
            read_config(copy / name)
        shutil.rmtree(copy)
    with pytest.raises(ValueError, match=r"sb3_shm\.json cannot be read"):
        read_manifest(tmp_path / ("x" * 5000))
    with pytest.raises(ValueError, match=r"There is no file config\.yml"):
        read_config(tmp_path / "config.yml")
    (tmp_path / "deep.yml").write_text("a: " + "[" * 2000 + "]" * 2000)
    with pytest.raises(ValueError, match=r"deep\.yml must be YAML of plain values"):
        read_config(tmp_path / "deep.yml")
    (tmp_path / "large.yml").write_text("a: 1\n" + "# nothing\n" * 10_000)
    with pytest.raises(ValueError, match=r"large\.yml must have no more than 65536 bytes"):
        read_config(tmp_path / "large.yml")


@pytest.mark.posix
def test_configurations_without_an_end(tmp_path):
    os.symlink("/dev/zero", tmp_path / "zero.yml")
    os.mkfifo(tmp_path / "pipe.yml")
    for name in ("zero.yml", "pipe.yml"):
        with pytest.raises(ValueError, match=f"There is no file {name}"):
            read_config(tmp_path / name)


@pytest.mark.parametrize("name", ["nan", "inf", "rows", "std", "shape", "extra", "less"])
def test_what_weights_may_not_be(folders, tmp_path, name):
    copy = changed(folders[0], tmp_path)
    path = copy / "model.safetensors"
    tensors = safetensors_numpy.load_file(str(path))
    rows = "pi_trunk.memory.deterministic_rows"
    rows = next(key for key in tensors if key.endswith("trunk.memory.deterministic_rows"))
    bias = "value_net.bias"
    changes, words = {
        "nan": ({bias: np.full(1, np.nan, np.float32)}, "value_net.bias is not finite"),
        "inf": ({bias: np.full(1, 1e300)}, "value_net.bias is not finite"),  # as float32
        "rows": ({rows: np.full(8192, 200, np.uint8)}, "deterministic_rows must be below n_theta = 128"),
        "std": ({"value_statistics": np.array([0, 0, 0, 0, -1], np.float32)}, "standard deviation above 0"),
        "shape": ({bias: np.zeros(2, np.float32)}, r"value_net.bias must have the shape \(1,\), got \(2,\)"),
        "extra": ({"bias": np.zeros(1)}, "bias is no weight of this policy"),
        "less": ({bias: None}, r"lacks \['value_net.bias'\]"),
    }[name]
    tensors = {key: value for key, value in (tensors | changes).items() if value is not None}
    safetensors_numpy.save_file(tensors, str(path))
    with pytest.raises(ValueError, match=rf"model.safetensors is .*{words}"):
        load_folder(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("obs.var", -1), ("obs.mean", np.nan), ("returns.count", np.inf), ("returns.var", -1), ("obs.mean", None)],
)
def test_a_garbage_normaliser(folders, tmp_path, name, value):
    copy = changed(folders[0], tmp_path)
    path = copy / "vec_normalize.safetensors"
    arrays = safetensors_numpy.load_file(str(path))
    arrays[name] = np.zeros(7) if value is None else np.full_like(arrays[name], value)
    safetensors_numpy.save_file(arrays, str(path))
    with pytest.raises(ValueError, match=r"vec_normalize.safetensors is"):
        load_vec_normalize(copy)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, dict(policy_kwargs__memory_kwargs=dict(memory_size=10**6))),
        (0, dict(policy_kwargs__net_arch=[10**6, 10**6])),
        (0, dict(policy_kwargs__net_arch=[1] * 100_000)),
        (0, dict(observation_space=dict(type="Discrete", n=10**12, start=0))),
        (0, dict(arguments__n_steps=2**20, arguments__seq_len=1, arguments__batch_size=None, n_envs=2**16)),
        (1, dict(policy_kwargs__memory_kwargs=dict(hidden_size=8, window=10**11))),
        (1, dict(policy_kwargs__memory_kwargs=dict(hidden_size=8, window=5, n_layers=10**9))),
        (2, dict(policy_kwargs__n_critics=10**9)),
    ],
)
def test_sizes_are_compared_before_anything_is_allocated(folders, tmp_path, number, changes):
    import resource

    copy = changed(folders[number], tmp_path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(ValueError, match=r"model\.safetensors|a rollout of n_steps"):
        load_folder(copy)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 100_000, "kB"
    assert after.ru_utime - before.ru_utime < 5


class NeedsNumbers(Memoryless):
    """Of a user: cannot be made of tensors without numbers."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size)
        self.scale = th.ones(1).item()


def test_a_class_of_the_user_that_needs_numbers(tmp_path):
    model = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), n_steps=16, policy_kwargs=dict(memory=NeedsNumbers))
    save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    np.testing.assert_array_equal(actions(load_folder(tmp_path, classes=[NeedsNumbers])), actions(model))


def test_a_compiled_policy_is_shared_like_any_other(tmp_path):
    model = make_model(policy_kwargs=dict(SMALL, share_memory=False))
    expected = actions(model)
    model.policy = th.compile(model.policy, backend="eager")
    save_folder(model, tmp_path, dict(id="X", kwargs={}), None)
    np.testing.assert_array_equal(actions(load_folder(tmp_path)), expected)


# What an environment may be given from a file


def test_a_task_from_elsewhere_is_not_imported():
    for task in (
        "this:d",
        "sb3_shm.envs.batched:load_env_creator",
        "sb3_shm.envs.nothing:Task",
        "sb3_shm.envs.meta.tasks:no",
        3,
        None,
    ):
        with pytest.raises(ValueError, match=r"is no task of sb3_shm\.envs"):
            gym.make("WindTrain50-v0", task=task)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("WindTrain50-v0", dict(task="this:d"), r"no argument of its own \['task'\] \(args.yml\): if you trust"),
        ("WindTrain50-v0", dict(n_envs=4), r"no argument of its own \['n_envs'\]"),
        ("WindTrain50-v0", dict(split="this:d"), "split of WindTrain50-v0 in args.yml looks like something to import"),
        ("WindTrain50-v0", dict(split=[{"a": ["this:d"]}]), "looks like something to import"),
        ("WindTrain50-v0", dict(split=len), "must be a plain value"),
        ("CartPoleNoVel-v0", dict(kwargs=1), "no argument of its own"),
        ("GymV21Environment-v0", dict(env_id="this:Env-v0"), "no argument of its own|something to import"),
        ("Nowhere-v0", dict(a=1), "Unknown environment"),
        ("WindTrain50-v0", ["task"], "must be a mapping"),
    ],
)
def test_arguments_of_environments_that_are_refused(env_id, kwargs, words):
    with pytest.raises(ValueError, match=words):
        check_env_kwargs(env_id, kwargs, "args.yml")
    assert "this" not in sys.modules


def test_arguments_of_environments_that_are_taken():
    for env_id, kwargs in (
        ("WindTrain50-v0", dict(split="eval", n_tasks=150, render_mode="rgb_array")),
        ("CartPoleNoVel-v0", dict(sutton_barto_reward=True)),  # of the class it derives from
        ("CartPole-v1", dict(render_mode=None)),
        ("FrozenLake-v1", dict(desc=["SF", "FG"], is_slippery=False)),
        ("Nowhere-v0", {}),
    ):
        check_env_kwargs(env_id, kwargs, "args.yml")
        if kwargs:
            gym.make(env_id, **kwargs)


def test_a_shared_model_brings_no_task(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_shm.sharing.__main__.download", lambda repo_id, *args: Path(repo_id))
    taken = load_into_logs(str(folders[0]), tmp_path / "logs")
    assert read_config(taken / "WindTrain50-v0" / "args.yml") == {"env_kwargs": dict(split="eval", n_tasks=10)}
    bad = changed(folders[0], tmp_path, environment__kwargs=dict(task="this:d"))
    with pytest.raises(ValueError, match=r"no argument of its own \['task'\] \(sb3_shm.json\)"):
        load_into_logs(str(bad), tmp_path / "logs")
    long = changed(folders[0], tmp_path, environment__id="x" * 5000)
    with pytest.raises(ValueError, match=r"env_id must be .* of up to 200 bytes"):
        load_into_logs(str(long), tmp_path / "logs")


# The commands


@pytest.fixture
def stranger(tmp_path, monkeypatch, zoo):
    """A folder as rl-zoo3's train leaves it; returns the folder with its YAML."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs" / "shm_ppo" / "WindTrain50-v0_1" / "WindTrain50-v0"
    folder.mkdir(parents=True)
    model = SHMPPO("MlpSHMPolicy", make_vec_env("WindTrain50-v0", 2), n_steps=16, policy_kwargs=SMALL)
    model.save(folder.parent / "WindTrain50-v0.zip")
    (folder / "args.yml").write_text("env: WindTrain50-v0\nenv_kwargs: null\n")
    (folder / "config.yml").write_text("normalize: false\nn_timesteps: 100\n")
    return folder


def run(monkeypatch, *arguments: str) -> None:
    from sb3_shm.zoo import __main__ as command_line

    monkeypatch.setattr(sys, "argv", ["sb3-shm", *arguments])
    command_line.main()


ATTACKS = [
    ("args.yml", "env_kwargs: !!python/object/apply:os.system ['touch EXECUTED']\n", "args.yml"),
    ("args.yml", "env: WindTrain50-v0\nenv_kwargs: {task: 'this:d'}\n", "no argument of its own"),
    ("args.yml", "- a list\n", "must be a mapping"),
    ("config.yml", "normalize: !!python/object/apply:os.system ['touch EXECUTED']\n", "config.yml"),
    ("config.yml", "normalize: __import__('os').system('touch EXECUTED')\n", "normalize must be"),
    ("config.yml", "normalize: [1]\n", "normalize must be"),
    ("config.yml", "env_wrapper: this.d\n", "env_wrapper must be of"),
    ("config.yml", "env_wrapper: sb3_shm.envs.wrappers.gym\n", "env_wrapper must be of"),
    ("config.yml", "env_wrapper: [{this.d: {a: 1}}]\n", "env_wrapper must be of"),
    ("config.yml", "vec_env_wrapper: [rl_zoo3.wrappers.HistoryWrapper, this.d]\n", "vec_env_wrapper must be of"),
    ("config.yml", "env_kwargs: {task: 'this:d'}\n", "no argument of its own"),
]


@pytest.mark.parametrize("command", ["enjoy", "record_video"])
def test_folders_copied_by_hand_run_nothing(stranger, monkeypatch, command):
    arguments = [command, "--env", "WindTrain50-v0", "-f", "logs", "-n", "3"]
    arguments += ["--no-render"] if command == "enjoy" else ["-o", "films"]
    for name, text, words in ATTACKS[: None if command == "enjoy" else -1]:  # the last is read by enjoy alone
        _started.clear()
        before = (stranger / name).read_text()
        (stranger / name).write_text(text)
        with pytest.raises(SystemExit, match=words) as stop:
            run(monkeypatch, *arguments)
        assert "--trust" in str(stop.value.code)
        assert not Path("EXECUTED").exists() and "this" not in sys.modules and not _started, text
        (stranger / name).write_text(before)
    for text in ("normalize: false\n", "env_wrapper: rl_zoo3.wrappers.DelayedRewardWrapper\n"):
        (stranger / "config.yml").write_text(text)
        run(monkeypatch, *arguments)
    (stranger / "args.yml").write_text(ATTACKS[0][1])
    with suppress(AttributeError):  # record_video puts render_mode into what os.system returned
        run(monkeypatch, *arguments, "--trust")
    assert Path("EXECUTED").exists(), "--trust is what rl-zoo3 does"


def test_benchmark_and_films_of_a_training(stranger, monkeypatch, capsys):
    commands: list[list[str]] = []
    Path("results").mkdir()
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 1)
    (stranger / "args.yml").write_text(ATTACKS[0][1])
    benchmark = ["benchmark", "--log-dir", "logs", "--no-hub", "--benchmark-dir", "results"]
    with pytest.raises(SystemExit, match=r"args\.yml"):
        run(monkeypatch, *benchmark)
    assert not Path("EXECUTED").exists() and not commands
    (stranger / "args.yml").write_text("env: WindTrain50-v0\n")
    for more in ([], ["--trust"]):
        with suppress(SystemExit, ValueError, KeyError, IndexError):  # nothing was evaluated
            run(monkeypatch, *benchmark, *more)
        assert ("--trust" in commands.pop()) == bool(more)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(AssertionError, match="Failed to record"):
        run(monkeypatch, "record_training", "--env", "WindTrain50-v0", "-f", "logs", "--trust")
    assert commands[-1][-1] == "--trust"


# Anything

GARBAGE = [
    None, True, 0, -1, 3, 10**6, 10**12, 2**63, 10**30, 0.5, -1e-300, 1e308, float("nan"), float("inf"), "", "nan", "x" * 5000,
    "this:d", "torch.nn.ReLU", [], {}, [[]], ["a", 1], nested(40), "DEEP", {"__class__": "os.system"}, {"__class__": []},
    {"__class__": "torch.optim.Adam"}, {"linear": [1, 2]}, {"linear": [1e-3, 0.0, 1.0]}, [10**6], [1] * 300,
]  # fmt: skip
SHAPES = [(), (1,), (3,), (0,), (2, 2), (8, 8)]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """:return: the path of everything in a manifest"""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutate(manifest: object, draw: st.DrawFn) -> object:
    manifest = deepcopy(manifest)
    path = draw(st.sampled_from(places(manifest)[1:] or [()]))
    if not path:
        return manifest
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    how = draw(st.sampled_from(["garbage", "garbage", "garbage", "delete", "nest", "double", "rename", "other"]))
    old = parent[path[-1]]
    if how == "delete":
        del parent[path[-1]]
    elif how == "rename" and isinstance(parent, dict):
        parent["colour"] = parent.pop(path[-1])
    elif how == "other":  # what stands elsewhere in the manifest
        other: object = manifest
        for key in draw(st.sampled_from(places(manifest))):
            other = other[key]
        parent[path[-1]] = deepcopy(other)
    else:
        new = {"nest": [old], "double": [old, old]}
        parent[path[-1]] = deepcopy(new[how] if how in new else draw(st.sampled_from(GARBAGE)))
    return manifest


def mutate_tensors(path: Path, draw: st.DrawFn) -> None:
    if draw(st.integers(0, 3)) == 0:  # bytes, of the header most of all
        content = bytearray(path.read_bytes())
        place = draw(st.integers(0, min(len(content), draw(st.sampled_from([8, 400, 10**6]))) - 1))
        content[place] = draw(st.integers(0, 255))
        path.write_bytes(content[: draw(st.sampled_from([len(content), place]))])
        return
    tensors = safetensors_numpy.load_file(str(path))
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(["delete", "number", "shape", "type", "extra"]))
    if how == "delete":
        del tensors[name]
    elif how == "number":
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            number = np.array(draw(st.sampled_from([np.nan, np.inf, -1, 0, 1e30, 255]))).astype(tensors[name].dtype)
        tensors[name] = np.where(np.arange(tensors[name].size).reshape(tensors[name].shape) < 3, number, tensors[name])
    elif how == "shape":
        tensors[name] = np.ones(draw(st.sampled_from(SHAPES)), tensors[name].dtype)
    elif how == "type":
        with np.errstate(all="ignore"):
            tensors[name] = tensors[name].astype(draw(st.sampled_from([np.float64, np.float16, np.int64, np.uint8, bool])))
    else:
        tensors["colour"] = np.ones(3)
    safetensors_numpy.save_file(tensors, str(path))


COUNTS = {"refused": 0, "works": 0}


def check_any_folder(folder: Path, draw: st.DrawFn) -> None:
    """Change a folder, and see that it is refused or works."""
    work = folder.with_name(f"{folder.name}-fuzzed")
    shutil.copytree(folder, work, dirs_exist_ok=True)
    manifest = json.loads((folder / "sb3_shm.json").read_text())
    for _ in range(draw(st.integers(0, 3))):
        manifest = mutate(manifest, draw)
    text = json.dumps(manifest).replace('"DEEP"', "[" * 950 + "]" * 950)
    if draw(st.integers(0, 15)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    (work / "sb3_shm.json").write_text(text)
    for path in sorted(work.glob("*.safetensors")):
        if draw(st.integers(0, 3)) == 0:
            mutate_tensors(path, draw)
    _started.clear()
    try:
        with nothing_unpickled(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load_model_folder(work, device="cpu")
            vec_normalize = load_vec_normalize(work)
            saved = read_manifest(work).get("environment")
            if isinstance(saved, dict):
                check_env_kwargs(str(saved.get("id")), saved.get("kwargs"), "sb3_shm.json")
    except ValueError as error:
        assert 10 < len(str(error)) < 5000, "a message to read"
        COUNTS["refused"] += 1
    else:
        obs: object = model.observation_space.sample()
        if vec_normalize is not None and vec_normalize.observation_space == model.observation_space:
            normalised = vec_normalize.normalize_obs(obs)
            assert all(
                np.isfinite(part).all() for part in (normalised.values() if isinstance(normalised, dict) else [normalised])
            )
        state = None
        for step in range(3):
            action, state = model.predict(obs, state, np.array([step == 0]))
            assert model.action_space.contains(np.asarray(action, model.action_space.dtype).reshape(model.action_space.shape))
        COUNTS["works"] += 1
    finally:
        shutil.rmtree(work)
    assert not _started, _started


FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None)


@settings(max_examples=120, **FUZZ)
@given(data=st.data())
def test_any_folder(folders, data):
    check_any_folder(data.draw(st.sampled_from(folders)), data.draw)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
@settings(max_examples=1500, phases=[Phase.generate], **FUZZ)
@given(data=st.data())
def test_very_many_folders(folders, number, data):
    check_any_folder(folders[number], data.draw)


@pytest.mark.slow
@pytest.mark.posix
def test_some_of_very_many_folders_work():  # after the one before, whose figures it prints
    import resource

    print(f"folders: {COUNTS}, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000} MB")
    assert COUNTS["works"] > 100 and COUNTS["refused"] > 100


YAML_SCALARS = [
    "1", "-5", "1e400", ".nan", "9" * 5000, "true", "~", "text", "'quoted'", "2001-99-99", "0x_", "!!binary x", "!!int x", "[",
    "*a",     "!!python/object/apply:os.system ['touch EXECUTED']", "!!python/name:os.system", "!!python/module:this",
    "!!python/object/new:os.system [a]", "!!python/object:this.d {}", "!!python/tuple [1, 2]", "!!python/tuple x",
    "!!python/object/apply:collections.OrderedDict [[[a, 1]]]", "!!python/object/apply:collections.OrderedDict [1]",
    "!!python/object/apply:collections.OrderedDict []", "!!python/complex 1j", "!!python/long 3", "!!set {a, b}",
    "__import__('os').system('touch EXECUTED')", "dict(norm_obs=True)", "\"{'norm_obs': True}\"", "this.d",
    "[" * 900 + "]" * 900,
]  # fmt: skip
YAML_KEYS = ["env_kwargs", "normalize", "env_wrapper", "vec_env_wrapper", "env", "n_envs", "<<", "? [a]", "&a x", "'quoted'"]


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_yaml(tmp_path, monkeypatch, zoo, examples):
    """What YAML reads is plain, for us and for rl-zoo3's commands; the rest is refused."""
    from rl_zoo3.utils import get_saved_hyperparams

    from sb3_shm.zoo.folders import reading_safely

    monkeypatch.chdir(tmp_path)
    value = st.recursive(
        st.sampled_from(YAML_SCALARS),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.dictionaries(st.sampled_from(YAML_KEYS), inner, max_size=3).map(
                lambda items: "{" + ", ".join(f"{key}: {item}" for key, item in items.items()) + "}"
            )
        ),
        max_leaves=5,
    )
    lines = st.lists(st.tuples(st.sampled_from(YAML_KEYS), value).map(": ".join), max_size=4).map("\n".join)
    path = tmp_path / "config.yml"
    plain = (type(None), bool, int, float, str, bytes, list, dict, set, tuple)

    @settings(max_examples=examples, **FUZZ)
    @given(text=lines | value | st.text(max_size=40))
    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        _started.clear()
        try:
            assert isinstance(read_config(path), dict)
        except ValueError as error:
            assert "config.yml" in str(error)
        try:
            with reading_safely():
                hyperparams, _ = get_saved_hyperparams(str(tmp_path), test_mode=True)
            assert all(isinstance(item, plain) or "date" in type(item).__name__ for item in hyperparams.values())
        except SystemExit as error:
            assert "config.yml" in str(error) and ("--trust" in str(error) or "is damaged" in str(error))
        assert not _started and not Path("EXECUTED").exists() and "this" not in sys.modules

    check()
