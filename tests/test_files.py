"""What is written is there as a whole or not at all."""

import errno
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.files import folder_atomically, save_figure, save_vec_normalize, write_atomically
from sb3_shm.sharing.export import export_onnx, export_torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def full_disk(size: int = 1000):
    """No file can grow beyond ``size`` bytes: what a full disk is to a program, but for the number of the error."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def ppo() -> SHMPPO:
    return SHMPPO("MlpSHMPolicy", "CartPole-v1", n_steps=8, policy_kwargs=dict(memory="gru"), device="cpu")


@pytest.fixture(scope="module")
def sac() -> SHMSAC:
    model = SHMSAC("MlpSHMPolicy", "CartPole-v1", buffer_size=1000, seq_len=8, policy_kwargs=dict(memory="gru"), device="cpu")
    return model.learn(20)


def test_no_folder_to_write_into(tmp_path, ppo):
    """No word of a file with .part behind its name, which nobody asked for."""
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere, x\.pt2 cannot be written into it"):
        export_torch(ppo, tmp_path / "nowhere" / "x.pt2")
    assert not list(tmp_path.iterdir())


def figure() -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    return figure


WRITERS = {
    "ppo.zip": lambda ppo, sac, path: ppo.save(path),
    "sac.zip": lambda ppo, sac, path: sac.save(str(path)),
    "tape.pkl": lambda ppo, sac, path: sac.save_replay_buffer(path),
    "text.json": lambda ppo, sac, path: write_atomically(path, "x" * 10_000),
    "picture.png": lambda ppo, sac, path: save_figure(figure(), path),
    "picture.svg": lambda ppo, sac, path: save_figure(figure(), path),
    "vecnormalize.pkl": lambda ppo, sac, path: save_vec_normalize(VecNormalize(ppo.get_env()), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_leaves_the_old_file(tmp_path, ppo, sac, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError) as error:
        WRITERS[name](ppo, sac, path)
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]
    # What a killed process left is no obstacle, and does not stay
    Path(f"{path}.part").write_bytes(b"left" * 10**6)
    WRITERS[name](ppo, sac, path)
    assert 1000 < path.stat().st_size < 4 * 10**6 and os.listdir(tmp_path) == [name]


def test_exports_on_a_full_disk(tmp_path, ppo, monkeypatch):
    """torch's exporters take long: here their files are written without them."""
    program = SimpleNamespace(example_inputs=[(None, ())])
    monkeypatch.setattr(th.export, "export", lambda *args, **kwargs: program)
    monkeypatch.setattr(th.export, "save", lambda program, file: file.write(bytes(5000)))
    monkeypatch.setattr(th.onnx, "export", lambda program, args, path, **kwargs: Path(path).write_bytes(bytes(5000)))
    for export in (export_torch, export_onnx):
        path = tmp_path / "policy"
        path.write_bytes(b"old")
        with full_disk(), pytest.raises(OSError):
            export(ppo, path)
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["policy"]
        export(ppo, path)
        assert path.read_bytes() == bytes(5000) and os.listdir(tmp_path) == ["policy"]


def test_save_goes_where_stable_baselines3_would(tmp_path, ppo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ppo.num_timesteps = 7
    with pytest.warns(UserWarning, match="does not exist. Will create it"):
        ppo.save("new/folder/model")
    ppo.save(tmp_path / "model.v1")
    (tmp_path / "taken.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead to"):
        ppo.save("taken")
    with open("open", "wb") as file:
        ppo.save(file)
        assert not file.closed
    stream = BytesIO()
    ppo.save(stream)
    stream.seek(0)
    for path in ("new/folder/model.zip", "model.v1", "taken.zip_2", "open", stream):
        assert SHMPPO.load(path, device="cpu").num_timesteps == 7
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.posix
def test_links_devices_and_modes_stay(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o600
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    read: list[str] = []
    reader.start()
    write_atomically(tmp_path / "pipe", "through")
    reader.join(10)
    assert read == ["through"] and (tmp_path / "pipe").is_fifo()


def test_many_write_one_file(tmp_path):
    """Each reader sees what one of the writers wrote, and none of these fails."""
    path = tmp_path / "file"
    errors = []

    def write(letter: str) -> None:
        try:
            for length in range(1000, 1100):
                write_atomically(path, letter * 100 * length)
        except BaseException as error:
            errors.append(error)

    write_atomically(path, "a")
    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(set(text)) == 1
        seen |= set(text)
    assert not errors and seen and not list(tmp_path.glob("*.part*"))


def test_folder(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match="stop"), folder_atomically(folder) as part:
        (part / "weights").write_text("1")
        raise ValueError("stop")
    assert not os.listdir(tmp_path)
    (tmp_path / "model.part").mkdir()  # of a killed process
    (tmp_path / "model.part" / "old").touch()
    with folder_atomically(folder) as part:
        (part / "weights").write_text("1")
        assert not folder.exists()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(folder) == ["weights"]
    (folder / "notes").write_text("the user's own")
    with pytest.raises(ValueError, match="stop"), folder_atomically(folder) as part:
        (part / "weights").write_text("2")
        raise ValueError("stop")
    assert (folder / "weights").read_text() == "1"
    with folder_atomically(folder) as part:
        (part / "weights").write_text("2")
        assert (folder / "weights").read_text() == "1"
    assert (folder / "weights").read_text() == "2" and sorted(os.listdir(folder)) == ["notes", "weights"]
    with pytest.raises(NotADirectoryError, match="must be a folder"), folder_atomically(folder / "notes"):
        pass


def test_shared_folder_on_a_full_disk(tmp_path, ppo):
    pytest.importorskip("safetensors")
    pytest.importorskip("yaml")
    from sb3_shm.sharing.folder import load_model_folder, save_model_folder

    ppo.num_timesteps = 7
    save_model_folder(ppo, tmp_path, "user/name", "CartPole-v1", n_eval_episodes=1)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ppo.num_timesteps = 8
    with full_disk(), pytest.raises(Exception):  # noqa: B017  # safetensors has one of its own
        save_model_folder(ppo, tmp_path, "user/name", "CartPole-v1", n_eval_episodes=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert load_model_folder(tmp_path, device="cpu").num_timesteps == 7


def test_zoo_saves_atomically(tmp_path, ppo, zoo):
    from sb3_shm.zoo.manager import safe_saving

    def env() -> VecNormalize:
        return VecNormalize(make_vec_env("CartPole-v1"))

    ppo.set_logger(configure(None, []))
    callback = EvalCallback(make_vec_env("CartPole-v1"), n_eval_episodes=1, eval_freq=1, log_path=str(tmp_path), warn=False)
    callback.init_callback(ppo)
    vec_normalize = env()
    with safe_saving():
        callback.on_step()
        vec_normalize.save(str(tmp_path / "vecnormalize.pkl"))
        whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert {path.name for path in whole} == {"evaluations.npz", "vecnormalize.pkl"}
        with full_disk(100):
            with pytest.raises(OSError):
                callback.on_step()
            with pytest.raises(OSError):
                vec_normalize.save(str(tmp_path / "vecnormalize.pkl"))
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == whole
        callback.on_step()
    with np.load(tmp_path / "evaluations.npz") as data:
        assert len(data["timesteps"]) == 3
    assert callback.log_path == str(tmp_path / "evaluations")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kills"), [("save", 10), ("replay", 5), ("train", 3), ("experiment", 3), ("together", 1)])
def test_killed_runs(command, kills):
    arguments = [sys.executable, str(BENCHMARKS / "killed_runs.py"), command, "--kills", str(kills), "--seed", "1"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
