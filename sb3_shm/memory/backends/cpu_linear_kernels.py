"""The loop of :mod:`sb3_shm.memory.backends.cpu_linear`, compiled by numba. Imported at the first use."""

from functools import cache

from sb3_shm.memory.backends.cpu_numba import Floats, Kernel
from sb3_shm.memory.backends.cpu_product import ROWS, add_tile, panel_size

PANEL = panel_size(4)  # columns of a tile
CHUNK = 128  # rows of a panel, which fit in the first cache


@cache
def products_over_rows() -> Kernel:
    """:return: the kernel: out[i, j] += Σ_n grad[n, i] x[n, j]; x has whole panels of columns. Rows are read as they lie"""

    # A unit of work are so many entries of each row of grad
    def linear_products_over_rows(grad: Floats, x: Floats, out: Floats, entries: int, start: int, stop: int) -> None:
        (n, n_out), n_in = grad.shape, x.shape[1]
        last = min(n_out, stop * entries)
        for begin in range(0, n, CHUNK):
            size = min(CHUNK, n - begin)
            for j in range(0, n_in, PANEL):
                for i in range(start * entries, last, ROWS):
                    rows, at = min(ROWS, last - i), i * n_in + j
                    add_tile(rows, size, grad, begin * n_out + i, 1, n_out, x, begin * n_in + j, n_in, out, at, n_in)

    return Kernel(linear_products_over_rows)
