"""The folder of an experiment's results: its configuration, a file per finished run, and what is made of them."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections import defaultdict
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.base import Experiment, Rows, Run
from sb3_shm.files import write_atomically

PACKAGES = ("sb3-shm", "stable-baselines3", "torch", "numpy", "numba", "gymnasium", "popgym")


def describe_machine() -> dict[str, Any]:
    """
    :return: versions of Python and the packages, and what the machine is
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return dict(versions=versions, machine=platform.machine(), system=platform.platform(), cpu_count=os.cpu_count())


def _value(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


class ResultsFolder:
    """
    ``configuration.json`` says what is computed here, ``runs/<id>.json`` is a finished run and ``runs/<id>.log`` what it
    printed; :meth:`write_results` adds results.csv, results.json, report.md and the figures.

    :param path: the folder
    :param experiment: the experiment
    :param budget: one of :data:`~experiments.base.BUDGETS`
    :param seeds: number of seeds
    :param resume: go on with what is there: in runs/, or else in results.csv
    :raises ValueError: the folder holds results of another configuration, or of this one without ``resume``, or something else
    """

    def __init__(self, path: Path, experiment: Experiment, budget: str, seeds: int, resume: bool = False) -> None:
        self.path = path
        self.experiment = experiment
        self.runs = experiment.runs(budget, seeds)
        self.configuration = dict(
            experiment=experiment.name, budget=budget, seeds=seeds, runs=[asdict(run) for run in self.runs]
        )
        file = path / "configuration.json"
        if file.exists():
            self._check_configuration(file, resume)
        elif path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty and holds no results of an experiment: choose another --output")
        (path / "runs").mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_atomically(file, json.dumps(self.configuration, indent=1))
        if resume and (path / "results.csv").exists():
            self._restore_runs()

    def _restore_runs(self) -> None:
        """
        Write the files of runs that only results.csv holds: of a folder that was shared or committed without runs/.

        :raises ValueError: results.csv cannot be read
        """
        file, rows_of = self.path / "results.csv", defaultdict[str, list[dict[str, Any]]](list)
        try:
            with open(file, newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    rows_of[row.pop("run")].append({key: _value(text) for key, text in row.items() if text})
        except (AttributeError, KeyError, ValueError, csv.Error) as error:
            raise ValueError(f"{file} cannot be read ({error!r}): remove it, or choose another --output") from error
        for run in self.runs:
            if run.id in rows_of and not self.record_path(run).exists():
                write_atomically(self.record_path(run), json.dumps(dict(id=run.id, rows=rows_of[run.id])))

    def _check_configuration(self, file: Path, resume: bool) -> None:
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read ({error}): choose another --output") from error
        # As it reads back from JSON: tuples become lists
        ours = json.loads(json.dumps(self.configuration))
        if there != ours and resume and isinstance(there, dict) and self._only_more_seeds(there, ours):
            write_atomically(file, json.dumps(self.configuration, indent=1))
        elif there != ours and isinstance(there, dict) and self._only_more_seeds(ours, there):
            raise ValueError(f"{self.path} has {there.get('seeds')} seeds: write --seeds {there.get('seeds')} or more")
        elif there != ours:
            different = [key for key in ours if not isinstance(there, dict) or there.get(key) != ours[key]]
            values = ", ".join(f"{key} {there.get(key)!r}" for key in different if key != "runs" and isinstance(there, dict))
            raise ValueError(
                f"{self.path} holds results of another configuration ({values or 'its runs have other arguments'}): choose "
                "another --output"
            )
        if not resume:
            raise ValueError(f"{self.path} holds results already: go on with --resume, or choose another --output")

    @staticmethod
    def _only_more_seeds(there: dict[str, Any], ours: dict[str, Any]) -> bool:
        """Whether every run of a folder is one of ours, and nothing but the number of seeds has changed."""
        runs = there.get("runs")
        same = all(there.get(key) == ours[key] for key in ours if key not in ("seeds", "runs"))
        return same and isinstance(runs, list) and all(run in ours["runs"] for run in runs)

    def record_path(self, run: Run) -> Path:
        """
        :return: the file of a run's result
        """
        return self.path / "runs" / f"{run.id}.json"

    def log_path(self, run: Run) -> Path:
        """
        :return: the file of what a run printed
        """
        return self.path / "runs" / f"{run.id}.log"

    def unfinished(self) -> list[Run]:
        """
        :return: runs without a result
        """
        return [run for run in self.runs if self._record(run) is None]

    def _record(self, run: Run) -> Any:
        """What a finished run left; None if it has not finished, or if its file is broken."""
        try:
            record = json.loads(self.record_path(run).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) and record.keys() >= {"id", "rows"} else None

    def rows(self) -> Rows:
        """
        :return: the rows of all finished runs, in the order of the runs, with the run's id as column "run"
        """
        records = (self._record(run) for run in self.runs)
        return [{"run": record["id"], **row} for record in records if record is not None for row in record["rows"]]

    def write_results(self, command: list[str]) -> str:
        """
        Write results.csv, results.json, report.md and the figures.

        :param command: how the program was called
        :return: the report
        """
        import pandas as pd

        rows = self.rows()
        frame = pd.DataFrame(rows)
        write_atomically(self.path / "results.csv", frame.to_csv(index=False))
        unfinished = [run.id for run in self.unfinished()]
        result = {
            **{key: value for key, value in self.configuration.items() if key != "runs"},
            "command": " ".join(["python -m experiments", *command]),
            **describe_machine(),
            "unfinished": unfinished,
            "rows": rows,
        }
        write_atomically(self.path / "results.json", json.dumps(result, indent=1))
        report = self.experiment.report(frame, self.path)
        some = ", ".join(unfinished[:10]) + (", ..." if len(unfinished) > 10 else "")
        missing = f"\nNot finished, {len(unfinished)} of {len(self.runs)} runs: {some}\n" if unfinished else ""
        text = (
            f"# {self.experiment.name}\n\n{self.experiment.summary}\n\n    {result['command']}\n{missing}\n{report.strip()}\n"
        )
        write_atomically(self.path / "report.md", text)
        return text
