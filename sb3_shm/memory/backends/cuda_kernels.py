"""
The kernels of :mod:`sb3_shm.memory.backends.cuda`, compiled by triton. Imported at the first use: triton may not be there.

One program walks through one sequence's steps with a few rows of M, ``ROWS`` of them and all columns, padded to a power of
two, ``COLS``. M is kept at every ``CHUNK``th step, from where the backward pass computes the steps between
again, into scratch memory of so few of them that the GPU's cache holds it.
"""

import triton
import triton.language as tl

from sb3_shm.memory.backends import inputs

LARGEST_GRADIENT = tl.constexpr(inputs.LARGEST_GRADIENT)


@triton.jit
def _load(pointer, offsets, mask):
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def _calibration(theta, vc):
    """1 + tanh(z) = 2 / (1 + exp(-2z)); exactly 1 at z = 0, never inf, NaN for NaN."""
    return 2.0 / (1.0 + tl.exp(-2.0 * theta[:, None] * vc[None, :]))


@triton.jit
def _clamp(x, low, high):
    """NaN stays NaN."""
    return tl.where(x > high, high, tl.where(x < low, low, x))


@triton.jit
def forward(
    theta_at, vc_at, v_at, k_at, q_at, start_at, state_at, clip, out_at, end_at, kept_at,
    n_steps, h, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """All steps, from the state."""
    n, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, cols = group * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    is_row, is_col = rows < h, cols < h
    matrix, is_entry = rows[:, None] * h + cols[None, :], is_row[:, None] & is_col[None, :]
    m = _load(state_at, n * h * h + matrix, is_entry)
    for t in range(n_steps):
        step = n * n_steps + t
        start = tl.load(start_at + step) != 0
        theta, v = _load(theta_at, step * h + rows, is_row), _load(v_at, step * h + rows, is_row)
        vc, k = _load(vc_at, step * h + cols, is_col), _load(k_at, step * h + cols, is_col)
        if KEEP and t % CHUNK == 0:
            kept = (n * tl.cdiv(n_steps, CHUNK) + t // CHUNK) * h * h + matrix
            tl.store(kept_at + kept, m, mask=is_entry)
        m = _clamp(tl.where(start, 0.0, m) * _calibration(theta, vc) + v[:, None] * k[None, :], -clip, clip)
        q = _load(q_at, step * h + cols, is_col)
        tl.store(out_at + step * h + rows, tl.sum(m * q[None, :], axis=1), mask=is_row)
    tl.store(end_at + n * h * h + matrix, m, mask=is_entry)


@triton.jit
def backward(
    theta_at, vc_at, v_at, k_at, q_at, start_at, kept_at, dout_at, dmemory_at, clip, scratch_at,
    dtheta_at, dvc_at, dv_at, dk_at, dq_at, dstate_at,
    n_steps, h, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """All gradients, from that of the last M; equations: :func:`.cuda.backward`."""
    n, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, cols = group * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    is_row, is_col = rows < h, cols < h
    matrix, is_entry = rows[:, None] * h + cols[None, :], is_row[:, None] & is_col[None, :]
    # dvc, dk, dq are sums over rows: those of this group
    part = group.to(tl.int64) * tl.num_programs(0) * n_steps * h
    g = _load(dmemory_at, n * h * h + matrix, is_entry)
    scratch = scratch_at + n * CHUNK * h * h + matrix
    chunks = tl.cdiv(n_steps, CHUNK)
    for i in range(chunks):
        begin = (chunks - 1 - i) * CHUNK
        end = tl.minimum(begin + CHUNK, n_steps)
        if i > 0:
            g = _clamp(g, -LARGEST_GRADIENT, LARGEST_GRADIENT)
        m = _load(kept_at, (n * chunks + begin // CHUNK) * h * h + matrix, is_entry)
        tl.debug_barrier()  # other threads may still read the scratch of the chunk before
        for t in range(begin, end):
            step = n * n_steps + t
            theta, v = _load(theta_at, step * h + rows, is_row), _load(v_at, step * h + rows, is_row)
            vc, k = _load(vc_at, step * h + cols, is_col), _load(k_at, step * h + cols, is_col)
            m = tl.where(tl.load(start_at + step) != 0, 0.0, m)
            tl.store(scratch + (t - begin) * h * h, m, mask=is_entry)
            m = _clamp(m * _calibration(theta, vc) + v[:, None] * k[None, :], -clip, clip)
        tl.debug_barrier()
        for r in range(end - begin):
            t = end - 1 - r
            step = n * n_steps + t
            row, col = step * h + rows, step * h + cols
            theta, v, dout = _load(theta_at, row, is_row), _load(v_at, row, is_row), _load(dout_at, row, is_row)
            vc, k, q = _load(vc_at, col, is_col), _load(k_at, col, is_col), _load(q_at, col, is_col)
            before = _load(scratch, (t - begin) * h * h, is_entry)
            c = _calibration(theta, vc)
            after = before * c + v[:, None] * k[None, :]
            dq = tl.sum(dout[:, None] * _clamp(after, -clip, clip), axis=0)
            tl.store(dq_at + part + col, dq, mask=is_col)
            g = tl.where(tl.abs(after) > clip, 0.0, g + dout[:, None] * q[None, :])
            tl.store(dk_at + part + col, tl.sum(g * v[:, None], axis=0), mask=is_col)
            tl.store(dv_at + row, tl.sum(g * k[None, :], axis=1), mask=is_row)
            dz = g * c * before * (2.0 - c)  # dC/dz = C (2 - C)
            tl.store(dvc_at + part + col, tl.sum(dz * theta[:, None], axis=0), mask=is_col)
            tl.store(dtheta_at + row, tl.sum(dz * vc[None, :], axis=1), mask=is_row)
            g = tl.where(tl.load(start_at + step) != 0, 0.0, g * c)
    tl.store(dstate_at + n * h * h + matrix, g, mask=is_entry)
