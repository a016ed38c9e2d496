"""Every example runs, as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[!p]*.py"))  # plot_... needs results, see below


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    command = [sys.executable, str(script), "--smoke"]
    environment = dict(os.environ, MPLBACKEND="Agg")
    for _ in range(2):  # the second time with the first one's files in place
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "return" in run.stdout


def test_train_example_and_its_picture(tmp_path):
    examples = EXAMPLES[0].parent
    for memory, seed in (("gru", "0"), ("gru", "1"), ("shm", "0")):
        command = [sys.executable, str(examples / "train_popgym.py"), "--smoke", "--memory", memory, "--seed", seed]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    folders = sorted((tmp_path / "logs").iterdir())
    assert len(folders) == 3 and all((folder / "model.zip").stat().st_size > 10_000 for folder in folders)
    assert all((folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG" for folder in folders)
    command = [sys.executable, str(examples / "plot_learning_curves.py"), *map(str, folders), "--output", "curves.png"]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "| gru-32 | 2 |" in run.stdout and "| shm-neural-32 | 1 |" in run.stdout
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
