"""The policy with a memory in RLlib: on its own connectors, learners and checkpoints. `make test-rllib` runs these."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_envs import RandomEnv

from sb3_shm import SHMPPO
from sb3_shm.memory import MEMORIES

ray = pytest.importorskip("ray", reason="extra rllib")
pytest.importorskip("ray.rllib", reason="extra rllib", exc_type=ImportError)

from ray.rllib.algorithms import Algorithm  # noqa: E402
from ray.rllib.algorithms.appo import APPOConfig  # noqa: E402
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner  # noqa: E402
from ray.rllib.algorithms.impala import IMPALAConfig  # noqa: E402
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner  # noqa: E402
from ray.rllib.core.columns import Columns  # noqa: E402
from ray.rllib.utils.spaces.space_utils import unsquash_action  # noqa: E402
from ray.tune import register_env  # noqa: E402

from sb3_shm.rllib import CONTEXT, SHMRLModule, from_shm_ppo, load_shm_ppo, module_spec, to_shm_ppo  # noqa: E402

TESTS = Path(__file__).parent
SMALL = dict(encoder_arch=[16], net_arch=[16])
SMALL_SHM = dict(SMALL, memory="shm", memory_kwargs=dict(memory_size=8))
BOX = spaces.Box(np.array([-3, 0], np.float32), np.array([1, 2], np.float32))
DICT = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))
PIXELS = spaces.Box(0, 255, (36, 36, 3), np.uint8)
SPACES = {
    "box and discrete": (None, None),
    "box and box": (None, BOX),
    "dict and multidiscrete": (DICT, spaces.MultiDiscrete([2, 4])),
    "discrete and unbounded box": (spaces.Discrete(5), spaces.Box(-np.inf, np.inf, (1,))),
    "pixels and unbounded box": (PIXELS, spaces.Box(-np.inf, np.inf, (2,))),
}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray starts workers 15 nicer than itself: while the driver waits for them, a busy machine would never run them
        patch.setenv("RAY_worker_niceness", "0")
        register_env("random", lambda config: RandomEnv(**config))
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


class Recording:
    """A learner that keeps what the loss sees at the first minibatch after each rollout."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        if self.first is None:
            self.first = (dict(batch), fwd_out)
            module = self.module[module_id]
            self.again = None
            if CONTEXT in batch:  # drawn again the rows would be others
                again = {**batch, CONTEXT: th.randint_like(batch[CONTEXT], 128)}
                self.again = module.forward_train(again)
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    first = None


class RecordingLearner(Recording, PPOTorchLearner):
    pass


class RecordingAPPOLearner(Recording, APPOTorchLearner):
    pass


class RecordingIMPALALearner(Recording, IMPALATorchLearner):
    pass


def configuration(observation_space=None, action_space=None, max_seq_len=4, **policy_kwargs):
    return (
        PPOConfig()
        .environment("random", env_config=dict(observation_space=observation_space, action_space=action_space))
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3)
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=60, minibatch_size=30, num_epochs=2, lr=0.01)
        .rl_module(rl_module_spec=module_spec(max_seq_len, **(policy_kwargs or SMALL_SHM)))
        .debugging(seed=0)
    )


@pytest.fixture
def build():
    """Builds an algorithm, with a policy that is far from uniform, and stops it."""
    built = []

    def build(config, gain=3):
        built.append(config.build_algo())
        weights = dict(built[-1].get_weights()["default_policy"])
        weights["policy.action_net.weight"] = gain * weights["policy.action_net.weight"]
        built[-1].set_state({"learner_group": {"learner": {"rl_module": {"default_policy": weights}}}})
        return built[-1]

    yield build
    for algorithm in built:
        algorithm.stop()


