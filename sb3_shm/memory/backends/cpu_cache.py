"""Where the compiled kernels of :mod:`sb3_shm.memory.backends.cpu_kernels` are kept on the disk."""

import logging
import pickle
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from sb3_shm.files import open_atomically

# numba itself looks at the file of a kernel alone, not at those whose constants and functions the kernel takes
SOURCES = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


class KernelCache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """
    In numba's folder, but with a file per kernel instead of numba's index and numbered files, which mix up the kernels of
    processes that write at once. A file is named after everything that its kernel was made of, and begins with a checksum:
    what is stale is not found, and what is damaged is not executed but compiled and written anew. No failure is an error; the
    first is a warning.

    :param function: before its compilation; named after everything that it closes over
    :raises RuntimeError: numba finds no folder that can be written
    """

    has_warned = False
    has_told = False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """
        :param sig: types of the arguments
        :param target_context: numba's
        :return: the compiled kernel; None if it is not there, or unusable
        """
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        try:
            content = path.read_bytes()
            if content[:32] != self._checksum(path, content[32:]):
                raise ValueError("it is damaged")
            return self._impl.rebuild(target_context, pickle.loads(content[32:]))
        except FileNotFoundError:
            if not KernelCache.has_told:
                KernelCache.has_told = True
                # What is logged as a warning is shown without any configuration
                logging.getLogger("sb3_shm").warning(
                    "Compiling the kernels for a memory of this size: ten seconds of a core, once, they are kept in %s",
                    self.cache_path,
                )
            return None
        except Exception as error:  # whatever numba and LLVM raise
            self.warn(str(self.cache_path), f"{path.name} cannot be read: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """
        :param sig: types of the arguments
        :param data: the compiled kernel
        """
        path = self._path(sig, data.codegen)
        try:
            if self._impl.check_cachable(data):
                content = dumps(self._impl.reduce(data))
                with open_atomically(path) as file:
                    file.write(self._checksum(path, content) + content)
        except Exception as error:  # a full disk, or whatever numba raises
            self.warn(str(self.cache_path), f"{path.name} cannot be written: {error}")

    def _path(self, sig: Any, codegen: Any) -> Path:
        # Not numba's key of what it closes over, which for its own functions is another one in each process
        function = self._py_func.__qualname__, self._py_func.__code__.co_code
        made_of = (numba.__version__, SOURCES, str(sig), codegen.magic_tuple(), function)
        return Path(self.cache_path) / f"{self._impl.filename_base}.{sha256(repr(made_of).encode()).hexdigest()[:32]}.nbc"

    @staticmethod
    def _checksum(path: Path, content: bytes) -> bytes:
        return sha256(path.name.encode() + content).digest()

    @staticmethod
    def warn(folder: str, reason: str) -> None:
        """
        :param folder: of the cache
        :param reason: why it cannot be used
        """
        if not KernelCache.has_warned:
            KernelCache.has_warned = True
            warnings.warn(
                f"The compile cache in {folder} does not work ({reason}), so kernels are compiled anew, which takes seconds. "
                "If that comes again, remove the folder, make it writable, or set NUMBA_CACHE_DIR to another one",
                stacklevel=3,
            )
