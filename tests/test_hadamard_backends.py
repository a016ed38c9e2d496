"""The recurrence by the other backends. triton's kernels run on a GPU if there is one, else in triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recurrences import NAMES, assert_close_to_reference, assert_equal, make_inputs, recurrence, run
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO
from sb3_shm.memory import hadamard
from sb3_shm.memory.backends import cuda
from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.hadamard import BACKENDS
from sb3_shm.memory.shm import SHM

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning:triton")
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
OTHERS = ["scan", pytest.param("cuda", marks=needs_triton)]
DEVICE = th.device("cuda" if th.cuda.is_available() else "cpu")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    t=st.sampled_from((1, 2, 5, 32, 33)),
    h=st.sampled_from((1, 3, 16, 24)),
    resets=st.sampled_from((0.0, 0.1, 1.0)),
    seed=st.integers(0, 1000),
)
@example(n=1, t=300, h=5, resets=0.02, seed=0)
def test_scan_matches_reference(n: int, t: int, h: int, resets: float, seed: int) -> None:
    inputs = make_inputs(n, t, h, seed, resets)
    assert_close_to_reference(run(*inputs, backend="scan"), *inputs, None)


@needs_triton
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 2),
    t=st.sampled_from((1, 2, 16, 17)),
    h=st.sampled_from((1, 3, 9, 16)),
    clip=st.sampled_from((None, 0.7)),
    resets=st.sampled_from((0.0, 0.1, 1.0)),
    seed=st.integers(0, 1000),
)
@example(n=1, t=2, h=130, clip=None, resets=0.0, seed=0)  # sums over groups of rows
@example(n=1, t=1, h=1, clip=0.3, resets=0.0, seed=0)
def test_triton_matches_reference(n: int, t: int, h: int, clip: float | None, resets: float, seed: int) -> None:
    inputs = make_inputs(n, t, h, seed, resets)
    assert_close_to_reference(run(*inputs, clip, "cuda"), *inputs, clip)


@needs_triton
@pytest.mark.parametrize(("clip", "resets"), [(None, 0.05), (0.3, 0.0), (2.0, 0.05)])
def test_triton_in_chunks(clip: float | None, resets: float) -> None:
    """Of 16 steps, the last of them shorter; M_0 is beyond the smaller clip."""
    inputs = make_inputs(2, 35, 5, resets=resets)
    assert_close_to_reference(run(*inputs, clip, "cuda"), *inputs, clip)


@needs_triton
def test_triton_clips_exactly() -> None:
    """Multiples of 1/8 with C = 1 have no rounding: entries exactly at the bound, and an M_0 beyond it, as in clamp."""
    generator = th.Generator().manual_seed(0)
    tensors = [th.randint(-4, 5, shape, generator=generator) / 8 for shape in [(1, 40, 6)] * 5 + [(1, 6, 6)]]
    tensors[0].zero_()
    tensors[5] *= 8
    episode_start = th.zeros(1, 40, dtype=th.bool)
    result, expected = run(tensors, episode_start, 0.5, "cuda"), run(tensors, episode_start, 0.5, "reference")
    for name in NAMES:
        th.testing.assert_close(result[name], expected[name], rtol=1e-5, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("backend", "z"),
    [*(("scan", z) for z in (1e4, -1e4, 20.0, -20.0)), *(pytest.param("cuda", z, marks=needs_triton) for z in (1e4, -20.0))],
)
def test_saturated_gates(backend: str, z: float) -> None:
    """Products of C leave the range of floats, but no M does."""
    tensors, episode_start = make_inputs(1, 160 if backend == "cuda" else 2000, 3, resets=0)
    episode_start[:, 140::80] = True
    tensors[0].fill_(z)
    tensors[1].fill_(1.0)
    for x in (*tensors[3:5], tensors[5]):
        x[:, :140] = 0  # for 140 steps nothing is remembered, nor read
    result, expected = run(tensors, episode_start, None, backend), run(tensors, episode_start, None, "reference")
    for name in NAMES:
        assert expected[name].isfinite().all(), name
        # 1e-6: for z < -9, C is 0 in the reference, but not in the kernel
        tolerance = 1e-3 * expected[name].abs().max().item() + 1e-6
        th.testing.assert_close(result[name], expected[name], rtol=0, atol=tolerance, msg=name)


def test_product_of_all_gates_is_accurate() -> None:
    theta, vc = make_inputs(1, 4000, 16)[0][:2]
    theta[:, 1::2] = -theta[:, ::2]  # each gate is followed by the opposite one, else the product would vanish
    vc[:, 1::2] = vc[:, ::2]
    zeros, start = th.zeros(1, 4000, 16), th.zeros(1, 4000, dtype=th.bool)
    arguments = (theta * 0.1, vc, zeros, zeros, zeros, th.ones(1, 16, 16))
    expected = recurrence(*(x.double() for x in arguments), start, backend="reference")[1]
    assert expected.min() > 1e-6
    result = recurrence(*arguments, start, backend="scan")[1]
    th.testing.assert_close(result.double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("backend", OTHERS)
def test_reset_forgets_inf_and_nan(backend: str) -> None:
    tensors, _ = make_inputs(2, 35, 4)
    episode_start = th.zeros(2, 35, dtype=th.bool)
    episode_start[:, 0] = episode_start[:, 33] = True
    tensors[5][0], tensors[5][1] = float("inf"), float("nan")
    result = run(tensors, episode_start, backend=backend)
    for name in NAMES:
        assert result[name].isfinite().all(), name
    assert (result["dstate"] == 0).all()


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("which", range(6))
def test_nan_reaches_the_output(backend: str, which: int) -> None:
    tensors, _ = make_inputs(2, 18, 4, resets=0)
    tensors[which][0, 0] = float("nan")
    out = run(tensors, th.zeros(2, 18, dtype=th.bool), None if backend == "scan" else 1.0, backend)["h"]
    assert out[0].isnan().any()
    assert out[0, 17].isnan().any() or which == 4, "of q alone the memory knows nothing"
    assert out[1].isfinite().all()


@needs_triton
def test_steps_equal_one_sequence_and_batches_their_rows() -> None:
    tensors, episode_start = make_inputs(2, 17, 9)
    together = run(tensors, episode_start, 1.0, "cuda")
    alone = run([x[1:] for x in tensors], episode_start[1:], 1.0, "cuda")
    assert_equal({name: x[1:] for name, x in together.items()}, alone)
    state = tensors[5]
    for t in range(17):
        at_t = slice(t, t + 1)
        step = run([*(x[:, at_t] for x in tensors[:5]), state], episode_start[:, at_t], 1.0, "cuda")
        state = step["M_T"]
        assert th.equal(step["h"][:, 0], together["h"][:, t]), t
    assert th.equal(state, together["M_T"])


@pytest.mark.parametrize("backend", OTHERS)
def test_inputs_are_left_alone_in_any_layout(backend: str) -> None:
    tensors, episode_start = make_inputs(2, 5, 4)
    strided = [x.mT.contiguous().mT for x in tensors]
    assert_equal(run(strided, episode_start.T.contiguous().T, None, backend), run(tensors, episode_start, None, backend))
    assert all(map(th.equal, tensors, make_inputs(2, 5, 4)[0]))


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto", *OTHERS])
@pytest.mark.parametrize("dtype", [th.float16, th.bfloat16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: th.dtype) -> None:
    tensors, episode_start = make_inputs(2, 20, 5)
    halves = [x.to(dtype) for x in tensors[:5]]
    expected = run([*(x.float() for x in halves), tensors[5]], episode_start, None, "cpu")
    result = run([*halves, tensors[5]], episode_start, None, backend)
    for name in NAMES:
        assert result[name].dtype == (th.float32 if name in ("M_T", "dstate") else dtype), name
        if name in ("h", "M_T"):  # h is rounded once, and not the loss that is made of it
            th.testing.assert_close(result[name], expected[name].to(result[name].dtype), rtol=1e-2, atol=1e-4)
        else:
            tolerance = 2e-2 * expected[name].abs().max().item()
            th.testing.assert_close(result[name].float(), expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto", *OTHERS])
def test_autocast_leaves_the_recurrence_in_float32(backend: str) -> None:
    tensors, episode_start = make_inputs(2, 20, 5)
    tensors[1] = tensors[1].bfloat16()  # as a linear layer gives it out
    wide = [x.float().to(DEVICE) for x in tensors]
    expected, memory = recurrence(*wide, episode_start.to(DEVICE), backend="reference")
    device = DEVICE if backend in ("auto", "cuda") else th.device("cpu")
    with th.autocast(device.type, dtype=th.bfloat16):
        for inputs in (tensors, wide):
            moved = [x.to(device) for x in inputs]
            out, last = recurrence(*moved, episode_start.to(device), backend=backend)
            th.testing.assert_close(out.to(DEVICE), expected, rtol=1e-5, atol=1e-5)
            th.testing.assert_close(last.to(DEVICE), memory, rtol=1e-5, atol=1e-5)


def test_autocast_training_of_the_memory() -> None:
    memory = SHM(3, 6).to(DEVICE)
    x, starts = th.randn(2, 9, 3, device=DEVICE), th.rand(2, 9, device=DEVICE) < 0.2
    state = memory.initial_state(2)
    context = memory.draw_context(state, starts)
    expected, _ = memory(x, state, starts, context)
    with th.autocast(DEVICE.type, dtype=th.bfloat16):
        y, (matrix, *_) = memory(x, state, starts, context)
    assert y.dtype == th.bfloat16 and matrix.dtype == th.float32
    th.testing.assert_close(y.float(), expected, rtol=0, atol=5e-2)
    y.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in memory.parameters())


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=needs_triton)])
@pytest.mark.parametrize("differentiates", [True, False])
def test_operators(backend: str, differentiates: bool) -> None:
    """torch's own checks: schema, rules for tensors without data, autograd, and all of them together."""
    tensors, episode_start = make_inputs(2, 18, 16)
    device = DEVICE if backend == "cuda" else th.device("cpu")
    tensors = [x.to(device).requires_grad_(differentiates) for x in tensors]
    operator = getattr(th.ops.sb3_shm, f"hadamard_{backend}").default
    th.library.opcheck(operator, (*tensors, episode_start.to(device), 0.5, differentiates))