def ratios(learner, output):
    batch, _ = learner.first
    distribution = learner.module["default_policy"].get_train_action_dist_cls().from_logits(output[Columns.ACTION_DIST_INPUTS])
    ratio = th.exp(distribution.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
    return ratio[batch[Columns.LOSS_MASK]].detach()


def check_ratio(algorithm):
    learner = algorithm.learner_group._learner
    for iteration in range(2):  # the second rollout begins inside episodes
        learner.first = None
        algorithm.train()
        batch, output = learner.first
        ratio = ratios(learner, output)
        assert len(ratio) > 10 and (ratio - 1).abs().max() < 1e-5
        assert batch[Columns.ACTION_LOGP][batch[Columns.LOSS_MASK]].std() > 0.05
        starts = batch[Columns.STATE_IN]["episode_start"]
        assert starts.any() and not starts.all(), iteration
    return learner


@pytest.mark.parametrize("case", SPACES)
def test_ratio_is_one_at_the_first_minibatch(case, build):
    """Episodes are longer than sequences and go on over rollouts, rows are padded, θ is random: the update sees what acted."""
    config = configuration(*SPACES[case]).learners(learner_class=RecordingLearner)
    learner = check_ratio(build(config))
    assert learner.first[0][CONTEXT].dtype == th.uint8
    assert (ratios(learner, learner.again) - 1).abs().max() > 1e-4


@pytest.mark.parametrize("memory", MEMORIES)
def test_any_memory(memory, build):
    config = configuration(memory=memory, **SMALL, position="sine", share_memory=memory != "shm")
    check_ratio(build(config.learners(learner_class=RecordingLearner)))


@pytest.mark.parametrize("backend", ["reference", "scan", "cpu"])
def test_any_backend(backend, build):
    kwargs = dict(SMALL, memory_kwargs=dict(memory_size=8, backend=backend, clip=None))
    check_ratio(build(configuration(**kwargs).learners(learner_class=RecordingLearner)))


@pytest.mark.slow
@pytest.mark.parametrize("config, learner", [(APPOConfig, RecordingAPPOLearner), (IMPALAConfig, RecordingIMPALALearner)])
def test_asynchronous_algorithms(config, learner, build):
    """The first batch is of the very policy that learns from it: what acted is replayed there, too."""
    config = (
        config()
        .environment("random", env_config=dict(observation_space=None, action_space=None))
        .env_runners(num_env_runners=1, num_envs_per_env_runner=3, rollout_fragment_length=12)
        .learners(num_learners=0, learner_class=learner)
        .training(train_batch_size_per_learner=36)
        .rl_module(rl_module_spec=module_spec(5, **SMALL_SHM))
        .reporting(min_time_s_per_iteration=1)
        .debugging(seed=0)
    )
    algorithm = build(config)
    before = algorithm.get_weights()["default_policy"]
    for _ in range(120):  # a second each, in the first ones the env runner starts
        result = algorithm.train()
        learner = algorithm.learner_group._learner
        if "learners" in result and learner.first is not None:  # the learner's thread may not have begun
            break
    ratio = ratios(learner, learner.first[1])
    assert len(ratio) > 10 and (ratio - 1).abs().max() < 1e-5
    assert (ratios(learner, learner.again) - 1).abs().max() > 1e-4
    after = algorithm.get_weights()["default_policy"]
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    assert np.abs(after["policy.pi_trunk.memory.theta_rows"] - before["policy.pi_trunk.memory.theta_rows"]).max() > 0


def play(algorithm, model):
    """
    RLlib's deterministic policy in whole episodes, and SHMPPO's on the same observations.

    :return: both actions, step by step
    """
    theirs, ours = [], []
    for episode in algorithm.env_runner.sample(num_episodes=4, explore=False):
        state = None
        observations = episode.get_observations(slice(0, len(episode)))
        for t in range(len(episode)):
            obs = {key: o[t] for key, o in observations.items()} if isinstance(observations, dict) else observations[t]
            if np.ndim(obs) == 3:  # SB3's environments show channels first
                obs = obs.transpose(2, 0, 1)
            action, state = model.predict(obs, state, np.array([t == 0]), deterministic=True)
            ours.append(action)
            theirs.append(unsquash_action(episode.get_actions(t), algorithm.env_runner.env.single_action_space))
    return np.array(theirs), np.array(ours)


@pytest.mark.parametrize("case", SPACES)
def test_checkpoints_and_conversion(case, build, tmp_path):
    """Training, a checkpoint, a model of SHMPPO, its zip, RLlib again: the same actions everywhere."""
    algorithm = build(configuration(*SPACES[case]), gain=30)
    algorithm.train()
    algorithm.save_to_path(tmp_path / "checkpoint")
    model = load_shm_ppo(tmp_path / "checkpoint")
    model.save(tmp_path / "model")
    model = SHMPPO.load(tmp_path / "model")
    theirs, ours = play(algorithm, model)
    assert len(np.unique(theirs.round(4), axis=0)) > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    restored = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    for name, weight in algorithm.get_weights()["default_policy"].items():
        np.testing.assert_array_equal(restored.get_weights()["default_policy"][name], weight)
    assert restored.train()["training_iteration"] == 2
    restored.stop()

    model.policy.value_statistics[3:] = th.tensor([5.0, 2.0])  # as after SHMPPO's training
    spec, state = from_shm_ppo(model, max_seq_len=4)
    config = configuration(*SPACES[case]).rl_module(rl_module_spec=spec)
    back = config.build_algo()
    back.set_state(state)
    theirs, ours = play(back, model)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    round_trip = to_shm_ppo(back.get_module()).policy.state_dict()
    for name, weight in model.policy.state_dict().items():
        th.testing.assert_close(round_trip[name], weight)
    back.stop()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(memory="gru2"), "Unknown memory 'gru2', choose one of 'shm'"),
        (dict(memory="gru", memory_kwargs=dict(memory_size=8)), "GRU has no argument 'memory_size'"),
        (
            dict(memry="gru"),
            "The policy has no argument 'memry', its arguments are activation_fn, critic_memory, .* encoder_arch",
        ),
        (dict(use_sde=True), "The policy has no argument 'use_sde'"),
        (dict(max_seq_len=0), "max_seq_len must be an integer, at least 1; got 0"),
        (dict(position="cosine"), "Unknown position 'cosine'"),
    ],
)
def test_wrong_arguments_are_refused_before_a_worker_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        module_spec(**arguments)


