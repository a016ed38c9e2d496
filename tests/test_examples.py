"""Every example runs, as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    command = [sys.executable, str(script), "--smoke"]
    environment = dict(os.environ, MPLBACKEND="Agg")
    for _ in range(2):  # the second time with the first one's files in place
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "return" in run.stdout


def test_train_example_leaves_model_and_picture(tmp_path):
    script = next(path for path in EXAMPLES if path.stem == "train_popgym")
    subprocess.run([sys.executable, str(script), "--smoke", "--memory", "gru"], cwd=tmp_path, check=True, capture_output=True)
    (folder,) = (tmp_path / "logs").iterdir()
    assert (folder / "model.zip").stat().st_size > 10_000
    assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
