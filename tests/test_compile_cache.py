"""The compiled kernels on the disk: nothing that is wrong with them stops a program, and nothing wrong is executed."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch as th

from sb3_shm.memory.backends import cpu_cache, cpu_kernels, cpu_threads, cpu_vectors_kernels
from sb3_shm.memory.backends.cpu_cache import KernelCache

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing is left": lambda content: b"",
    "half is left": lambda content: content[: len(content) // 2],
    "a byte is missing": lambda content: content[:-1],
    "garbage": lambda content: bytes(range(256)) * 100,
    "zeros": lambda content: bytes(len(content)),
    "a bit of the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit of the code": lambda content: flipped(content, len(content) // 4, 1),
    "a page": lambda content: flipped(content, len(content) // 3, 4096),
}


def flipped(content: bytes, start: int, number: int) -> bytes:
    return content[:start] + bytes(byte ^ 1 for byte in content[start : start + number]) + content[start + number :]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(KernelCache, "has_warned", False)
    monkeypatch.setattr(KernelCache, "has_told", False)
    return tmp_path


def compute(size: int = 1) -> int:
    """
    Use a kernel as a new process would.

    :param size: its size
    :return: how many kernels came from the cache
    """
    kernel = cpu_vectors_kernels.change_forward.__wrapped__(size)
    x = th.tensor([1.0, 3.0, 7.0, 7.0]).view(1, 4, 1).repeat(1, 1, size)
    both = th.empty(1, 4, 2 * size)
    found: list[bool] = []
    load = KernelCache.load_overload

    def load_overload(*args) -> Any:
        found.append((loaded := load(*args)) is not None)
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelCache, "load_overload", load_overload)
        cpu_threads.run(kernel, 1, 0, [x, th.zeros(1, size), th.tensor([[False, False, True, False]]), both])
    assert both[0, :, 0].tolist() == [1, 3, 7, 7] and both[0, :, size].tolist() == [1, 2, 7, 0]
    return int(found[0])  # behind it the function that calls it


def files(folder: Path) -> list[Path]:
    """Those of the kernels themselves, without the functions that call them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".share_" not in path.name)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES if name != "a bit of the code"]


@pytest.mark.parametrize("damage", ["a bit of the code", *SLOW])
def test_damaged_kernel_is_compiled_anew(folder, damage):
    assert compute() == 0
    [path] = files(folder)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.warns(UserWarning) as caught:
        assert compute() == 0
    [warning] = caught
    assert str(path.parent) in str(warning.message) and path.name in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute() == 1  # what was compiled anew has taken its place


def test_tells_once_what_is_waited_for(folder, caplog):
    compute(1)
    [record] = caplog.records
    assert record.name == "sb3_shm" and "Compiling" in record.message and str(files(folder)[0].parent) in record.message
    compute(2)
    assert len(caplog.records) == 1


def test_does_not_tell_of_what_is_there(folder, monkeypatch, caplog):
    compute()
    monkeypatch.setattr(KernelCache, "has_told", False)
    caplog.clear()
    assert compute() == 1
    assert not caplog.records


def test_kernel_under_another_name_is_not_taken(folder):
    compute(1)
    [one] = files(folder)
    compute(2)
    [two] = set(files(folder)) - {one}
    shutil.copy(one, two)
    with pytest.warns(UserWarning, match="damaged"):
        assert compute(2) == 0


def test_failed_write_is_a_warning(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning) as caught:
        assert compute() == 0
        assert compute() == 0
    assert len(caught) == 1 and "No space left" in str(caught[0].message) and str(folder) in str(caught[0].message)
    assert not files(folder)


def test_folder_that_is_a_file(folder):
    """The cache goes where numba finds another place."""
    folder.rmdir()
    folder.touch()
    compute()
    assert folder.read_bytes() == b""


def test_other_sources_other_kernels(folder, monkeypatch):
    assert compute() == 0
    assert compute() == 1
    monkeypatch.setattr(cpu_cache, "SOURCES", "those of another version")
    assert compute() == 0
    assert len(files(folder)) == 2


@pytest.mark.slow
def test_constant_of_another_file(tmp_path):
    """Chunks of 16 instead of 32 steps: other kernels, which must be compiled, with the same results."""
    package = Path(cpu_kernels.__file__).parents[2]
    shutil.copytree(package, tmp_path / "sb3_shm", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import torch as th; from sb3_shm.memory.hadamard import hadamard_recurrence as f; th.manual_seed(0);"
        "from sb3_shm.memory.backends.inputs import HadamardInputs as Inputs;"
        "xs = [th.randn(1, 40, 8, requires_grad=True) for _ in range(5)];"
        "starts = th.zeros(1, 40, dtype=th.bool);"
        "out = f(Inputs(*xs), th.zeros(1, 8, 8), starts, clip=100.0, backend='cpu')[0];"
        "out.sin().sum().backward(); print([round(x.grad.abs().sum().item(), 2) for x in xs])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def results() -> str:
        run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    before = results()
    source = tmp_path / "sb3_shm/memory/backends/cpu.py"
    text = source.read_text()
    assert "CHUNK = 32" in text
    source.write_text(text.replace("CHUNK = 32", "CHUNK = 16"))
    assert results() == before
    assert len(files(tmp_path / "cache")) == 4  # forward and backward, of both


def test_kernels_of_two_processes_in_a_third(tmp_path):
    """Symbols of the same names would be taken for each other."""
    program = (
        "import sys, torch as th; from sb3_shm.memory.backends import cpu_threads, cpu_vectors_kernels as kernels\n"
        "for d in map(int, sys.argv[1:]):\n"
        "    x, both = th.rand(3, 4, d), th.zeros(3, 4, 2 * d)\n"
        "    arguments = [x, th.zeros(3, d), th.zeros(3, 4, dtype=th.bool), both]\n"
        "    cpu_threads.run(kernels.change_forward(d), 3, 0, arguments)\n"
        "    assert th.equal(both[:, 1:], th.cat([x[:, 1:], x[:, 1:] - x[:, :-1]], dim=2)), d\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for sizes in (["5"], ["6"], ["5", "6"], ["6", "5"]):
        run = subprocess.run([sys.executable, "-c", program, *sizes], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert len(files(tmp_path)) == 2
