"""An exported policy outside Python's package: as a web service and in C++, action by action as ``predict``."""

import http.client
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.sharing.export import export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLES = Path(__file__).parent.parent / "examples"


def episodes(model, n=2, steps=5):
    """Observations of some episodes, where they start, and what the model does."""
    model.observation_space.seed(0)
    rows, state = [], None
    for t in range(n * steps):
        start = t % steps == 0
        obs = model.observation_space.sample()
        action, state = model.predict(obs, state, np.array([start]), deterministic=True)
        rows.append((obs, start, action))
    return rows


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    model = SHMPPO("MlpSHMPolicy", "CartPoleNoVel-v0", seed=0)
    path = tmp_path_factory.mktemp("onnx") / "agent.onnx"
    export_onnx(model, path)
    return model, path


@pytest.fixture
def service(policy):
    command = [sys.executable, str(EXAMPLES / "serve_onnx.py"), str(policy[1]), "--port", "0", "--max-users", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            port = int(url.rpartition(":")[2].removesuffix("/act"))

            def post(request, path="/act"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("POST", path, request if isinstance(request, bytes) else json.dumps(request))
                response = connection.getresponse()
                answer = json.loads(response.read())
                connection.close()
                return response.status, answer

            yield post
        finally:
            process.kill()


def test_users_of_the_service_have_a_memory_each(policy, service):
    rows = episodes(policy[0])
    for obs, start, action in rows:  # two users in turns; the second sees everything twice as large
        assert service(dict(user="ann", obs=obs.tolist(), start=start)) == (200, {"action": action.tolist()})
        status, answer = service(dict(user="bob", obs=(2 * obs).tolist(), start=start))
        assert status == 200 and answer["action"] in (0, 1)


def test_service_says_what_is_wrong(service):
    def error(request, path="/act"):
        status, answer = service(request, path)
        return status, answer["error"]

    assert error(dict(user="ann", obs=[0, 0]))[0] == 409
    assert "start" in error(dict(user="ann", obs=[0, 0]))[1]
    for user in "abcd":
        assert service(dict(user=user, obs=[0, 0], start=True))[0] == 200
    assert error(dict(user="a", obs=[0, 0]))[0] == 409, "of three users the one who was away for longest is forgotten"
    assert service(dict(user="d", obs=[0, 0]))[0] == 200
    for bad in (b"", b"{", b"[" * 10_000, b"\xff", [], {}, dict(user=3, obs=[0, 0]), dict(user="a", obs=[0, 0], start=1)):
        assert error(bad)[0] == 400
    assert '"obs": [numbers]' in error(b"{")[1], "what is no JSON is told what would be"
    for obs in ([0], [[0, 0]], [0, 0, 0], "ab", None, {"a": 1}, [0, "x"], [0, 1e999], [0, [1]]):
        status, message = error(dict(user="d", obs=obs, start=True))
        assert status == 400 and "[2]" in message
    for obs in (["1", "2"], [0, 1e39], [0, None]):  # no numbers, or none of 32 bits
        assert error(dict(user="d", obs=obs, start=True))[0] == 400
    assert error(b'{"user": "d", "start": true, "obs": [0, NaN]}')[0] == 400
    assert error(dict(user="a", obs=[0, 0], start=True), "/other")[0] == 404


def test_strangers_cannot_fill_the_services_memory(service):
    assert service(dict(user="x" * 256, obs=[0, 0], start=True))[0] == 200
    status, answer = service(dict(user="x" * 257, obs=[0, 0], start=True))
    assert status == 400 and "256 characters" in answer["error"]
    status, answer = service(b"[" + b"[]," * 6000 + b"0]")
    assert status == 413 and "bytes" in answer["error"]


def test_numbers_of_the_kind_that_is_observed(tmp_path):
    """Of 8 bits, or whole ones."""
    space = spaces.Dict(kind=spaces.Discrete(4), bytes=spaces.Box(0, 255, (2,), np.uint8))
    env = make_vec_env(RandomEnv, 1, env_kwargs=dict(observation_space=space))
    export_onnx(SHMPPO("MultiInputSHMPolicy", env, seed=0), tmp_path / "agent.onnx")
    agent = runpy.run_path(str(EXAMPLES / "serve_onnx.py"))["Agent"](str(tmp_path / "agent.onnx"), 3)
    legal = dict(kind=3, bytes=[0, 255])
    assert agent.act(dict(user="a", obs=legal, start=True)) in range(3)
    for wrong in (dict(kind=1.5), dict(kind=10**19), dict(bytes=[0, 256]), dict(bytes=[-1, 0]), dict(bytes=[0, 0.5])):
        with pytest.raises(ValueError, match="must be"):
            agent.act(dict(user="a", obs={**legal, **wrong}, start=True))
    with pytest.raises(ValueError, match="must be"):
        agent.act(dict(user="a", obs=dict(kind=1), start=True))


class Numbers(gym.Env):
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def headers():
    """Where ONNX Runtime's headers are: its package for Python brings the library only."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    return next((place for place in places if place and Path(place, "onnxruntime_cxx_api.h").exists()), None)


@pytest.mark.skipif(headers() is None, reason="ONNXRUNTIME_INCLUDE does not name the folder of ONNX Runtime's headers")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_cpp(policy, tmp_path):
    capi = Path(onnxruntime.__file__).parent / "capi"
    (library,) = capi.glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # for the linker, and for the program
        (tmp_path / name).symlink_to(library)
    program = tmp_path / "act_onnx"
    source = EXAMPLES / "act_onnx.cpp"
    link = ["-L", tmp_path, "-lonnxruntime", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", source, "-I", headers(), *link, "-o", program], check=True)

    sac = SHMSAC("MlpSHMPolicy", Numbers(), seed=0, policy_kwargs=dict(memory="gru"))
    export_onnx(sac, tmp_path / "sac.onnx")
    cards = SHMPPO("MlpSHMPolicy", "RepeatPreviousEasy-v0", seed=0)  # whose observations are numbers of cards
    export_onnx(cards, tmp_path / "cards.onnx")
    for model, path in ((policy[0], policy[1]), (sac, tmp_path / "sac.onnx"), (cards, tmp_path / "cards.onnx")):
        rows = episodes(model)
        lines = "\n".join(" ".join(map(str, [int(start), *np.ravel(obs).tolist()])) for obs, start, _ in rows)
        result = subprocess.run([program, path], input=lines, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        actions = [np.array(line.split(), float) for line in result.stdout.splitlines()]
        np.testing.assert_allclose(actions, [np.ravel(action) for _, _, action in rows], rtol=1e-4, atol=1e-5)

    result = subprocess.run([program, policy[1]], input="1 0.5\n", capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "got: 1 0.5" in result.stderr
    assert subprocess.run([program, "nothing.onnx"], capture_output=True, timeout=60).returncode == 1
