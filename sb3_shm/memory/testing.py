"""The contract of a memory as one function, for the memories of this package and for anybody's own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

from sb3_shm.memory.base import Memory, State, map_state, state_tensors
from sb3_shm.memory.checks import check_in_range

N, T = 3, 12
START = 5  # the step at which the clause on starts begins an episode


class _Check:
    """One memory and what every clause does with it."""

    def __init__(self, memory: Memory, tolerance: float) -> None:
        self.memory = memory
        self.tolerance = tolerance
        parameter = next(memory.parameters(), th.zeros(()))
        self.like: dict[str, Any] = dict(dtype=parameter.dtype, device=parameter.device)

    def inputs(self, n: int, t: int) -> th.Tensor:
        return th.randn(n, t, self.memory.input_size, **self.like)

    def starts(self, n: int, t: int, probability: float) -> th.Tensor:
        return th.rand(n, t, device=self.like["device"]) < probability

    def running_state(self, n: int, t: int = 7) -> State:
        """A state in the middle of an episode."""
        with th.no_grad():
            _, state = self.memory(self.inputs(n, t), self.memory.initial_state(n), self.starts(n, t, 0))
        return state

    def steps(
        self, x: th.Tensor, state: State, starts: th.Tensor, context: th.Tensor | None, length: int
    ) -> tuple[th.Tensor, State]:
        """The same sequence in pieces of ``length`` steps."""
        outputs = []
        for begin in range(0, x.shape[1], length):
            part = slice(begin, begin + length)
            y, state = self.memory(x[:, part], state, starts[:, part], None if context is None else context[:, part])
            outputs.append(y)
        return th.cat(outputs, dim=1), state

    def same(self, what: str, one: th.Tensor, other: th.Tensor, slack: float = 1) -> None:
        """Close relative to the tensor's largest entry."""
        assert one.shape == other.shape, f"{what} have the shapes {tuple(one.shape)} and {tuple(other.shape)}"
        assert one.dtype == other.dtype, f"{what} are {one.dtype} and {other.dtype}"
        one, other = one.detach(), other.detach()
        if not one.is_floating_point():
            assert (one == other).all(), f"{what} differ"
            return
        bound = self.tolerance * slack * max(1.0, float(other.abs().max()) if other.numel() else 0.0)
        error = float((one - other).abs().max()) if other.numel() else 0.0
        assert error <= bound, f"{what} differ by {error:.2g}, more than {bound:.2g}"  # NaN <= bound is false, too

    def same_state(self, what: str, one: State, other: State) -> None:
        pairs = zip(state_tensors(one), state_tensors(other), strict=True)
        for i, (a, b) in enumerate(pairs):
            self.same(f"{what} (tensor {i})", a, b)


