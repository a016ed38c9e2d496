"""What every test has: fixed seeds, one thread, no window."""

import itertools
import os
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils import seeding
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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("needs signals, processes or limits that Windows does not have")


_np_random = seeding.np_random


@pytest.fixture(autouse=True)
def fixed_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed every generator before each test: a test then gives the same result alone, in any order and in any worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global generator is what must not differ
    th.manual_seed(0)
    # Also those that environments and spaces draw from without a seed
    count = itertools.count(1_000_000)
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: _np_random(next(count) if seed is None else seed))


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this computer, to which huggingface_hub's client talks; nobody is logged in, nothing has been downloaded."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from hub_server import HubServer
    from huggingface_hub import constants

    with HubServer(tmp_path / "hub", token="hf_thisIsTheSecretToken").serving() as server:
        # Read from the environment when the client is imported, which other tests may have done
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        huggingface_hub.close_session()  # its proxies are those of the environment that it was opened in
        yield server
        huggingface_hub.close_session()
