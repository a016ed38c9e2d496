"""Training on a device: what travels when, and that the device changes no result. The device is tests/pretend_device.py's."""

import sys

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pretend_device import DEVICE, TRANSFERS, OnDevice, PretendDevice
from small_envs import RandomEnv, RecallEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch.utils._pytree import tree_leaves

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.training.transfer import Guard, clip_gradient, pack, to_device

SMALL = dict(memory_kwargs=dict(memory_size=6, backend="reference"), encoder_arch=[8], net_arch=[8])
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "n": spaces.Discrete(3), "m": spaces.MultiBinary(2)})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """Modules move to it and optimizers step there as on a GPU."""
    monkeypatch.setattr(sys.modules[th.optim.Adam.__module__], "_device_dtype_check_for_fused", lambda *_, **__: None)
    th.__future__.set_swap_module_params_on_conversion(True)
    TRANSFERS.clear()
    with PretendDevice():
        yield DEVICE
    th.__future__.set_swap_module_params_on_conversion(False)


def numbers(model) -> list[th.Tensor]:
    return [x.inner if isinstance(x, OnDevice) else x for x in model.policy.state_dict().values()]


class Count(BaseCallback):
    """What travels in each environment step, and while training."""

    def _on_training_start(self) -> None:
        self.steps, self.training = [], []

    def _on_rollout_start(self) -> None:
        self.training.append(dict(TRANSFERS))
        TRANSFERS.clear()

    def _on_step(self) -> bool:
        self.steps.append(dict(TRANSFERS))
        TRANSFERS.clear()
        return True

    def _on_rollout_end(self) -> None:
        self.after_rollout = dict(TRANSFERS)
        TRANSFERS.clear()

    def _on_training_end(self) -> None:
        self.training.append(dict(TRANSFERS))


ARRAYS = [
    np.arange(6, dtype=np.uint8).reshape(3, 2),
    np.linspace(0, 1, 5),
    np.array([True, False, True]),
    np.zeros((0, 4), np.int16),
    np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],
    np.array(7, dtype=np.int64),
    np.array([3], dtype=np.float16),
]


def test_pack() -> None:
    packed, unpack = pack(ARRAYS)
    assert packed.dtype == th.uint8 and len(packed) == sum(array.nbytes for array in ARRAYS)
    for tensor, array in zip(unpack(packed.clone()), ARRAYS, strict=True):
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def test_to_device_in_one_transfer(device: th.device) -> None:
    first, by_name, last = to_device(device, ARRAYS[0], {"x": ARRAYS[1], "y": ARRAYS[2]}, ARRAYS[4])
    assert TRANSFERS == {"to": 1} and list(by_name) == ["x", "y"]
    for tensor, array in zip((first, *by_name.values(), last), (ARRAYS[i] for i in (0, 1, 2, 4)), strict=True):
        assert tensor.device == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), array, strict=True)


@pytest.mark.parametrize(
    "optimizer, kwargs",
    [(th.optim.Adam, dict(fused=True)), (th.optim.AdamW, dict(fused=True)), (th.optim.SGD, {}), (th.optim.RMSprop, {})],
)
@pytest.mark.parametrize("waits", [True, False])
def test_guard(optimizer, kwargs, waits, device) -> None:
    """The steps before a loss that is not finite are the optimizer's own, from there on nothing changes."""
    device = th.device("cpu") if waits else device
    results = []
    for guarded in (True, False):
        th.manual_seed(0)
        layer = th.nn.Linear(3, 2).to(device)
        stepper, guard = optimizer(layer.parameters(), lr=0.1, **kwargs), Guard(device)
        for factor in (1, 2, float("nan"), 3, float("inf")):
            loss = factor * layer(th.ones(3, device=device)).square().sum()
            if not guarded and factor not in (1, 2):
                break
            stepper.zero_grad()
            loss.backward()
            guard.step(stepper, loss, clip_gradient(layer.parameters(), None)) if guarded else stepper.step()
        results.append((layer.state_dict(), stepper.state_dict()["state"]))
        assert not hasattr(stepper, "found_inf")
    assert guard.has_stopped == 0
    th.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(
    "action_space, observation_space, policy, kwargs, policy_kwargs",
    [
        (spaces.Discrete(3), None, "MlpSHMPolicy", {}, {}),
        (spaces.Box(-1, 1, (2,), np.float32), None, "MlpSHMPolicy", dict(seq_len=4, clip_range_vf=0.2), dict(position="sine")),
        (spaces.MultiDiscrete([2, 3]), DICT, "MultiInputSHMPolicy", dict(kl_coef=0.1), dict(share_memory=False)),
    ],
)
def test_ppo_is_the_same(action_space, observation_space, policy, kwargs, policy_kwargs, device) -> None:
    """Every weight, after rollouts in which episodes end by time, too."""
    models = []
    for name in ("cpu", device):
        env_kwargs = dict(action_space=action_space, observation_space=observation_space, longest=4)
        env = make_vec_env(RandomEnv, 3, seed=0, env_kwargs=env_kwargs)
        model = SHMPPO(
            policy, env, n_steps=8, n_epochs=1, seed=0, device=name, policy_kwargs=SMALL | policy_kwargs, **kwargs
        ).learn(48)
        models.append(model)
    assert all(parameter.device == device for parameter in models[1].policy.parameters())
    for on_cpu, on_device in zip(*map(numbers, models), strict=True):
        th.testing.assert_close(on_device, on_cpu, rtol=0, atol=1e-5)
    for name in ("values", "log_probs", "contexts", "returns", "observations"):
        arrays = [getattr(model.rollout_buffer, name) for model in models]
        for key in arrays[0] if isinstance(arrays[0], dict) else [slice(None)]:
            np.testing.assert_allclose(arrays[1][key], arrays[0][key], atol=1e-5)


