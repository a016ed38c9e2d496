"""The grid on a Ray cluster of two nodes on this machine."""

import os
import sys
import time
import types
from functools import partial
from pathlib import Path

import pytest
from grid_runs import drawing, experiment

from experiments import Run
from experiments import __main__ as command
from experiments.folder import ResultsFolder
from experiments.ray_runner import RETRIES, run_on_ray

TESTS = Path(__file__).parent


@pytest.fixture
def cluster(monkeypatch):
    ray = pytest.importorskip("ray", reason="extra ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args=dict(num_cpus=1, object_store_memory=memory, include_dashboard=False)
    )
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=memory)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def starts(folder, seed):
    path = folder / f"started_{seed}"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_lost_node_costs_only_what_ran_on_it(cluster, tmp_path):
    """
    Runs 0 and 1 finish, then 2 and 3 run on a node each until a gate opens. One node is lost: one of them starts again, and
    nothing else does. A run that crashes is not tried again, and leaves its log.
    """
    gate = tmp_path / "gate"
    runs = [drawing(seed, tmp_path, gate=str(gate) if seed in (2, 3) else None) for seed in range(5)]
    runs.append(Run("bad", "grid_runs:crash", dict(seed=7)))
    folder = ResultsFolder(tmp_path / "results", experiment(*runs), "small", 9)
    ended = []
    for outcome in run_on_ray(folder, runs, cluster.address, cpus=1, gpus=0):
        ended.append(outcome)
        if len(ended) == 2:
            assert {outcome.run.id for outcome in ended} == {"draw_0", "draw_1"}
            deadline = time.monotonic() + 60
            while not (starts(tmp_path, 2) and starts(tmp_path, 3)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            cluster.remove_node(cluster.second, allow_graceful=False)
            gate.touch()
    assert sorted(starts(tmp_path, seed) for seed in range(5)) == [1, 1, 1, 1, 2]
    assert starts(tmp_path, 2) + starts(tmp_path, 3) == 3
    assert {outcome.run.id: outcome.status for outcome in ended} == {**{f"draw_{seed}": 0 for seed in range(5)}, "bad": 1}
    assert [run.id for run in folder.unfinished()] == ["bad"]
    assert "seed 7 has no luck" in folder.log_path(runs[-1]).read_text()
    assert folder.log_path(runs[2]).read_text() == "seed 2 prints\n"
    assert [row["seed"] for row in folder.rows()] == [seed for seed in range(5) for _ in range(3)]


class RayError(Exception):
    pass


class SmallRay(types.ModuleType):
    """What the grid uses of Ray, in this process; the nodes of ``lost`` runs are lost once too often."""

    def __init__(self, lost):
        super().__init__("ray")
        self.lost, self.calls, self.tasks = lost, [], {}
        self.exceptions = types.SimpleNamespace(RayError=RayError)

    def init(self, **kwargs):
        if kwargs["address"] == "nowhere":
            raise ValueError("Invalid address")
        self.calls.append(("init", kwargs["address"]))

    def remote(self, **kwargs):
        self.calls.append(("remote", kwargs))

        def submit(function, run):
            self.tasks[run.id] = partial(function, run)
            return run.id

        return lambda function: types.SimpleNamespace(remote=partial(submit, function))

    def wait(self, ids):
        return ids[-1:], ids[:-1]

    def get(self, name):
        if name in self.lost:
            raise RayError("the node died")
        return self.tasks[name]()

    def cancel(self, name, force):
        self.calls.append(("cancel", name))

    def shutdown(self):
        self.calls.append(("shutdown",))


def test_results_are_gathered(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    ray = SmallRay(lost=["draw_1"])
    monkeypatch.setitem(sys.modules, "ray", ray)
    runs = [drawing(seed, tmp_path) for seed in range(3)]
    folder = ResultsFolder(tmp_path / "results", experiment(*runs), "small", 9)
    outcomes = run_on_ray(folder, runs, "auto", cpus=0.5, gpus=0.25)
    assert [next(outcomes).status, next(outcomes).status] == [0, 1]
    outcomes.close()
    assert ray.calls == [
        ("init", "auto"),
        ("remote", dict(num_cpus=0.5, num_gpus=0.25, max_retries=RETRIES)),
        ("cancel", "draw_0"),
        ("shutdown",),
    ]
    assert [run.id for run in folder.unfinished()] == ["draw_0", "draw_1"]
    assert folder.log_path(runs[1]).read_text() == "the node died"
    assert folder.log_path(runs[2]).read_text() == "seed 2 prints\n"
    assert [row["seed"] for row in folder.rows()] == [2] * 3


@pytest.mark.parametrize(
    "ray, address, message",
    [
        (None, "auto", 'pip install "sb3-shm[ray]"'),
        (SmallRay([]), "nowhere", "no Ray cluster at nowhere: Invalid address"),
        (SmallRay([]), "127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: "),
    ],
)
def test_without_a_cluster(ray, address, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(SystemExit):
        command.main(["popgym", "--ray-address", address, "--output", str(tmp_path / "results")])
    assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "results").exists() == (ray is not None)


def test_what_only_a_cluster_has(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["popgym", "--cpus-per-run", "2", "--output", str(tmp_path / "results")])
    assert "--cpus-per-run needs --ray-address" in " ".join(capsys.readouterr().err.split())
