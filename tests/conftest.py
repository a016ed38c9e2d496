"""What every test has: fixed seeds, one thread, no window."""

import os
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import settings

import sb3_shm.envs
import sb3_shm.zoo

# Read when matplotlib is first imported, which it need not be here
os.environ["MPLBACKEND"] = "Agg"
# Also when triton is first imported: without a GPU its interpreter runs the kernels
if not th.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# The same examples in every run, on every machine
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed every generator before each test: a test then gives the same result alone, in any order and in any worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global generator is what must not differ
    th.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The tensors are tiny, and the order of a sum must not depend on the machine. A test of threads sets its own."""
    th.set_num_threads(1)


_zoo_envs: dict[str, Any] = {}


@pytest.fixture(scope="module")
def zoo():
    """rl-zoo3 puts another TimeLimit into Gymnasium and registers environments when it is imported: not for other tests."""
    before = dict(gym.registry)
    gym.registry.update(_zoo_envs)  # only the first import registers them
    with pytest.MonkeyPatch.context() as patch:
        for place in (gym.wrappers, gym.wrappers.common, gym.envs.registration):
            patch.setattr(place, "TimeLimit", gym.wrappers.TimeLimit, raising=False)
        sb3_shm.zoo.register()
        yield
    for env_id in gym.registry.keys() - before.keys():
        _zoo_envs[env_id] = gym.registry.pop(env_id)