def test_ppo_transfers(device: th.device) -> None:
    """One each way in an environment step; in training a constant number, and one for the order of each epoch."""
    trained = {}
    for n_epochs, batch_size, target_kl in ((1, 32, None), (1, 8, None), (3, 8, None), (3, 8, 1e9)):
        count = Count()
        model = SHMPPO(
            "MlpSHMPolicy", make_vec_env(RecallEnv, 4, seed=0), n_steps=8, n_epochs=n_epochs, batch_size=batch_size,
            target_kl=target_kl, device=device, policy_kwargs=dict(SMALL, position="sine"),
        )  # fmt: skip
        TRANSFERS.clear()
        model.learn(32, callback=count)
        assert count.steps == [{"to": 1, "from": 1}] * 8
        # To: the last observation. From: its value, and all values, log probabilities and rows of θ
        assert count.after_rollout == {"to": 1, "from": 4}
        trained[n_epochs, batch_size, target_kl] = count.training[1:]
    # To: observations, actions, values, log probabilities, advantages, returns, starts, rows of θ, and the order
    assert trained[1, 32, None] == trained[1, 8, None] == [{"to": 9, "from": 1}]
    assert trained[3, 8, None] == [{"to": 11, "from": 1}]
    assert trained[3, 8, 1e9] == [{"to": 11, "from": 1, "number": 12}]


def test_ppo_loss_that_is_not_finite(device: th.device) -> None:
    """Nothing changes from there on: the weights are those after the minibatches before it."""
    for where in ("cpu", device):
        weights = []
        for bad in (None, 2):
            model = SHMPPO(
                "MlpSHMPolicy", make_vec_env(RecallEnv, 4, seed=0), n_steps=4, n_epochs=1, batch_size=4, seed=0,
                device=where, policy_kwargs=SMALL,
            )  # fmt: skip
            model._setup_learn(10**6, None)
            assert model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 4)
            get, step = model.rollout_buffer.get, model.policy.optimizer.step
            after: list[list[th.Tensor]] = []

            def get_bad(batch_size, get=get, bad=bad):
                for i, data in enumerate(get(batch_size)):
                    yield data._replace(returns=data.returns * (float("nan") if i == bad else 1))

            def count_step(step=step, after=after, model=model):
                step()
                after.append([x.clone() for x in numbers(model)])

            model.rollout_buffer.get, model.policy.optimizer.step = get_bad, count_step
            if bad is None:
                model.train()
            else:
                with pytest.raises(ValueError, match="The loss is nan in minibatch 2 of the update after 16 steps"):
                    model.train()
                assert model._n_updates == 0
            weights.append(after)
        good, stopped = weights
        assert all(not th.equal(a, b) for a, b in zip(good[1][1:3], good[2][1:3], strict=True))
        for after in stopped[1:]:
            assert all(th.equal(a, b) for a, b in zip(after, good[1], strict=True))


@pytest.mark.parametrize(
    "action_space, observation_space, policy, kwargs",
    [
        (spaces.Discrete(3), None, "MlpSHMPolicy", dict(replay_context=True)),
        (spaces.Box(-1, 1, (2,), np.float32), DICT, "MultiInputSHMPolicy", dict(seq_len=None)),
    ],
)
def test_sac_is_the_same(action_space, observation_space, policy, kwargs, device, tmp_path) -> None:
    """Every weight, and the tape after saving and loading it on the other device."""
    models = []
    for name in ("cpu", device):
        env_kwargs = dict(action_space=action_space, observation_space=observation_space, longest=4)
        env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=env_kwargs)
        env = VecNormalize(env, norm_obs_keys=None if observation_space is None else ["a"])
        model = SHMSAC(
            policy, env, buffer_size=40, learning_starts=24, train_freq=4, batch_size=2, seed=0, device=name,
            policy_kwargs=SMALL | dict(memory_kwargs=dict(memory_size=4, backend="reference")),
            **dict(seq_len=4) | kwargs,
        ).learn(48)  # fmt: skip
        models.append(model)
    on_cpu, on_device = models
    for ours, theirs in zip(*map(numbers, models), strict=True):
        th.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    on_device.save_replay_buffer(tmp_path / "tape.pkl")
    on_cpu.load_replay_buffer(tmp_path / "tape.pkl")
    on_device.load_replay_buffer(tmp_path / "tape.pkl")
    normalizer = on_cpu.get_vec_normalize_env()
    samples = []
    for model in models:
        np.random.seed(1)  # noqa: NPY002  # the generator that SB3 seeds
        samples.append([x for x in tree_leaves(model.replay_buffer.sample(5, normalizer)) if x is not None])
    for ours, theirs in zip(*samples, strict=True):
        assert theirs.device == device and th.equal(theirs.inner, ours)


