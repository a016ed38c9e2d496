"""Every Python block of README.md and docs/ runs, block after block of a page as a reader would paste them; only trainings are
cut short. A block that cannot run here says why: <!-- skip: start "reason" -->"""

import re
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import pytest

from sb3_shm import SHMPPO, SHMSAC

pytest.importorskip("sybil")
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [path for path in PAGES if "```python" in path.read_text(encoding="utf-8")]
# Enough for a first update; SHMPPO ends with a whole rollout
STEPS = 110
TOKEN = "hf_thisIsTheSecretToken"


def sybil() -> Sybil:
    return Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])


@pytest.fixture
def short_trainings(monkeypatch):
    for algorithm in (SHMPPO, SHMSAC):

        def learn(model, total_timesteps, *args, learn=algorithm.learn, **kwargs):
            return learn(model, min(total_timesteps, STEPS), *args, **kwargs)

        monkeypatch.setattr(algorithm, "learn", learn)


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_code(path, hub, zoo, short_trainings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # of the Hub that the fixture runs on this computer
    monkeypatch.syspath_prepend(str(ROOT))  # experiments/ is no part of the package
    document = sybil().parse(path)
    document.namespace["__name__"] = "page"
    examples = list(document.examples())
    assert len(examples) >= path.read_text(encoding="utf-8").count("```python"), "a block was not found"
    for example in examples:
        with suppress(SkipTest):
            example.evaluate()


def test_a_broken_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    first, second = sybil().parse(page).examples()
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
