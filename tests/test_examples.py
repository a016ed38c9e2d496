"""Every example runs, as a user would run it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for useless in ("changed nothing", "MemoryDiagnosticsCallback writes"):
        assert useless not in result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("act_with_memory", ["--model", "nope.zip"], "There is no model nope.zip"),
        ("look_inside", ["--model", "nope.zip"], "There is no model nope.zip"),
        ("play", ["VisualMatch60-v0", "--model", "nope.zip"], "There is no model nope.zip"),
        ("plot_learning_curves", ["nope"], "nope is no folder of a run"),
        ("serve_onnx", ["nope.onnx"], "nope.onnx is no policy that export_onnx wrote"),
        ("train_popgym", ["--env", "RepeatPreviousEazy-v0"], "the nearest ids are RepeatPreviousEasy-v0"),
    ],
)
def test_mistakes_are_answered_in_a_line(tmp_path, name, arguments, says):
    if name == "serve_onnx":
        pytest.importorskip("onnxruntime")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and len(result.stderr) < 2000


def test_act_with_memory(tmp_path):
    assert "evaluate_policy: mean return" in run(tmp_path, "act_with_memory", "--smoke")


def test_train_cartpole(tmp_path):
    assert "shm, seed 3: mean return of 20 new episodes" in run(tmp_path, "train_cartpole", "--smoke", "--seed", "3")


def test_clone_then_ppo(tmp_path):
    printed = run(tmp_path, "clone_then_ppo", "--smoke", "--seed", "3")
    assert all(f"seed 3, {name}: mean return" in printed for name in ("PPO alone", "cloned", "cloned, then PPO"))


def test_train_cartpole_novel_resumes(tmp_path):
    assert "Resuming" not in run(tmp_path, "train_cartpole_novel", "--smoke")
    checkpoints = list(tmp_path.glob("logs/*/shm_ppo_*_steps.zip"))
    for path in checkpoints:  # as if killed after a thousand steps
        if int(path.stem.split("_")[-2]) > 1000:
            path.unlink()
    again = run(tmp_path, "train_cartpole_novel", "--smoke")
    assert "shm_ppo_1000_steps" in again and "best checkpoint" in again
    assert len(list(tmp_path.glob("logs/*/shm_ppo_*_steps.zip"))) >= len(checkpoints)


def test_train_popgym_and_its_picture(tmp_path):
    for memory, seed in (("gru", "0"), ("gru", "1"), ("shm_paper", "0")):
        assert "mean return" in run(tmp_path, "train_popgym", "--smoke", "--memory", memory, "--seed", seed)
    assert "total_timesteps" in run(tmp_path, "train_popgym", "--smoke", "--memory", "shm_paper"), "a log file gets tables"
    folders = sorted((tmp_path / "logs").iterdir())
    assert [folder.name for folder in folders[2:]] == [
        "RepeatPreviousEasy-v0_shm_paper_0",
        "RepeatPreviousEasy-v0_shm_paper_0-2",
    ]
    assert len(folders) == 4 and all((folder / "model.zip").stat().st_size > 10_000 for folder in folders)
    assert all((folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG" for folder in folders)
    table = run(tmp_path, "plot_learning_curves", *map(str, folders), "--output", "curves.png")
    assert "| gru | 2 |" in table and "| shm_paper | 2 |" in table
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.posix
def test_what_was_learned_until_ctrl_c_is_saved(tmp_path):
    command = [sys.executable, "-u", str(EXAMPLES / "train_popgym.py"), "--memory", "gru", "--steps", "100_000_000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
    )
    try:
        log = tmp_path / "logs" / "RepeatPreviousEasy-v0_gru_0" / "monitor.csv"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size > 500) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "mean return" in output, output
    assert SHMPPO.load(log.parent / "model").num_timesteps > 0


def test_play(tmp_path):
    assert "85 steps, return" in run(tmp_path, "play", "VisualMatch60-v0")
    with Image.open(tmp_path / "play.gif") as picture:
        assert picture.format == "GIF" and picture.n_frames > 70 and picture.size == (360, 288)
    assert "9 steps (not to the end)" in run(tmp_path, "play", "KeyToDoor60Image-v0", "--policy", "random", "--smoke")
    model = SHMPPO("MlpSHMPolicy", make_vec_env("VisualMatch60-v0", n_envs=2), n_steps=32, batch_size=64)
    model.save(tmp_path / "model")
    assert "9 steps" in run(tmp_path, "play", "VisualMatch60-v0", "--model", "model.zip", "--smoke")
    unknown = [sys.executable, str(EXAMPLES / "play.py"), "VisualMatch61-v0"]
    result = subprocess.run(unknown, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "VisualMatch60" in result.stderr


def test_look_inside(tmp_path):
    output = run(tmp_path, "look_inside", "--smoke", "--output", "pictures")
    assert "8 steps, return" in output
    assert all((tmp_path / "pictures" / name).stat().st_size > 5000 for name in ("strip.png", "read_out.png", "inside.gif"))
    again = run(tmp_path, "look_inside", "--smoke", "--model", "pictures/model.zip", "--output", "again")
    assert "Training" not in again and "8 steps, return" in again


def test_own_memory(tmp_path):
    output = run(tmp_path, "own_memory", "--smoke")
    assert "FadingMean keeps the contract: 32 floats of state" in output
    assert "SHMPPO: mean return after 1,024 steps" in output and "SHMSAC: mean return after 400 steps" in output


def test_train_sac(tmp_path):
    for arguments in ((), ("--memory", "none"), ("--env", "RepeatFirstEasy-v0", "--memory", "gru")):
        assert "640 steps" in run(tmp_path, "train_sac", "--smoke", *arguments)
    assert len(list(tmp_path.glob("logs/*/model.zip"))) == 3
