"""The grid of runs: processes, results, restarts, and what goes wrong."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid_runs import drawing, experiment

from experiments import Run
from experiments import __main__ as command
from experiments.folder import ResultsFolder
from experiments.runner import run_processes

TESTS = Path(__file__).parent


@pytest.fixture
def run_command(tmp_path, monkeypatch):
    """Runs the command with an experiment of these runs; results are in tmp_path / "results"."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    monkeypatch.setitem(command.EXPERIMENTS, "drawn", "unused")

    def run(runs, *arguments, seeds=9):
        monkeypatch.setattr(command, "load_experiment", lambda name: experiment(*runs))
        return command.main(["drawn", "--output", str(tmp_path / "results"), "--seeds", str(seeds), *arguments])

    return run


def started(folder, seed):
    path = folder / f"started_{seed}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_files_and_lines_of_a_finished_grid(run_command, tmp_path, capsys):
    assert run_command([drawing(seed, tmp_path) for seed in range(2)], "--jobs", "2") == 0
    folder = tmp_path / "results"
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines if line.startswith("[")) == ["draw_0", "draw_1"]
    with open(folder / "results.csv") as file:
        table = [{**row, "seed": int(row["seed"]), "value": float(row["value"])} for row in csv.DictReader(file)]
    assert [row["run"] for row in table] == ["draw_0"] * 3 + ["draw_1"] * 3
    result = json.loads((folder / "results.json").read_text())
    assert result["rows"] == table  # all digits are there
    assert {"torch", "python", "numpy"} <= set(result["versions"]) and result["command"].startswith("python -m exp")
    assert result["budget"] == "small" and result["unfinished"] == [] and result["cpu_count"] == os.cpu_count()
    assert f"6 rows of 2 runs, sum {sum(row['value'] for row in table):.6f}" in (folder / "report.md").read_text()
    assert (folder / "runs" / "draw_1.log").read_text() == "seed 1 prints\n"
    assert not list(folder.rglob("*.part"))


def test_a_folder_without_its_runs_goes_on(run_command, tmp_path):
    """As a repository keeps one: what results.csv holds is not computed again, and comes out the same."""
    runs = [drawing(seed, tmp_path) for seed in range(3)]
    assert run_command(runs[:2], seeds=2) == 0
    folder = tmp_path / "results"
    shutil.rmtree(folder / "runs")
    assert run_command(runs, "--resume", seeds=3) == 0
    assert [started(tmp_path, seed) for seed in range(3)] == [1, 1, 1]
    resumed = (folder / "results.csv").read_bytes()
    shutil.rmtree(folder)
    assert run_command(runs, seeds=3) == 0
    assert (folder / "results.csv").read_bytes() == resumed


def test_a_broken_table_is_refused(run_command, tmp_path, capsys):
    runs = [drawing(0, tmp_path)]
    assert run_command(runs) == 0
    (tmp_path / "results" / "results.csv").write_text("what,else\n1,2\n")
    with pytest.raises(SystemExit):
        run_command(runs, "--resume")
    assert "results.csv cannot be read" in capsys.readouterr().err


def test_a_killed_grid_goes_on_with_identical_results(run_command, tmp_path):
    """The whole program is killed; the finished run is kept, the running one ends with it and starts again."""
    gate = tmp_path / "gate"
    runs = [drawing(0, tmp_path), drawing(1, tmp_path, gate=str(gate)), drawing(2, tmp_path)]
    text = (
        "from experiments import __main__ as command\nfrom grid_runs import *\n"
        f"command.EXPERIMENTS['drawn'] = ''\ncommand.load_experiment = lambda name: experiment(*{runs!r})\n"
        f"command.main(['drawn', '--seeds', '9', '--jobs', '1', '--output', {str(tmp_path / 'results')!r}])"
    )
    program = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL)
    while not started(tmp_path, 1):
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGKILL)
    program.wait()
    time.sleep(0.5)
    gate.touch()  # the orphan would finish now
    time.sleep(0.5)
    finished = sorted(path.name for path in (tmp_path / "results" / "runs").glob("*.json"))
    assert finished == ["draw_0.json"]
    assert run_command(runs, "--resume") == 0
    assert [started(tmp_path, seed) for seed in range(3)] == [1, 2, 1]
    resumed = (tmp_path / "results" / "results.csv").read_bytes()
    (tmp_path / "results").rename(tmp_path / "first")
    assert run_command(runs) == 0
    assert (tmp_path / "results" / "results.csv").read_bytes() == resumed


