"""Diagonal linear recurrences in parallel over time: what FFM, LRU and S6 share."""

from typing import Any

import torch as th

from sb3_shm.memory.backends.plain import is_transformed, once_differentiable

_LOOP = 4  # so few steps are faster one by one


def linear_scan(a: th.Tensor, b: th.Tensor, state: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
    """
    All states of a diagonal linear recurrence that starts again where episodes do::

        h_t = a_t ⊙ h_{t-1} + b_t,   with 0 in place of h_{t-1} where episode_start_t

    An associative scan (Blelloch, 1990; Martin and Cundy, 2018, arXiv 1709.04057): pairs of steps are one step of a recurrence
    of half the length, so that depth grows with log T and work with T. Nothing is divided by products of ``a``, and a start
    selects instead of multiplying by 0: it forgets infinite states, too. The backward pass is the same scan in reverse.
    Products of real factors that overflow are held at the largest float.

    :param a: factors, (N, T, ...), or (1, 1, ...) if they are the same at each step; real or complex, as ``b``. Complex ones
        within the unit circle, where no product overflows, however long the sequence
    :param b: inputs, (N, T, ...)
    :param state: h_0, (N, ...)
    :param episode_start: (N, T) bool
    :return: h_1 to h_T, (N, T, ...)
    :raises ValueError: shapes or dtypes that do not fit
    """
    n, t = b.shape[:2]
    rest = b.shape[2:]
    if t == 0 or a.dim() != b.dim() or a.shape[2:] != rest or a.shape[:2] not in ((n, t), (1, 1)):
        raise ValueError(
            f"a must have the shape of b, with T >= 1, or {(1, 1, *rest)}; got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if state.shape != (n, *rest) or episode_start.shape != (n, t):
        raise ValueError(
            f"state and episode_start must have the shapes {(n, *rest)} and {(n, t)}, "
            f"got {tuple(state.shape)} and {tuple(episode_start.shape)}"
        )
    if not a.dtype == b.dtype == state.dtype or episode_start.dtype != th.bool:
        raise ValueError(
            f"a, b and state must have one dtype and episode_start be bool, got {a.dtype}, {b.dtype}, {state.dtype} "
            f"and {episode_start.dtype}"
        )
    start = episode_start.view(n, t, *[1] * len(rest))
    if t == 1:  # acting: as few operations as possible
        return th.addcmul(b, a, th.where(start, 0, state.unsqueeze(1)))
    if not th.compiler.is_compiling() and is_transformed():  # where torch wants its own operations
        return _forward(a, b, state, start)
    result: th.Tensor = _LinearScan.apply(a, b, state, start)  # type: ignore[no-untyped-call]
    return result


def rotating_scan(size: th.Tensor, angle: th.Tensor, b: th.Tensor, state: th.Tensor, episode_start: th.Tensor) -> th.Tensor:
    """
    :func:`linear_scan` with the constant complex factors ``size * exp(i angle)``, complex numbers as pairs of real ones.

    :param size: (...), or a shape that broadcasts to it with ``angle``
    :param angle: in radians, as ``size``
    :param b: real and imaginary parts of the inputs, (N, T, ..., 2)
    :param state: those of h_0, (N, ..., 2)
    :param episode_start: (N, T) bool
    :return: those of h_1 to h_T, (N, T, ..., 2)
    """
    if b.shape[1] == 1:  # acting; without complex numbers, which ONNX does not have
        before = th.where(episode_start.view(-1, *[1] * (b.dim() - 1)), 0, state.unsqueeze(1))
        real, imaginary = before.unbind(-1)
        cos, sin = size * angle.cos(), size * angle.sin()
        return b + th.stack((cos * real - sin * imaginary, sin * real + cos * imaginary), dim=-1)
    factor = th.polar(size, angle).expand(1, 1, *b.shape[2:-1])
    return th.view_as_real(linear_scan(factor, th.view_as_complex(b), th.view_as_complex(state.contiguous()), episode_start))


def _forward(a: th.Tensor, b: th.Tensor, state: th.Tensor, start: th.Tensor) -> th.Tensor:
    first = _step(a[:, :1], state.unsqueeze(1), b[:, :1], start[:, :1])
    return _scan(a, th.cat((first, b[:, 1:]), dim=1), start)


class _LinearScan(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: th.Tensor, b: th.Tensor, state: th.Tensor, start: th.Tensor) -> th.Tensor:
        h = _forward(a, b, state, start)
        ctx.save_for_backward(a, h, state, start)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: th.Tensor) -> tuple[th.Tensor | None, ...]:
        a, h, state, start = ctx.saved_tensors
        # The gradient g of b: g_t = grad_h_t + conj(a_{t+1}) g_{t+1}, nothing from beyond a start or the end
        a_conj = a.conj().resolve_conj()
        is_constant = a.shape[1] == 1
        later_start = th.cat((start[:, 1:], th.ones_like(start[:, :1])), dim=1)
        later_a = a_conj if is_constant else th.cat((a_conj[:, 1:], a_conj[:, :1]), dim=1).flip(1)
        grad_b = _scan(later_a, grad_h.flip(1), later_start.flip(1)).flip(1)
        grad_a = grad_state = None
        if ctx.needs_input_grad[0]:
            before = th.cat((state.unsqueeze(1), h[:, :-1]), dim=1).conj()
            grad_a = th.where(start, 0, grad_b * before)
            if is_constant:
                grad_a = grad_a.sum(dim=(0, 1), keepdim=True)
        if ctx.needs_input_grad[2]:
            grad_state = th.where(start[:, 0], 0, grad_b[:, 0] * a_conj[:, 0])
        return grad_a, grad_b, grad_state, None


def _step(a: th.Tensor, before: th.Tensor, b: th.Tensor, start: th.Tensor) -> th.Tensor:
    """One step, for any number of them that do not follow each other."""
    return th.where(start, b, th.addcmul(b, a, before))


def _scan(a: th.Tensor, b: th.Tensor, start: th.Tensor) -> th.Tensor:
    """All states from the state 0; see :func:`linear_scan`, ``start`` with as many dimensions as ``b``."""
    t = b.shape[1]
    is_constant = a.shape[1] == 1
    if t <= _LOOP:
        steps = [b[:, :1]]
        for i in range(1, t):
            at_i = slice(i, i + 1)
            steps.append(_step(a if is_constant else a[:, at_i], steps[-1], b[:, at_i], start[:, at_i]))
        return th.cat(steps, dim=1)
    # Steps 0 and 1, 2 and 3, ... become one each; what is left over at an odd T waits.
    paired = slice(0, t - t % 2, 2)
    a_odd = a if is_constant else a[:, 1::2]
    a_pair = a * a if is_constant else a[:, paired] * a_odd
    if not a_pair.is_complex():  # a product beyond the range of floats must not make NaN of a state that is 0
        largest = th.finfo(a_pair.dtype).max
        a_pair = a_pair.clamp_(-largest, largest)
    b_pair = _step(a_odd, b[:, paired], b[:, 1::2], start[:, 1::2])
    h = th.empty_like(b)
    h[:, 1::2] = odd = _scan(a_pair, b_pair, start[:, paired] | start[:, 1::2])
    h[:, :1] = b[:, :1]
    later = slice(2, None, 2)
    h[:, later] = _step(a if is_constant else a[:, later], odd[:, : (t - 1) // 2], b[:, later], start[:, later])
    return h
