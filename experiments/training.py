"""The function behind every run that trains an agent: train, note the learning curve, evaluate."""

from __future__ import annotations

import pkgutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from experiments.base import Rows
from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.wrappers import VecMemoryInputs
from sb3_shm.policies.pictures import SmallCNN
from sb3_shm.shm_ppo import SHMPPO
from sb3_shm.shm_sac import SHMSAC

if TYPE_CHECKING:
    from sb3_contrib import RecurrentPPO

CURVE_POINTS = 50


class EpisodeRecorder(BaseCallback):
    """Keeps when each episode of the training ended, its return, and whether it succeeded if its task knows."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[int] = []
        self.returns: list[float] = []
        self.successes: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.timesteps.append(self.num_timesteps)
                self.returns.append(info["episode"]["r"])
                if "is_success" in info:
                    self.successes.append(float(info["is_success"]))
        return True

    def curve(self, n_points: int) -> list[dict[str, float]]:
        """
        :param n_points: number of equal parts into which the training is cut
        :return: per part "timesteps", its last step, and of the episodes that ended in it the mean "return" and, if the task
            knows, the share that were a "success"; parts without an end are left out
        """
        edges = np.linspace(0, self.num_timesteps, n_points + 1)
        part = np.searchsorted(edges, self.timesteps) - 1
        measures = {"return": np.array(self.returns)}
        if self.successes and len(self.successes) == len(self.returns):
            measures["success"] = np.array(self.successes)
        return [
            {"timesteps": int(edges[i + 1]), **{name: float(values[part == i].mean()) for name, values in measures.items()}}
            for i in range(n_points)
            if (part == i).any()
        ]


def make_env(
    env: str, n_envs: int, seed: int, memory_inputs: dict[str, bool] | None = None, env_wrapper: str | None = None
) -> VecEnv:
    """
    :param env: environment id; its batched version is taken if there is one
    :param n_envs: number of copies
    :param seed: copy i is seeded with ``seed + i``
    :param memory_inputs: arguments of :class:`~sb3_shm.envs.wrappers.VecMemoryInputs`, None to add nothing
    :param env_wrapper: "module.Class" of a wrapper for each copy, None for none; importing it registers its package's ids
    :return: the vector environment; its infos tell of the episodes
    """
    if env in BATCHED_TASKS and env_wrapper is None:
        made: VecEnv = make_batched_env(env, n_envs, seed)
    else:
        made = make_vec_env(
            env, n_envs, seed, wrapper_class=None if env_wrapper is None else pkgutil.resolve_name(env_wrapper)
        )
    return made if memory_inputs is None else VecMemoryInputs(made, **memory_inputs)


def train_ppo(**arguments: Any) -> Rows:
    """
    Train :class:`~sb3_shm.SHMPPO`.

    :param arguments: see :func:`train`
    :return: rows, see :func:`train`
    """
    return train(SHMPPO, **arguments)


def train_sac(**arguments: Any) -> Rows:
    """
    Train :class:`~sb3_shm.SHMSAC`.

    :param arguments: see :func:`train`
    :return: rows, see :func:`train`
    """
    return train(SHMSAC, **arguments)


def train_recurrent_ppo(**arguments: Any) -> Rows:
    """
    Train sb3-contrib's RecurrentPPO, with the network that it has by itself. It has none for small pictures: where there are
    ``features_extractor_kwargs`` it gets our extractor.

    :param arguments: see :func:`train`; ``seq_len`` of the model and all other ``policy_kwargs`` are left out
    :return: rows, see :func:`train`
    """
    from sb3_contrib import RecurrentPPO

    model = {name: value for name, value in arguments.pop("model").items() if name != "seq_len"}
    ours = model.pop("policy_kwargs")
    if "features_extractor_kwargs" in ours:
        reads = {name: ours[name] for name in ("normalize_images", "features_extractor_kwargs")}
        model["policy_kwargs"] = dict(features_extractor_class=SmallCNN, **reads)
    return train(RecurrentPPO, model=model, **arguments)


def train(
    algorithm: type[SHMPPO] | type[SHMSAC] | type[RecurrentPPO],
    env: str,
    setting: str,
    seed: int,
    n_envs: int,
    n_timesteps: int,
    model: dict[str, Any],
    memory_inputs: dict[str, bool] | None = None,
    env_wrapper: str | None = None,
    normalize: bool = False,
    eval_env: str | None = None,
    eval_episodes: int = 200,
) -> Rows:
    """
    Train an agent, then evaluate its deterministic policy on new episodes.

    :param algorithm: SHMPPO, SHMSAC or RecurrentPPO
    :param env: environment id
    :param setting: what the report calls this agent
    :param seed: of environments and agent
    :param n_envs: number of environments
    :param n_timesteps: environment steps of the training, in all environments together
    :param model: arguments of the algorithm; a learning rate or clip range "lin_x" falls from x to 0
    :param memory_inputs: see :func:`make_env`
    :param env_wrapper: see :func:`make_env`
    :param normalize: observations and rewards by VecNormalize while it trains, observations alone in the evaluation
    :param eval_env: environment id of the evaluation, None for ``env``
    :param eval_episodes: number of episodes, each in an environment of its own
    :return: rows with env, setting, seed, timesteps, return and, where the task knows it, success: of kind "curve" for each of
        50 parts of the training, one of kind "evaluation" that also has the standard deviation and the number of episodes, the
        share of successes (None if the task knows none), the memory's numbers of state and of parameters, and the processor's
        seconds of the training (a machine that others share changes them less than those of the clock)
    """
    vec_env = make_env(env, n_envs, seed, memory_inputs, env_wrapper)
    test_env = make_env(eval_env or env, eval_episodes, seed + 10_000, memory_inputs, env_wrapper)
    if normalize:
        vec_env = VecNormalize(vec_env, gamma=model.get("gamma", 0.99))
    policy = "Cnn" if is_image_space(vec_env.observation_space) else "Mlp"
    policy += "SHMPolicy" if issubclass(algorithm, SHMPPO | SHMSAC) else "LstmPolicy"
    agent = algorithm(policy, vec_env, seed=seed, **{name: _schedule(value) for name, value in model.items()})
    recorder = EpisodeRecorder()
    start = time.process_time()
    agent.learn(n_timesteps, callback=recorder)
    seconds = time.process_time() - start

    if isinstance(vec_env, VecNormalize):
        test_env = VecNormalize(test_env, training=False, norm_reward=False)
        test_env.obs_rms = vec_env.obs_rms
    successes: list[bool] = []

    def note_success(local_variables: dict[str, Any], _: dict[str, Any]) -> None:
        if local_variables["done"] and "is_success" in local_variables["info"]:
            successes.append(local_variables["info"]["is_success"])

    returns, _ = evaluate_policy(agent, test_env, eval_episodes, callback=note_success, return_episode_rewards=True)
    state_size, parameter_count = _memory_numbers(agent)
    common = dict(env=env, setting=setting, seed=seed)
    curve = [dict(kind="curve", **common, **point) for point in recorder.curve(CURVE_POINTS)]
    evaluation = {
        "kind": "evaluation",
        **common,
        "timesteps": agent.num_timesteps,
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "episodes": eval_episodes,
        "success": float(np.mean(successes)) if successes else None,
        "state_size": state_size,
        "parameter_count": parameter_count,
        "seconds": round(seconds, 1),
    }
    return [*curve, evaluation]


def _memory_numbers(agent: SHMPPO | SHMSAC | RecurrentPPO) -> tuple[int, int]:
    # Of the value's or critic's memory: numbers of its state and of its parameters
    if isinstance(agent, SHMPPO | SHMSAC):
        memory = (agent.policy.vf_trunk if isinstance(agent, SHMPPO) else agent.critic.body.trunk).memory
        return memory.state_size(), memory.parameter_count
    lstm: Any = agent.policy.lstm_critic
    return 2 * lstm.num_layers * lstm.hidden_size, sum(parameter.numel() for parameter in lstm.parameters())


def _schedule(value: Any) -> Any:
    """rl-zoo3's way to write a schedule in YAML."""
    return LinearSchedule(float(value[4:]), 0.0, 1.0) if isinstance(value, str) and value.startswith("lin_") else value