@pytest.mark.parametrize("backend", ["auto", "reference", *OTHERS])
def test_compiled_memory(backend: str) -> None:
    """In one graph without breaks; torch's tracing is what may break, so nothing is compiled to machine code."""
    device = DEVICE if backend in ("auto", "cuda") else th.device("cpu")
    memory = SHM(3, 6, clip=None if backend == "scan" else 0.05, backend=backend).to(device)
    compiled = th.compile(memory, fullgraph=True, backend="aot_eager")
    results = []
    for function in (memory, compiled):
        th.manual_seed(1)
        x, starts = th.randn(2, 5, 3), th.rand(2, 5) < 0.2
        state = memory.initial_state(2)
        context = memory.draw_context(state, starts.to(device))
        y, (matrix, *_) = function(x.to(device), state, starts.to(device), context)
        gradients = th.autograd.grad(y.square().sum() + matrix.sum(), list(memory.parameters()))
        results.append([y, matrix, *gradients])
    for got, wanted in zip(*results, strict=True):
        th.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=needs_triton)])
def test_exported_memory_keeps_its_kernel(backend: str) -> None:
    device = DEVICE if backend == "cuda" else th.device("cpu")
    memory = SHM(3, 6, theta="fixed", backend=backend).to(device)
    arguments = (th.randn(2, 5, 3), memory.initial_state(2), th.zeros(2, 5, dtype=th.bool))
    arguments = th.utils._pytree.tree_map(lambda x: x.to(device), arguments)
    n, t = th.export.Dim("n"), th.export.Dim("t")
    with th.no_grad():
        program = th.export.export(memory, arguments, dynamic_shapes=({0: n, 1: t}, ({0: n},) * 3, {0: n, 1: t}, None)[:3])
    assert any(f"sb3_shm.hadamard_{backend}" in str(node.target) for node in program.graph.nodes)
    x, starts = th.randn(3, 9, 3, device=device), th.zeros(3, 9, dtype=th.bool, device=device)
    with th.no_grad():
        expected = memory(x, memory.initial_state(3), starts)
        got = program.module()(x, memory.initial_state(3), starts)
    th.testing.assert_close(got, expected)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_trained_with_one_backend_acts_the_same_with_every_other(clip: float | None, tmp_path: Path) -> None:
    def policy_kwargs(backend: str) -> dict[str, object]:
        return dict(memory_kwargs=dict(memory_size=6, clip=clip, backend=backend), encoder_arch=[8])

    backends = [name for name in BACKENDS if not (name == "scan" and clip) and not (name == "cuda" and not HAS_TRITON)]
    env = make_vec_env(RandomEnv, 2, seed=0)
    SHMPPO("MlpSHMPolicy", env, n_steps=32, batch_size=32, n_epochs=2, learning_rate=0.01, seed=1,
           policy_kwargs=policy_kwargs("cpu"), device="cpu").learn(128).save(tmp_path / "model")  # fmt: skip
    rng = np.random.default_rng(0)
    observations, starts = rng.uniform(-2, 2, (25, 2, 3)).astype(np.float32), rng.random((25, 2)) < 0.1
    actions, memories = {}, {}
    for backend in backends:
        model = SHMPPO.load(
            tmp_path / "model", device=DEVICE if backend == "cuda" else "cpu",
            custom_objects={"policy_kwargs": policy_kwargs(backend)},
        )  # fmt: skip
        assert [m.backend for m in model.policy.modules() if isinstance(m, SHM)] == [backend]
        state, taken = None, []
        for obs, start in zip(observations, starts, strict=True):
            action, state = model.predict(obs, state, start, deterministic=True)
            taken.append(action)
        actions[backend], memories[backend] = np.stack(taken), state[0].cpu()
    assert len(np.unique(actions["cpu"])) > 1
    for backend in backends:
        np.testing.assert_array_equal(actions[backend], actions["cpu"], err_msg=backend)
        th.testing.assert_close(memories[backend], memories["cpu"], rtol=1e-4, atol=1e-6)


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sb3_shm.memory.backends import cuda, cuda_kernels
_, constants = cuda._tiles(int(sys.argv[1]))
options = {"num_warps": constants.pop("num_warps")}
jobs = [(cuda_kernels.forward, {**constants, "KEEP": True}), (cuda_kernels.backward, constants)]
for kernel, known in jobs:
    types = {"start_at": "*u8", "clip": "fp32"}
    signature = {
        name: "constexpr" if name in known else types.get(name, "*fp32" if name.endswith("_at") else "i32")
        for name in kernel.arg_names
    }
    compiled = compile(ASTSource(kernel, signature, known), target=GPUTarget("cuda", 80, 32), options=options)
    assert compiled.metadata.shared <= 48 * 1024
    print(len(compiled.asm["cubin"]))