def test_sac_transfers(device: th.device) -> None:
    """An environment step: one. An update: one; and one back after all of them."""
    for gradient_steps in (1, 3):
        model = SHMSAC(
            "MlpSHMPolicy", make_vec_env(RecallEnv, 2, seed=0), buffer_size=64, learning_starts=100, seq_len=3,
            batch_size=2, device=device, policy_kwargs=dict(SMALL, position="sine"),
        )  # fmt: skip
        count = Count()
        model.learn(16, callback=count)
        # While warming up no action comes back
        assert count.steps == [{"to": 1}] * 8 and count.after_rollout == {}
        TRANSFERS.clear()
        model.train(gradient_steps, 2)
        assert dict(TRANSFERS) == {"to": gradient_steps, "from": 1}


def test_sac_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are not stepped by it, nor later."""
    model = SHMSAC(
        "MlpSHMPolicy", make_vec_env(RecallEnv, 2, seed=0), buffer_size=64, learning_starts=100, seq_len=3, batch_size=2,
        seed=0, policy_kwargs=SMALL,
    ).learn(16)  # fmt: skip
    before = [x.clone() for part in (model.actor, model.critic) for x in part.parameters()]
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer,
        "sample",
        lambda *args, **kw: (rows := sample(*args, **kw))._replace(rewards=rows.rewards * np.nan),
    )
    with pytest.raises(ValueError, match="The critic's loss is nan in minibatch 0 of the update after 16 steps"):
        model.train(3, 2)
    after = [x for part in (model.actor, model.critic) for x in part.parameters()]
    assert all(th.equal(a, b) for a, b in zip(before, after, strict=True)) and model._n_updates == 0


@pytest.mark.parametrize("position", [None, "sine"])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)])
def test_compiled_policy(action_space, position) -> None:
    """The whole update of a policy in one graph without breaks, and its gradients."""
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=action_space))
    kwargs = dict(memory_kwargs=dict(memory_size=6), encoder_arch=[8], position=position)
    policy = SHMPPO("MlpSHMPolicy", env, seed=0, policy_kwargs=kwargs).policy
    actions = th.as_tensor(np.array([[action_space.sample() for _ in range(5)] for _ in range(2)])).view(2, 5, -1)
    state, starts = policy.initial_state(2), th.rand(2, 5) < 0.2
    context = th.randint(128, (2, 5, 1), dtype=th.uint8)
    arguments = (th.randn(2, 5, 3), actions, state, starts, context)
    results = []
    for function in (policy.evaluate_actions, th.compile(policy.evaluate_actions, fullgraph=True, backend="aot_eager")):
        values, log_prob, entropy = function(*arguments)
        loss = values.square().sum() + log_prob.sum() - entropy.sum()
        gradients = th.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
        results.append([values, log_prob, entropy, *(x for x in gradients if x is not None)])
    for got, wanted in zip(*results, strict=True):
        th.testing.assert_close(got, wanted)


def test_exported_policy_keeps_its_kernel() -> None:
    """A step of a policy by torch.export, in batches of any size."""

    class Step(th.nn.Module):
        def __init__(self, policy: th.nn.Module) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, obs, state, starts):
            actions, values, log_prob, state, _ = self.policy(obs, state, starts, deterministic=True)
            return actions, values, log_prob, state

    kwargs = dict(memory_kwargs=dict(memory_size=6, theta="fixed"), encoder_arch=[8])
    policy = SHMPPO("MlpSHMPolicy", make_vec_env(RandomEnv, 2), seed=0, policy_kwargs=kwargs).policy
    policy.set_training_mode(False)
    n = th.export.Dim("n")
    with th.no_grad():
        arguments = (th.randn(2, 3), policy.initial_state(2), th.zeros(2, dtype=th.bool))
        program = th.export.export(Step(policy), arguments, dynamic_shapes=({0: n}, (({0: n},) * 3,), {0: n}))
        assert any("sb3_shm.hadamard_cpu" in str(node.target) for node in program.graph.nodes)
        arguments = (th.randn(5, 3), policy.initial_state(5), th.zeros(5, dtype=th.bool))
        th.testing.assert_close(program.module()(*arguments), Step(policy)(*arguments))