def test_folders_of_other_results_are_refused(run_command, tmp_path, capsys):
    runs = [drawing(0, tmp_path)]
    assert run_command(runs, seeds=1) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    for arguments, new_runs, message in [
        ([], runs, "go on with --resume"),
        (["--resume", "--budget", "paper"], runs, "another configuration (budget 'small')"),
        (["--resume"], [drawing(0, tmp_path, seconds=0.1)], "its runs have other arguments"),
    ]:
        with pytest.raises(SystemExit):
            run_command(new_runs, *arguments, seeds=1)
        assert message in " ".join(capsys.readouterr().err.split())
    assert before == {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    for path in (tmp_path / "results").iterdir():
        path.rename(tmp_path / f"old_{path.name}")
    (tmp_path / "results" / "thesis.tex").touch()
    with pytest.raises(SystemExit):
        run_command(runs, seeds=1)
    assert "holds no results of an experiment" in capsys.readouterr().err


def test_more_seeds_are_added(run_command, tmp_path, capsys):
    runs = [drawing(seed, tmp_path) for seed in range(3)]
    assert run_command(runs[:1], seeds=1) == 0
    with pytest.raises(SystemExit):
        run_command(runs, seeds=3)
    assert "another configuration (seeds 1)" in " ".join(capsys.readouterr().err.split())
    assert run_command(runs, "--resume", seeds=3) == 0
    assert [started(tmp_path, seed) for seed in range(3)] == [1, 1, 1]
    with pytest.raises(SystemExit):  # fewer would leave results out
        run_command(runs[:1], "--resume", seeds=1)
    assert "has 3 seeds: write --seeds 3 or more" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["", '{"id": "draw_0", "rows": [', "[]", '{"id": "draw_0"}'])
def test_a_broken_result_is_computed_again(run_command, tmp_path, content):
    runs = [drawing(seed, tmp_path) for seed in range(2)]
    assert run_command(runs) == 0
    results = (tmp_path / "results" / "results.csv").read_bytes()
    (tmp_path / "results" / "runs" / "draw_0.json").write_text(content)
    assert run_command(runs, "--resume") == 0
    assert (tmp_path / "results" / "results.csv").read_bytes() == results
    assert started(tmp_path, 0) == 2 and started(tmp_path, 1) == 1


def test_a_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    def load(name):
        raise ModuleNotFoundError("No module named 'yaml'")

    monkeypatch.setattr(command, "load_experiment", load)
    with pytest.raises(SystemExit):
        command.main(["meta_rl", "--output", str(tmp_path / "results")])
    assert "No module named 'yaml': pip install \"sb3-shm[experiments]\"" in " ".join(capsys.readouterr().err.split())


def test_a_crashed_run_is_reported_and_the_others_finish(run_command, tmp_path, capsys):
    runs = [Run("bad", "grid_runs:crash", dict(seed=7)), drawing(0, tmp_path)]
    assert run_command(runs, "--jobs", "1") == 1
    out, err = capsys.readouterr()
    assert "[1/2] bad CRASHED" in out and "[2/2] draw_0 finished" in out
    assert "RuntimeError: seed 7 has no luck" in err and "bad.log" in err
    assert "Not finished, 1 of 2 runs: bad" in (tmp_path / "results" / "report.md").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("by", ["result", "run"])
def test_a_full_disk_stops_the_grid(run_command, tmp_path, capsys, by):
    """When the result is written, and while it is computed."""
    runs = [drawing(0, tmp_path), drawing(1, tmp_path)]
    if by == "run":
        runs[0] = Run("draw_0", "grid_runs:fill_the_disk", dict(seed=0))
    folder = ResultsFolder(tmp_path / "results", experiment(*runs), "small", 9)
    if by == "result":
        (folder.path / "runs" / "draw_0.json.part").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        run_command(runs, "--jobs", "1", "--resume")
    assert "is full" in capsys.readouterr().err
    assert not list((tmp_path / "results" / "runs").glob("draw_0.json*")) and started(tmp_path, 1) == 0
    if by == "result":  # there is room again
        assert run_command(runs, "--resume") == 0


def test_one_program_at_a_time(run_command, tmp_path, capsys):
    from filelock import FileLock

    run_command([drawing(0, tmp_path)])
    with FileLock(tmp_path / "results" / ".lock"), pytest.raises(SystemExit):
        run_command([drawing(0, tmp_path)], "--resume")
    assert "in use" in capsys.readouterr().err


def test_jobs_at_a_time(run_command, tmp_path):
    """Two run, the third waits; leaving the iteration ends what runs."""
    gate = tmp_path / "gate"
    runs = [drawing(seed, tmp_path, gate=str(gate)) for seed in range(3)]
    folder = ResultsFolder(tmp_path / "results", experiment(*runs), "small", 3)
    outcomes = run_processes(folder, runs, jobs=2)
    gate.touch()
    assert next(outcomes).status == 0
    outcomes.close()
    time.sleep(0.3)
    assert len(folder.unfinished()) in (1, 2) and started(tmp_path, 0) == started(tmp_path, 1) == 1


def test_illegal_arguments_name_the_legal_ones(capsys):
    for arguments, message in [
        (["nonsense"], "'popgym', 'memories'"),
        (["popgym", "--jobs", "0"], "--jobs must be 1"),
        (["popgym", "--ray-address", "auto", "--gpus-per-run", "-1"], "--gpus-per-run must be 0"),
    ]:
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["popgym", "--budget", "huge"])
    assert "'smoke', 'small', 'paper'" in capsys.readouterr().err
