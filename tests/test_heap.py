"""Memory that a minibatch frees stays with the process."""

import os
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="which Windows lacks, and so the programs below")

PROGRAM = """
import ctypes, resource, sys
import torch as th
from sb3_shm.training.heap import keep_freed_memory
if "forget" in sys.argv:  # where the library begins; by itself it learns to keep more, by chance
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(-1, 2**17) and mallopt(-3, 2**17)
if "keep" in sys.argv:
    print(keep_freed_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    [th.ones(2**20) for _ in range(10)]  # freed at once, as after a backward pass
for _ in range(5):
    work()
before = faults()
for _ in range(20):
    work()
print(faults() - before)
"""


def run(*arguments: str, **environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="GNU's alone")
def test_what_was_freed_is_not_asked_for_again():
    pages = 20 * 10 * 2**22 // resource.getpagesize()
    kept, faults = run("forget", "keep")
    assert kept == "True" and int(faults) < pages / 100
    assert int(run("forget")[0]) > pages / 2


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"])
def test_who_has_set_it_is_not_contradicted(name):
    assert run("keep", **{name: "131072"})[0] == "False"
