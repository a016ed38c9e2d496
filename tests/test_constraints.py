"""The two files of versions agree."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def versions(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_rllib_runs_with_the_versions_of_the_rest_but_for_gymnasium():
    common, rllib = versions("constraints.txt"), versions("constraints-rllib.txt")
    assert len(rllib) > 10 and [line.partition("==")[0] for line in rllib - common] == ["gymnasium"]
