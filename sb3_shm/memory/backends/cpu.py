"""The Hadamard recurrence for float32 tensors on the CPU, as one fused operation: numba kernels on torch's threads or ours."""

import torch as th
from torch.nn.functional import pad

from sb3_shm.memory.backends.cpu_threads import run
from sb3_shm.memory.backends.fused import fuse
from sb3_shm.memory.backends.inputs import BLOCK, HadamardInputs

CHUNK = 32  # steps between two kept M: the backward pass recomputes this many in the cache
LANES = 8  # H is padded to a multiple of it: the vector of AVX2, half of AVX-512's


def forward(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float, keep: bool
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    For t = 1..T, with M_{t-1} = 0 where an episode starts::

        z_t = theta_t ⊗ vc_t,   C_t = 1 + tanh(z_t)
        M_t = clamp(M_{t-1} ⊙ C_t + v_t ⊗ k_t)
        h_t = M_t q_t

    See :func:`sb3_shm.memory.backends.fused.fuse`.
    """
    from sb3_shm.memory.backends import cpu_kernels

    n, t, h = inputs.theta.shape
    out = th.empty_like(inputs.theta)
    memory = th.from_numpy(state.detach().numpy().copy())  # clone() would wake torch's threads, which a rollout step must not
    kept = state.new_empty((n, -(-t // CHUNK), h, h) if keep else (0, 0, 0, 0))
    theta, vc, v, k, q = inputs
    arguments = [
        *(_of_blocks(theta), vc, _of_blocks(v), k, q, episode_start, clip),
        *(_of_blocks(out), _blocks(memory), _blocks(kept)),
    ]
    run(cpu_kernels.forward(h, CHUNK), cpu_kernels.units(n, h), n * t * h * h, arguments)
    return out, memory, kept


def backward(
    inputs: HadamardInputs,
    episode_start: th.Tensor,
    kept: th.Tensor,
    dout: th.Tensor,
    dmemory: th.Tensor,
    clip: float,
) -> tuple[HadamardInputs, th.Tensor]:
    """
    Backwards in time, G being the gradient of M_T at first::

        G       += dh_t ⊗ q_t;     dq_t = M_tᵀ dh_t
        G        = 0               where M_t was clipped
        dv_t     = G k_t;          dk_t = Gᵀ v_t
        G        = G ⊙ C_t
        dz       = G ⊙ M_{t-1} ⊙ (2 - C_t)
        dtheta_t = dz vc_t;        dvc_t = dzᵀ theta_t
        G        = 0               where an episode starts

    Every 32 steps G is held within ±1e25, and what is below 1e-30 in it is 0, see ``inputs.LARGEST_GRADIENT``.

    C_t and M_t are not stored over time: M is kept at every 32nd step, and the backward pass computes the 32 steps of a chunk
    again, a block of M's rows at a time. A unit of work is 64 rows of one sequence's M, so sums over columns are complete in
    it, and the sums over rows (dvc, dk, dq) are added up over the units of a sequence at the end, always in the same order.
    """
    from sb3_shm.memory.backends import cpu_kernels

    n, t, h = inputs.theta.shape
    units = cpu_kernels.units(n, h)
    dmemory = dmemory.clone(memory_format=th.contiguous_format)
    dtheta, dv = th.empty_like(inputs.theta), th.empty_like(inputs.v)
    dvc, dk, dq = (inputs.theta.new_empty(units // n if n else 1, n, t, h) for _ in range(3))
    theta, vc, v, k, q = inputs
    arguments = [
        *(_of_blocks(theta), vc, _of_blocks(v), k, q, episode_start, clip),
        *(_blocks(kept), _of_blocks(dout.contiguous()), _blocks(dmemory)),
        *(_of_blocks(dtheta), dvc, _of_blocks(dv), dk, dq),
    ]
    run(cpu_kernels.backward(h, CHUNK), units, n * t * h * h, arguments)
    dvc, dk, dq = (sum(x[1:], start=x[0]) for x in (dvc, dk, dq))
    return HadamardInputs(dtheta, dvc, dv, dk, dq), dmemory


def _blocks(matrix: th.Tensor) -> th.Tensor:
    """:return: (..., H, H) as blocks of some rows one after the other"""
    h = matrix.shape[-1]
    return matrix.view(*matrix.shape[:-2], h // BLOCK, BLOCK * h)


def _of_blocks(x: th.Tensor) -> th.Tensor:
    """:return: (..., H) as what belongs to the rows of each block"""
    return x.view(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)


_recurrence = fuse("cpu", forward, backward, CHUNK)


def hadamard_recurrence(
    inputs: HadamardInputs, state: th.Tensor, episode_start: th.Tensor, clip: float | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    The fused recurrence, forward and backward; compiled at the first use of a memory size, for seconds, then cached on disk.

    The result depends neither on the number of threads nor on the other sequences, and T calls of one step equal one call.
    See :func:`sb3_shm.memory.hadamard.hadamard_recurrence`.
    """
    theta = inputs.theta
    if theta.dtype != th.float32 or theta.device.type != "cpu":
        raise ValueError(f"backend 'cpu' needs float32 tensors on the CPU, got {theta.dtype} on {theta.device}")
    h = theta.shape[2]
    extra = -h % LANES
    if extra:  # theta = vc = 0 gives C = 1, and k = v = q = 0 nothing to remember
        inputs = HadamardInputs(*(pad(x, (0, extra)) for x in inputs))
        state = pad(state, (0, extra, 0, extra))
    inputs = HadamardInputs(*(x.contiguous() for x in inputs))
    bound = float("inf") if clip is None else float(clip)
    out, memory = _recurrence(inputs, state.contiguous(), episode_start.contiguous(), bound)
    return (out[..., :h], memory[:, :h, :h]) if extra else (out, memory)