"""


@needs_triton
def test_triton_compiles_for_gpus_without_one(tmp_path: Path) -> None:
    """The interpreter takes more than the compiler does."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", COMPILE, "256"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.split()) == 2


@pytest.fixture
def afresh():
    """What a machine lacks is looked for once."""
    cuda._missing.cache_clear()
    yield
    cuda._missing.cache_clear()


def test_cuda_without_triton(monkeypatch: pytest.MonkeyPatch, afresh: None) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="needs triton, which is not installed"):
        run(*make_inputs(1, 2, 3), backend="cuda")


@needs_triton
def test_cuda_without_a_device(monkeypatch: pytest.MonkeyPatch, afresh: None) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device, which torch does not find here"):
        run(*make_inputs(1, 2, 3), backend="cuda")


@needs_triton
def test_what_the_backends_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, episode_start = make_inputs(1, 2, 3)
    with pytest.raises(ValueError, match=r"needs float32 and H up to 256, got torch.float64 and H = 3"):
        run([x.double() for x in tensors], episode_start, backend="cuda")
    with pytest.raises(ValueError, match=r"needs float32 and H up to 256, got torch.float32 and H = 257"):
        run(*make_inputs(1, 1, 257), backend="cuda")
    with pytest.raises(ValueError, match=r"'scan' needs clip=None, got 100.0"):
        run(tensors, episode_start, 100.0, "scan")
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="needs tensors on a CUDA device, got cpu"):
        recurrence(*tensors, episode_start, backend="cuda")