@contextmanager
def _clause(text: str) -> Iterator[None]:
    """Every failure says which clause it breaks, be it a comparison or an error that the memory raises."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"The memory breaks the clause '{text}': {type(error).__name__}: {error}") from error


def check_memory(memory: Memory, n_steps: int = 1000, tolerance: float = 1e-5, seed: int = 0) -> None:
    """
    Hold a memory to the contract of :class:`~sb3_shm.memory.Memory`, on random inputs, in the memory's own dtype and device.

    The clauses: shapes and dtypes, with one row and one step too; a call repeats itself and changes none of its arguments;
    one-step calls, and calls of any length, give the outputs, the state and the gradients of one call, wherever episodes
    start; rows do not influence each other; a start forgets everything, be it infinite; what is drawn can be replayed, and
    drawn deterministically; ``state_dict`` holds all that the outputs depend on; gradients through ``n_steps`` steps are
    finite. The global random generator is left as it was.

    :param memory: the memory, not changed
    :param n_steps: steps of the sequence whose gradients must be finite, at least 1
    :param tolerance: greatest difference relative to a tensor's largest entry (absolute below 1), above 0; gradients may
        differ by ten times as much
    :param seed: of the inputs
    :raises AssertionError: a clause is broken; the message says which, and how
    :raises ValueError: ``memory`` is no instance of Memory, ``n_steps`` or ``tolerance`` is out of range
    """
    if not isinstance(memory, Memory):
        raise ValueError(f"memory must be an instance of sb3_shm.memory.Memory, got {memory!r}")
    check_in_range("n_steps", n_steps, low=1, integer=True)
    check_in_range("tolerance", tolerance, above=0)
    check_in_range("seed", seed, low=0, integer=True)
    check = _Check(copy.deepcopy(memory), tolerance)
    with th.random.fork_rng(devices=[check.like["device"]] if check.like["device"].type == "cuda" else []):
        th.manual_seed(seed)
        _check_shapes(check)
        _check_context(check)
        _check_pure(check)
        for probability in (0.0, 0.3, 1.0):
            _check_steps(check, probability)
        _check_rows(check)
        _check_starts(check)
        _check_saving(check)
        _check_gradients(check, n_steps)


def _check_shapes(check: _Check) -> None:
    memory = check.memory
    with _clause("initial_state(n) is a nested tuple of tensors (n, ...), every row alike"):
        one, many = memory.initial_state(1), memory.initial_state(4)
        assert isinstance(one, tuple) and isinstance(many, tuple), f"got {type(one).__name__}"
        for i, (a, b) in enumerate(zip(state_tensors(one), state_tensors(many), strict=True)):
            assert isinstance(a, th.Tensor) and isinstance(b, th.Tensor), f"entry {i} is a {type(a).__name__}"
            assert a.dim() and b.dim() and len(a) == 1 and len(b) == 4, f"tensor {i} is {tuple(b.shape)} for n = 4"
            check.same(f"row of tensor {i} and those of four", a.expand_as(b), b)
    for n, t in ((1, 1), (N, 1), (1, T), (N, T)):
        with _clause(f"outputs are (N, T, output_size) and the state keeps its shapes and dtypes (N = {n}, T = {t})"):
            state = memory.initial_state(n)
            for starts in (check.starts(n, t, 0), check.starts(n, t, 1)):
                x = check.inputs(n, t)
                y, after = memory(x, state, starts)
                assert y.shape == (n, t, memory.output_size), f"outputs are {tuple(y.shape)}"
                assert y.dtype == x.dtype, f"outputs are {y.dtype} for inputs of {x.dtype}"
                map_state(_same_kind, after, state)
    with _clause("state_size() counts the floats of one row"):
        floats = [tensor for tensor in state_tensors(memory.initial_state(1)) if tensor.is_floating_point()]
        assert memory.state_size() == sum(tensor.numel() for tensor in floats), f"got {memory.state_size()}"


def _same_kind(after: th.Tensor, before: th.Tensor) -> None:
    assert after.shape == before.shape, f"a state of {tuple(before.shape)} became {tuple(after.shape)}"
    assert after.dtype == before.dtype, f"a state of {before.dtype} became {after.dtype}"


def _check_context(check: _Check) -> None:
    memory = check.memory
    state, starts = check.running_state(N), check.starts(N, T, 0.2)
    with _clause("draw_context gives (N, T, context_size) uint8, None if context_size is 0"):
        shape = (N, T, memory.context_size)
        context = memory.draw_context(state, starts)
        if memory.context_size == 0:
            assert context is None, "context_size is 0, but something was drawn"
            return
        assert context is not None and context.shape == shape and context.dtype == th.uint8, f"got {context!r}"
    with _clause("a deterministic context depends on the step within the episode alone"):
        whole = memory.draw_context(state, starts, deterministic=True)
        assert whole is not None and whole.shape == shape and whole.dtype == th.uint8, f"got {whole!r}"
        pieces, x = [], check.inputs(N, T)
        for i in range(T):
            step = slice(i, i + 1)
            piece = memory.draw_context(state, starts[:, step], deterministic=True)
            assert piece is not None
            pieces.append(piece)
            _, state = memory(x[:, step], state, starts[:, step], piece)
        check.same("contexts drawn at once and step by step", th.cat(pieces, dim=1), whole)


def _check_pure(check: _Check) -> None:
    memory = check.memory
    x, state, starts = check.inputs(N, T), check.running_state(N), check.starts(N, T, 0.2)
    context = memory.draw_context(state, starts)
    kept = x.clone(), map_state(th.clone, state), starts.clone()
    with th.no_grad():
        y, after = memory(x, state, starts, context)
        with _clause("a call changes none of its arguments"):
            check.same("x before and after", x, kept[0])
            check.same_state("states before and after", state, kept[1])
            check.same("episode_start before and after", starts, kept[2])
        with _clause("the same call gives the same outputs and state"):
            y_again, after_again = memory(x, state, starts, context)
            check.same("outputs of two equal calls", y, y_again)
            check.same_state("states of two equal calls", after, after_again)


def _check_steps(check: _Check, probability: float) -> None:
    memory = check.memory
    state, starts = check.running_state(N), check.starts(N, T, probability)
    context = memory.draw_context(state, starts)
    x = check.inputs(N, T).requires_grad_()
    sources = [x, *(parameter for parameter in memory.parameters() if parameter.requires_grad)]
    weights = th.randn(N, T, memory.output_size, **check.like)
    y, after = memory(x, state, starts, context)
    gradients = th.autograd.grad((y * weights).sum(), sources, allow_unused=True, materialize_grads=True)
    for length in (1, 5):
        with _clause(f"calls with {length} of {T} steps each equal one call (starts with probability {probability})"):
            y_steps, after_steps = check.steps(x, state, starts, context, length)
            check.same("outputs", y_steps, y)
            check.same_state("states", after_steps, after)
            loss = (y_steps * weights).sum()
            step_gradients = th.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
            for i, (one, other) in enumerate(zip(step_gradients, gradients, strict=True)):
                check.same("gradients of the inputs" if i == 0 else f"gradients of parameter {i - 1}", one, other, slack=10)


def _check_rows(check: _Check) -> None:
    memory = check.memory
    x, state, starts = check.inputs(N, T), check.running_state(N), check.starts(N, T, 0.2)
    context = memory.draw_context(state, starts)
    with th.no_grad(), _clause("rows do not influence each other"):
        y, after = memory(x, state, starts, context)
        for rows in ([2, 0], [1]):
            of_rows = None if context is None else context[rows]
            y_rows, after_rows = memory(x[rows], map_state(lambda s, rows=rows: s[rows], state), starts[rows], of_rows)
            check.same(f"outputs of rows {rows} alone and among {N}", y_rows, y[rows])
            check.same_state("states", after_rows, map_state(lambda s, rows=rows: s[rows], after))


def _check_starts(check: _Check) -> None:
    memory = check.memory
    x, state, starts = check.inputs(N, T), check.running_state(N), check.starts(N, T, 0)
    starts[:, START] = True
    context = memory.draw_context(state, starts)
    rest = None if context is None else context[:, START:]
    with th.no_grad():
        with _clause("where episode_start is true the state before the step is the initial one"):
            y, after = memory(x, state, starts, context)
            y_fresh, after_fresh = memory(x[:, START:], memory.initial_state(N), starts[:, START:] & False, rest)
            check.same("outputs after a start and from the initial state", y[:, START:], y_fresh)
            check.same_state("states", after, after_fresh)
        with _clause("a start forgets even an infinite state (select with torch.where, inf * 0 is NaN)"):
            spoiled = map_state(lambda s: th.full_like(s, float("inf")) if s.is_floating_point() else s, state)
            for begin in (0, START):  # a start at the first step of a call, and one inside it
                later = None if context is None else context[:, begin:]
                moved = starts[:, begin:].clone()
                moved[:, 0] |= begin == START
                y_spoiled, after_spoiled = memory(x[:, begin:], spoiled, moved, later)
                check.same("outputs after a start", y_spoiled[:, START - begin :], y_fresh)
                check.same_state("states", after_spoiled, after_fresh)


def _check_saving(check: _Check) -> None:
    memory = check.memory
    x, state, starts = check.inputs(N, T), check.running_state(N), check.starts(N, T, 0.2)
    context = memory.draw_context(state, starts, deterministic=True)
    with th.no_grad(), _clause("state_dict holds all that the outputs depend on"):
        twin = copy.deepcopy(memory)
        # A twin with other weights, and with other tensors that hang on modules as plain attributes: those are not saved
        loose = [value for module in twin.modules() for value in vars(module).values() if isinstance(value, th.Tensor)]
        for tensor in [*twin.state_dict().values(), *loose]:
            tensor.copy_(th.rand(tensor.shape, device=tensor.device) * 5)
        twin.load_state_dict(memory.state_dict())
        again = twin.draw_context(state, starts, deterministic=True)
        assert (context is None) == (again is None), "only one of the two has a context"
        if context is not None and again is not None:
            check.same("deterministic contexts", again, context)
        y, after = memory(x, state, starts, context)
        y_twin, after_twin = twin(x, state, starts, again)
        check.same("outputs before and after loading", y_twin, y)
        check.same_state("states", after_twin, after)


def _check_gradients(check: _Check, n_steps: int) -> None:
    memory = check.memory
    with _clause(f"gradients through {n_steps} steps are finite"):
        x = check.inputs(2, n_steps).requires_grad_()
        state = map_state(lambda s: s.detach().clone().requires_grad_(s.is_floating_point()), memory.initial_state(2))
        starts = check.starts(2, n_steps, 0)
        starts[1] = check.starts(1, n_steps, 0.01)[0]  # one row is a single episode
        y, _ = memory(x, state, starts)
        assert th.isfinite(y).all(), "the outputs are not"
        (y.square().mean() + y[:, -1].sum()).backward()
        sources = {"the inputs": x, **dict(memory.named_parameters())}
        sources.update({f"state tensor {i}": tensor for i, tensor in enumerate(state_tensors(state))})
        for name, tensor in sources.items():
            assert tensor.grad is None or th.isfinite(tensor.grad).all(), f"that of {name} is not"
