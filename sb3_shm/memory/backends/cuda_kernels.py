"""
The kernels of :mod:`sb3_shm.memory.backends.cuda`, compiled by triton. Imported at the first use: triton may not be there.

One program walks through one segment of one sequence's steps with a few rows of M, ``ROWS`` of them and all columns, padded
to a power of two, ``COLS``. M is kept at every ``CHUNK``th step, from where the backward pass computes the steps between
again, into scratch memory of so few of them that the GPU's cache holds it.
"""

import triton
import triton.language as tl

from sb3_shm.memory.backends import reference

LARGEST = tl.constexpr(3e38)  # where products are held: infinity times 0 would be NaN
LARGEST_GRADIENT = tl.constexpr(reference.LARGEST_GRADIENT)


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
    theta_at, vc_at, v_at, k_at, q_at, start_at, entry_at, clip, out_at, end_at, kept_at, product_at, low_at, high_at,
    n_steps, h, segment_steps, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr,
    SUMMARY: tl.constexpr,
):  # fmt: skip
    """
    All steps of a segment, from the M that enters it.

    SUMMARY: what a segment does to any M that enters it, M -> clamp(product ⊙ M + end, low, high). A step is of that form,
    and as C is not negative, so are two: clamping by both bounds and multiplying by C may change places.
    """
    n, group, segment = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows, cols = group * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    is_row, is_col = rows < h, cols < h
    matrix, is_entry = rows[:, None] * h + cols[None, :], is_row[:, None] & is_col[None, :]
    here = (n * tl.num_programs(2) + segment) * h * h + matrix
    if SUMMARY:
        m = tl.zeros((ROWS, COLS), tl.float32)
        product = m + 1.0
        low, high = m - LARGEST, m + LARGEST
        bound = tl.minimum(clip, LARGEST)
    else:
        m = _load(entry_at, here, is_entry)
    first = segment * segment_steps
    for t in range(first, tl.minimum(first + segment_steps, n_steps)):
        step = n * n_steps + t
        start = tl.load(start_at + step) != 0
        theta, v = _load(theta_at, step * h + rows, is_row), _load(v_at, step * h + rows, is_row)
        vc, k = _load(vc_at, step * h + cols, is_col), _load(k_at, step * h + cols, is_col)
        if KEEP and t % CHUNK == 0:
            kept = (n * tl.cdiv(n_steps, CHUNK) + t // CHUNK) * h * h + matrix
            tl.store(kept_at + kept, m, mask=is_entry)
        c, u = _calibration(theta, vc), v[:, None] * k[None, :]
        m = tl.where(start, 0.0, m) * c + u
        if SUMMARY:
            m = _clamp(m, -LARGEST, LARGEST)
            product = _clamp(tl.where(start, 0.0, product) * c, 0.0, LARGEST)
            low = _clamp(tl.where(start, 0.0, low) * c + u, -bound, bound)
            high = _clamp(tl.where(start, 0.0, high) * c + u, -bound, bound)
        else:
            m = _clamp(m, -clip, clip)
            q = _load(q_at, step * h + cols, is_col)
            tl.store(out_at + step * h + rows, tl.sum(m * q[None, :], axis=1), mask=is_row)
    tl.store(end_at + here, m, mask=is_entry)
    if SUMMARY:
        tl.store(product_at + here, product, mask=is_entry)
        tl.store(low_at + here, low, mask=is_entry)
        tl.store(high_at + here, high, mask=is_entry)


@triton.jit
def backward(
    theta_at, vc_at, v_at, k_at, q_at, start_at, kept_at, dout_at, entry_at, clip, scratch_at,
    dtheta_at, dvc_at, dv_at, dk_at, dq_at, end_at, product_at,
    n_steps, h, segment_steps, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, SUMMARY: tl.constexpr,
):  # fmt: skip
    """
    All gradients of a segment, from the G that enters it at its last step; equations: :func:`.cuda.backward`.

    SUMMARY: what a segment does to any G that enters it, G -> product ⊙ G + end.
    """
    n, group, segment = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows, cols = group * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    is_row, is_col = rows < h, cols < h
    matrix, is_entry = rows[:, None] * h + cols[None, :], is_row[:, None] & is_col[None, :]
    here = (n * tl.num_programs(2) + segment) * h * h + matrix
    # dvc, dk, dq are sums over rows: those of this group
    part = group.to(tl.int64) * tl.num_programs(0) * n_steps * h
    if SUMMARY:
        g = tl.zeros((ROWS, COLS), tl.float32)
        product = g + 1.0
    else:
        g = _load(entry_at, here, is_entry)
    first = segment * segment_steps
    last = tl.minimum(first + segment_steps, n_steps)
    scratch = scratch_at + (n * tl.num_programs(2) + segment) * CHUNK * h * h + matrix
    chunks = tl.cdiv(last - first, CHUNK)
    for i in range(chunks):
        begin = first + (chunks - 1 - i) * CHUNK
        end = tl.minimum(begin + CHUNK, last)
        if i > 0:
            g = _clamp(g, -LARGEST_GRADIENT, LARGEST_GRADIENT)
        m = _load(kept_at, (n * tl.cdiv(n_steps, CHUNK) + begin // CHUNK) * h * h + matrix, is_entry)
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
            start = tl.load(start_at + step) != 0
            theta, v, dout = _load(theta_at, row, is_row), _load(v_at, row, is_row), _load(dout_at, row, is_row)
            vc, k, q = _load(vc_at, col, is_col), _load(k_at, col, is_col), _load(q_at, col, is_col)
            before = _load(scratch, (t - begin) * h * h, is_entry)
            c = _calibration(theta, vc)
            after = before * c + v[:, None] * k[None, :]
            is_clipped = tl.abs(after) > clip
            g = tl.where(is_clipped, 0.0, g + dout[:, None] * q[None, :])
            if SUMMARY:
                product = _clamp(tl.where(is_clipped | start, 0.0, product * c), 0.0, LARGEST)
            else:
                dq = tl.sum(dout[:, None] * _clamp(after, -clip, clip), axis=0)
                tl.store(dq_at + part + col, dq, mask=is_col)
                tl.store(dk_at + part + col, tl.sum(g * v[:, None], axis=0), mask=is_col)
                tl.store(dv_at + row, tl.sum(g * k[None, :], axis=1), mask=is_row)
                dz = g * c * before * (2.0 - c)  # dC/dz = C (2 - C)
                tl.store(dvc_at + part + col, tl.sum(dz * theta[:, None], axis=0), mask=is_col)
                tl.store(dtheta_at + row, tl.sum(dz * vc[None, :], axis=1), mask=is_row)
            g = tl.where(start, 0.0, g * c)
    tl.store(end_at + here, g, mask=is_entry)
    if SUMMARY:
        tl.store(product_at + here, product, mask=is_entry)


@triton.jit
def carry(
    state_at, product_at, end_at, low_at, high_at, entry_at, segments, size, BLOCK: tl.constexpr, REVERSE: tl.constexpr
):  # fmt: skip
    """What enters each segment, from the summaries of those before it, or after it for gradients, which have no bounds."""
    n = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    m = _load(state_at, n * size + offsets, mask)
    for i in range(segments):
        segment = segments - 1 - i if REVERSE else i
        here = (n * segments + segment) * size + offsets
        tl.store(entry_at + here, m, mask=mask)
        product, end = _load(product_at, here, mask), _load(end_at, here, mask)
        m = tl.where(product == 0, end, product * m + end)  # a start forgets inf and NaN, too
        if REVERSE:
            m = _clamp(m, -LARGEST_GRADIENT, LARGEST_GRADIENT)
        else:
            m = _clamp(m, _load(low_at, here, mask), _load(high_at, here, mask))
