"""What surrounds the code says the same as the code: workflows, forms, citation, hooks, packages."""

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
VERSION = (ROOT / "sb3_shm" / "version.txt").read_text().strip()


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.partition(";")[0].split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_the_tests_run_on_every_python_that_is_claimed():
    workflow = read(".github/workflows/test.yml")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    claimed = re.findall(r"Programming Language :: Python :: (3\.\d+)", setup()["metadata"]["classifiers"])
    assert matrix["python"] == claimed and len(claimed) >= 4
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    low, high = claimed[0], int(claimed[-1].partition(".")[2]) + 1
    assert setup()["options"]["python_requires"] == f">={low},<3.{high}"


def test_workflows_install_extras_that_exist_and_run_targets_that_exist():
    extras = setup()["options.extras_require"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = 0
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = read(str(path.relative_to(ROOT)))
        assert workflow["permissions"] == {"contents": "read"}, "nothing may write unless its job says so"
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
            for command in (step.get("run", "") for step in job["steps"]):
                for names in re.findall(r"\[([\w,]+)\]", command):
                    assert set(names.split(",")) <= set(extras), names
                    seen += 1
                if command.startswith("make "):
                    named = [word for word in command.split()[1:] if "=" not in word]
                    assert set(named) <= set(targets), command
                    seen += 1
    assert seen >= 3


def test_a_tag_publishes_without_a_token():
    workflow = read(".github/workflows/release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    assert "password" not in str(workflow) and "secrets" not in str(workflow)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"] and form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    assert all(part["attributes"]["label"] for part in form["body"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_citation():
    citation = read("CITATION.cff")
    assert str(citation["version"]) == VERSION and citation["cff-version"] == "1.2.0"
    assert citation["license"] == setup()["metadata"]["license"]
    paper = citation["preferred-citation"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["title"] in readme and paper["url"] in readme


def test_hooks_are_of_the_pinned_versions():
    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in read(".pre-commit-config.yaml")["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pins()['ruff']}"
    assert [hook["entry"] for hook in hooks["local"]["hooks"]] == ["make type"]


def test_read_the_docs_builds_as_make_docs_does():
    config = read(".readthedocs.yaml")
    assert config["version"] == 2 and config["sphinx"]["fail_on_warning"] is True
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    commands = " ".join(config["build"]["jobs"]["install"])
    assert "constraints.txt" in commands and "[docs]" in commands


@pytest.mark.slow
def test_sdist_and_wheel(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("twine")
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.splitlines()):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    dist = tmp_path / "dist"
    # Without an argument `build` makes the wheel from the sdist, so the latter is complete
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    packages = sorted(dist.iterdir())
    assert [path.name.partition(f"-{VERSION}")[2] for path in packages] == ["-py3-none-any.whl", ".tar.gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages], check=True, timeout=100)
    with tarfile.open(packages[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "Makefile", "docs/memories.md", "hyperparams/shm_ppo.yml", "tests/test_project.py"} <= names
    with zipfile.ZipFile(packages[0]) as archive:
        assert "sb3_shm/hyperparams/shm_ppo.yml" in archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("dist-info/METADATA"))
    assert "Project-URL: Paper, https://arxiv.org/abs/2410.10132" in metadata
    # From an empty folder, unpacked, before the dependencies on the path
    with zipfile.ZipFile(packages[0]) as archive:
        archive.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import sb3_shm, gymnasium as gym; "
    code += "print(sb3_shm.__version__, gym.make('CartPoleNoVel-v0').reset(seed=0)[0].shape, sb3_shm.__file__)"
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=empty, capture_output=True, text=True, timeout=100)
    assert result.stdout.startswith(f"{VERSION} (2,)") and str(tmp_path / "site") in result.stdout, result.stderr