def test_wrong_spaces_and_batches_are_refused():
    def module(observation_space=BOX, action_space=BOX):
        spec = module_spec(4, **SMALL_SHM)
        return SHMRLModule(observation_space=observation_space, action_space=action_space, model_config=spec.model_config)

    with pytest.raises(ValueError, match="RLlib has no distribution for MultiBinary"):
        module(action_space=spaces.MultiBinary(3))
    with pytest.raises(ValueError, match="of one dimension"):
        module(action_space=spaces.Box(-1, 1, (2, 2)))
    with pytest.raises(ValueError, match="The observation space must be"):
        module(observation_space=spaces.Tuple([BOX]))
    made = module()
    state = {key: tensor[None] for key, tensor in made.get_initial_state().items()}
    with pytest.raises(ValueError, match="lacks the column 'memory_context'"):
        made.forward_train({Columns.OBS: th.zeros(1, 2, 2), Columns.STATE_IN: state})


def test_wrong_checkpoints_and_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no checkpoint of an RLlib algorithm"):
        load_shm_ppo(tmp_path)

    class OwnPolicy(SHMPPO.policy_aliases["MlpSHMPolicy"]):
        pass

    with pytest.raises(ValueError, match="The policy must be one of RecurrentSHMPolicy"):
        from_shm_ppo(SHMPPO(OwnPolicy, RandomEnv()))
    with pytest.raises(ValueError, match="RLlib has no gSDE"):
        from_shm_ppo(SHMPPO("MlpSHMPolicy", RandomEnv(action_space=BOX), use_sde=True))


@pytest.mark.slow
def test_a_killed_env_runner_loses_no_training(build):
    """One of two env runners dies: RLlib starts another, with the newest weights, and training goes on."""
    config = configuration().env_runners(num_env_runners=2, num_envs_per_env_runner=2)
    config = config.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0.0)
    algorithm = build(config)
    before = algorithm.train()
    runners = algorithm.env_runner_group
    ray.kill(runners._worker_manager.actors()[1], no_restart=False)
    for _ in range(10):
        after = algorithm.train()
        if runners.num_healthy_remote_workers() == 2:
            break
        time.sleep(0.5)
    after = algorithm.train()
    assert runners.num_healthy_remote_workers() == 2 and runners.num_remote_worker_restarts() == 1
    assert after["num_env_steps_sampled_lifetime"] > before["num_env_steps_sampled_lifetime"]
    assert after["learners"]["default_policy"]["num_module_steps_trained_lifetime"] > 0
    learned = algorithm.get_weights()["default_policy"]
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
    for weights in runners.foreach_env_runner(lambda runner: runner.module.get_state(), local_env_runner=False):
        for name, weight in learned.items():
            np.testing.assert_array_equal(weights[name], weight)


@pytest.mark.slow
@pytest.mark.parametrize("share_memory", [True, False])
def test_two_learners_learn_the_same(share_memory, build):
    config = configuration(**SMALL_SHM, share_memory=share_memory).learners(num_learners=2)
    config = config.env_runners(num_env_runners=1).training(train_batch_size_per_learner=60, minibatch_size=30)
    algorithm = build(config)
    before = algorithm.get_weights()["default_policy"]
    algorithm.train()
    one, two = algorithm.learner_group.foreach_learner(lambda learner: learner.module["default_policy"].get_state())
    for name, weight in one.get().items():
        np.testing.assert_array_equal(weight, two.get()[name])
    assert np.abs(one.get()["policy.pi_trunk.memory.theta_rows"] - before["policy.pi_trunk.memory.theta_rows"]).max() > 0


def run_example(folder, name, *arguments):
    command = [sys.executable, str(TESTS.parent / "examples" / f"{name}.py"), "--smoke", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_examples(tmp_path):
    """Train, go on from the checkpoint, search; each leaves a model of SHMPPO."""
    folder = Path("logs/rllib_RepeatPreviousEasy-v0_gru_0")
    assert "20 new episodes: mean return" in run_example(tmp_path, "train_rllib", "--memory", "gru")
    before = SHMPPO.load(tmp_path / folder / "model.zip")
    assert "1,504 steps" in run_example(tmp_path, "train_rllib", "--memory", "gru", "--resume", str(folder / "checkpoint"))
    after = SHMPPO.load(tmp_path / folder / "model.zip")
    # The learning rate has fallen to 0, so these are the weights of the checkpoint
    th.testing.assert_close(after.policy.action_net.weight, before.policy.action_net.weight)
    assert "while exploring after" in run_example(tmp_path, "tune_rllib")
    assert (tmp_path / "logs/tune_RepeatPreviousEasy-v0_shm/model.zip").stat().st_size > 10_000
