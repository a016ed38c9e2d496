"""What the tests of sharing models have in common."""

import sys
from contextlib import contextmanager

import numpy as np
from gymnasium import spaces
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO
from sb3_shm.sharing.hub import push_to_hub

ENV = "CartPoleNoVel-v0"
TOKEN = "hf_thisIsTheSecretToken"
BOX = spaces.Box(-1, 2, (2,), np.float32)


_unpickled: list[str] | None = None


def _audit(event: str, arguments: tuple) -> None:
    if event == "pickle.find_class" and _unpickled is not None:
        _unpickled.append(".".join(map(str, arguments)))


sys.addaudithook(_audit)


@contextmanager
def nothing_unpickled():
    """Fails if anything is unpickled that names a class or a function: whoever unpickles, Python tells."""
    global _unpickled
    _unpickled = []
    try:
        yield
        assert not _unpickled, _unpickled
    finally:
        _unpickled = None


def make_model(algorithm=SHMPPO, action_space=None, observation_space=None, policy="MlpSHMPolicy", normalize=None, **kwargs):
    env = make_vec_env(RandomEnv, 2, seed=0, env_kwargs=dict(action_space=action_space, observation_space=observation_space))
    if normalize is not None:
        env = VecNormalize(env, **normalize)
    if algorithm is SHMPPO:
        kwargs = dict(n_steps=16) | kwargs
    else:
        kwargs = dict(buffer_size=500, learning_starts=20, seq_len=8) | kwargs
    return algorithm(policy, env, seed=0, **kwargs).learn(64)


def actions(model, steps: int = 20, seed: int = 3) -> np.ndarray:
    space = model.observation_space
    space.seed(seed)
    rng, state, taken = np.random.default_rng(seed), None, []
    for _ in range(steps):
        samples = [space.sample() for _ in range(3)]
        obs = (
            np.stack(samples) if not isinstance(space, spaces.Dict) else {k: np.stack([s[k] for s in samples]) for k in space}
        )
        action, state = model.predict(obs, state, rng.random(3) < 0.2, deterministic=True)
        taken.append(action)
    return np.stack(taken)


def cartpole_model(**kwargs) -> SHMPPO:
    model = SHMPPO("MlpSHMPolicy", make_vec_env(ENV, 2, seed=0), n_steps=16, seed=0, **kwargs)
    return model.learn(64)


def push(model, env_id=ENV, eval_env=None, **kwargs) -> str:
    return push_to_hub(model, "ann/agent", env_id, eval_env, token=TOKEN, **(dict(n_eval_episodes=2) | kwargs))