def test_auto_off_the_cpu() -> None:
    """What it takes where there are no kernels: tensors without data."""
    tensors, episode_start = make_inputs(2, 3, 4)
    tensors, episode_start = [x.to("meta") for x in tensors], episode_start.to("meta")
    for clip, backend in ((None, "scan"), (1.0, "reference")):
        assert hadamard._fastest(tensors[0], clip) == backend
        out, memory = recurrence(*tensors, episode_start, clip)
        assert out.shape == (2, 3, 4) and memory.shape == (2, 4, 4)


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("cuda", marks=needs_triton)])
def test_gradients_where_nothing_is_written_do_not_overflow(backend: str) -> None:
    """
    One column of M is never written and C is 2 there: in 150 steps its gradient leaves float32, but counts for nothing. The
    gradients are those of doubles, in which nothing overflows.
    """
    t, h = 150, 2
    theta, v = th.full((1, t, h), 20.0), th.full((1, t, h), 0.1)
    vc = th.tensor([-20.0, 20.0]).expand(1, t, h)  # C is 0 in the first column and 2 in the second
    k = th.tensor([1.0, 0.0]).expand(1, t, h)
    q = th.tensor([1.0, 1.0]).expand(1, t, h)
    start = th.zeros(1, t, dtype=th.bool)
    gradients = []
    for dtype in (th.float32, th.float64):
        inputs = [x.to(dtype).clone().requires_grad_() for x in (theta, vc, v, k, q)]
        matrix = th.zeros(1, h, h, dtype=dtype)
        used = backend if dtype == th.float32 else "reference"
        out, _ = recurrence(*inputs, matrix, start, 100.0, used)
        gradients.append(th.autograd.grad(out.sum(), inputs))
    for name, ours, exact in zip(("theta", "vc", "v", "k", "q"), *gradients, strict=True):
        assert ours.isfinite().all(), name
        if name != "k":  # whose second column is the one that overflows
            th.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_fading_gradient_ends_at_0_before_it_is_denormal():
    n, t, h = 2, 640, 8
    ones = th.ones(n, t, h)
    inputs = [(scale * ones).requires_grad_() for scale in (1.0, -0.2, 1.0, 0.5, 0.5)]  # C = 1 + tanh(-0.2) = 0.8
    out, _ = hadamard.hadamard_recurrence(
        HadamardInputs(*inputs), th.zeros(n, h, h), th.zeros(n, t, dtype=th.bool), backend="cpu"
    )
    for gradient in th.autograd.grad(out[:, -1].sum(), inputs):
        sizes = gradient.abs()
        assert not ((sizes > 0) & (sizes < th.finfo(th.float32).tiny)).any()
        assert (sizes[:, :64] == 0).all()
        assert (sizes[:, -1] > 0).all()
