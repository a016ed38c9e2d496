"""Files and folders that are there as a whole or not at all, whatever ends the program or fills the disk in between."""

import itertools
import os
import pathlib
import pickle
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BufferedWriter
from typing import Any

if sys.platform != "win32":
    import fcntl


def _open_part(path: pathlib.Path) -> BufferedWriter:
    """
    Open ``path`` with ".part" behind its name. What a killed process left under this name is overwritten; while another
    process, or thread, writes it, the name gets a number.
    """
    for number in itertools.count():
        part = path.with_name(f"{path.name}.part{number or ''}")
        file = open(part, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))  # noqa: SIM115
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            except OSError:  # a file system without locks
                pass
            try:
                is_part = os.path.samestat(part.stat(), os.fstat(file.fileno()))
            except FileNotFoundError:
                is_part = False
            if not is_part:  # between opening and locking it another process has moved it into place
                file.close()
                continue
        if os.fstat(file.fileno()).st_size:
            file.truncate(0)
        return file
    raise AssertionError


@contextmanager
def open_atomically(path: str | pathlib.Path) -> Iterator[BufferedWriter]:
    """
    A binary file to write, ``with open_atomically(path) as file``, which takes the place of ``path`` at the end, when all of
    it is on the disk. After an error, or if the process is killed, ``path`` is what it was.

    :param path: the file; one with ".part" behind its name is used meanwhile. A device or a pipe is written as it is
    :return: the file, whose ``name`` may be opened instead
    :raises OSError: it cannot be written, e.g. there is no such folder or the disk is full
    """
    path = pathlib.Path(os.path.realpath(path))  # a link goes on to lead there
    if not path.parent.exists():
        raise FileNotFoundError(f"There is no folder {path.parent}, {path.name} cannot be written into it")
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    file = _open_part(path)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, file.name)
        if sys.platform == "win32":  # where no open file can be moved; elsewhere the lock lasts until it is
            file.close()
        os.replace(file.name, path)
    except BaseException:
        pathlib.Path(file.name).unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # what could not be written above cannot be written now, and the error is under way
            file.close()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """
    Write a text file that is either there as a whole or not at all; see :func:`open_atomically`.

    :param path: the file
    :param text: its content
    :raises OSError: it cannot be written, e.g. the disk is full
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_for_sb3(path: str | pathlib.Path | BufferedIOBase, suffix: str) -> Iterator[Any]:
    """
    The file that Stable-Baselines3 would save to, but written as by :func:`open_atomically`.

    :param path: file or open file, which is handed through; a name without a suffix gets one, a folder that is missing is made
        and a name that a folder has gets "_2" behind it, as in Stable-Baselines3
    :param suffix: "zip" or "pkl"
    :return: the open file
    :raises OSError: it cannot be written, e.g. the disk is full
    """
    if not isinstance(path, str | pathlib.Path):
        yield path
        return
    path = pathlib.Path(path)
    if not path.suffix:
        path = pathlib.Path(f"{path}.{suffix}")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=4)
        path = pathlib.Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.", stacklevel=4)
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as file:
        yield file


@contextmanager
def folder_atomically(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """
    A folder to write files into, which go to ``folder`` at the end, when all of them are on the disk. A new folder appears as
    a whole. In one that exists each file takes the place of its namesake, and the others stay; only a process that is killed
    in the very moment of these moves leaves new and old ones side by side. After an error ``folder`` is what it was.

    :param folder: the folder, made if it is missing
    :return: the folder to write into: ``folder`` with ".part" behind its name, or ".part" in one that exists. What is there
        already, a killed process has left, and it is removed.
    :raises OSError: it is a file, or something cannot be written, e.g. the disk is full
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder, or not exist yet")
    is_new = not folder.exists()
    part = folder.with_name(f"{folder.name}.part") if is_new else folder / ".part"
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())
        if is_new:
            part.rename(folder)
        else:
            for path in sorted(part.iterdir()):
                os.replace(path, folder / path.name)
    finally:
        if part.exists():
            shutil.rmtree(part)


def save_figure(figure: Any, path: str | pathlib.Path) -> None:
    """
    :param figure: matplotlib's figure
    :param path: picture to write, .png if it has no suffix; see :func:`open_atomically`
    :raises ValueError: a kind of picture that matplotlib does not know
    :raises OSError: it cannot be written, e.g. the disk is full
    """
    path = pathlib.Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    with open_atomically(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])


def save_vec_normalize(vec_normalize: Any, path: str | pathlib.Path) -> None:
    """
    As ``VecNormalize.save``; see :func:`open_atomically`.

    :param vec_normalize: a VecNormalize
    :param path: file to write
    :raises OSError: it cannot be written, e.g. the disk is full
    """
    with open_atomically(path) as file:
        pickle.dump(vec_normalize, file)
