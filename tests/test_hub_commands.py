"""Sharing models with commands, and over connections that break."""

import os
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sharing import ENV, TOKEN, actions, cartpole_model, push
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.sharing.__main__ import load_into_logs, main
from sb3_shm.sharing.folder import save_model_folder
from sb3_shm.sharing.hub import load_from_hub, push_to_hub

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def model():
    return cartpole_model()


@pytest.fixture
def shared(hub, model, monkeypatch) -> None:
    """The model is on the Hub, and the client does not wait between its attempts."""
    save_model_folder(model, hub.root / "ann/agent", "ann/agent", ENV, n_eval_episodes=1)
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda seconds: None))


LFS = "GET /lfs/"  # where the weights come from


@pytest.mark.parametrize(
    "request_, how",
    [
        ("GET .*/revision/", 500),
        ("GET .*/revision/", "hang up"),
        ("GET .*/tree/", 500),
        ("HEAD .*safetensors", 500),
        (LFS, 500),
        (LFS, "hang up"),
        (LFS, "cut"),
        (LFS, "short"),
        ("GET .*json", "cut"),
        ("GET .*json", "short"),
    ],
)
def test_downloads_that_break(hub, shared, model, tmp_path, capsys, request_, how):
    hub.breakdowns.append((request_, how))
    words = (
        "500|error happened while trying to locate"
        if how == 500
        else "disconnected|incomplete|[Cc]onsistency check failed|peer closed"
    )
    with pytest.raises(OSError, match=words):
        load_from_hub("ann/agent")
    assert main(["load", "ann/agent", "-f", str(tmp_path / "logs")]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "logs").exists()
    # What is in the cache is whole
    cache = tmp_path / "cache"
    assert not [path for path in cache.rglob("*") if path.name.endswith(".incomplete")]
    for path in cache.rglob("model.safetensors"):
        assert path.read_bytes() == (hub.root / "ann/agent/model.safetensors").read_bytes()
    hub.breakdowns.clear()
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(model))
    # What is there already needs no Hub
    hub.breakdowns.append((".", 503))
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(model))


def test_a_download_goes_on_after_a_break(hub, shared, model):
    hub.breakdowns.append((LFS, "cut once"))
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(model))
    assert len([request for request in hub.requests if request.startswith(LFS)]) == 2


@pytest.mark.parametrize(
    "request_, how",
    [
        ("POST /api/repos/create", 500),
        ("POST /api/repos/create", "hang up"),
        ("POST .*/preupload/", 500),
        ("POST .*/batch", 500),
        ("PUT /lfs/", 500),
        ("PUT /lfs/", "hang up"),
        ("POST .*/commit/", 500),
        ("POST .*/commit/", "hang up"),
    ],
)
def test_uploads_that_break(hub, shared, model, request_, how):
    hub.breakdowns.append((request_, how))
    other = cartpole_model(policy_kwargs=dict(memory="gru"))
    with pytest.raises(OSError, match="500" if how == 500 else "disconnected"):
        push(other)
    hub.breakdowns.clear()
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(model))
    push(other)
    np.testing.assert_array_equal(actions(load_from_hub("ann/agent")), actions(other))


def test_a_wrong_token_and_a_hub_that_is_away(hub, shared, model, monkeypatch, capsys):
    with pytest.raises(OSError, match=r"401 .*create"):
        push_to_hub(model, "ann/new", ENV, token="hf_wrong", n_eval_episodes=1)
    assert not (hub.root / "ann/new").exists()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match=r"connection to the Hub failed: .*refused"):
        push(model)
    with pytest.raises(OSError, match="refused"):
        load_from_hub("ann/agent")
    assert main(["load", "ann/agent"]) == 1
    assert "refused" in capsys.readouterr().err


def zoo_logs(root: Path, model: SHMPPO) -> Path:
    """What rl-zoo3's train leaves, as far as it concerns us."""
    path = root / "shm_ppo" / f"{ENV}_1"
    (path / ENV).mkdir(parents=True)
    model.save(path / ENV)
    model.get_vec_normalize_env().save(str(path / ENV / "vecnormalize.pkl"))
    hyperparams = OrderedDict(n_envs=2, normalize=True, policy="MlpSHMPolicy")
    (path / ENV / "config.yml").write_text(yaml.dump(hyperparams))
    (path / ENV / "args.yml").write_text(yaml.dump(OrderedDict(algo="shm_ppo", env_kwargs=None, folder="logs")))
    (path / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n1.0,5,0.1\n3.0,6,0.2\n2.5,4,0.3\n')
    return path


def test_commands(hub, tmp_path, monkeypatch, capsys):
    model = SHMPPO("MlpSHMPolicy", VecNormalize(make_vec_env(ENV, 2)), n_steps=16).learn(64)
    path = zoo_logs(tmp_path / "logs", model)
    arguments = [
        "push",
        "ann/agent",
        "--algo",
        "shm_ppo",
        "--env",
        ENV,
        "-f",
        str(tmp_path / "logs"),
        "--n-eval-episodes",
        "1",
    ]
    assert main(arguments) == 1
    assert "You are not logged in" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{hub.url}/ann/agent\n"
    assert yaml.safe_load((hub.root / "ann/agent/config.yml").read_text()) == dict(
        n_envs=2, normalize=True, policy="MlpSHMPolicy"
    )
    assert (hub.root / "ann/agent/learning_curve.png").is_file()
    assert main([*arguments, "--load-best"]) == 1
    assert "There is no model" in capsys.readouterr().err
    archive = path / f"{ENV}.zip"
    content = archive.read_bytes()
    SHMSAC("MlpSHMPolicy", "PendulumNoVel-v0", buffer_size=500).save(archive)
    for rest in (archive.read_bytes(), content[:1000], b"a letter"):
        archive.write_bytes(rest)
        assert main(arguments) == 1
        assert re.search(r"is no \.zip file|is no model of SHMPPO", capsys.readouterr().err)
    archive.write_bytes(content)
    assert main([word.replace("NoVel", "NoVle") for word in arguments]) == 1
    assert f"Unknown environment 'CartPoleNoVle-v0', the nearest ids are {ENV}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([word.replace("shm_ppo", "shm_pop") for word in arguments])
    assert "'shm_pop' (choose from 'shm_ppo', 'shm_sac')" in capsys.readouterr().err
    assert main([*arguments, "--exp-id", "-1"]) == 1
    assert "exp_id must be an integer, at least 0" in capsys.readouterr().err
    (path / ENV / "config.yml").write_text(yaml.dump(dict(frame_stack=3)))
    assert main(arguments) == 1
    assert "frame_stack: push the model from Python" in capsys.readouterr().err

    for number in (2, 3):
        assert main(["load", "ann/agent", "-f", str(tmp_path / "logs")]) == 0
        assert capsys.readouterr().out.strip().endswith(f"{ENV}_{number}")
    assert main(["load", "ann/agent", "-f", str(tmp_path / "logs"), "--exp-id", "3"]) == 1
    assert "exists: choose another exp_id" in capsys.readouterr().err
    assert main(["load", "ann/nothing"]) == 1
    assert "The Hub has no model" in capsys.readouterr().err


@pytest.mark.parametrize("trust", [False, True])
def test_what_arrives_in_the_logs_is_the_model(hub, tmp_path, trust):
    env = VecNormalize(make_vec_env(ENV, 2), clip_obs=0.5)
    model = SHMPPO("MlpSHMPolicy", env, n_steps=16).learn(64)
    push(model)
    path = load_into_logs("ann/agent", tmp_path / "logs", trust)
    assert path == tmp_path / "logs" / "shm_ppo" / f"{ENV}_1"
    np.testing.assert_array_equal(actions(SHMPPO.load(path / f"{ENV}.zip")), actions(model))
    normalizer = VecNormalize.load(str(path / ENV / "vecnormalize.pkl"), make_vec_env(ENV))
    obs = np.array([[0.3, -0.2]], np.float32)
    np.testing.assert_array_equal(normalizer.normalize_obs(obs), env.normalize_obs(obs))
    assert yaml.safe_load((path / ENV / "config.yml").read_text())["normalize"] == {"norm_obs": True, "norm_reward": False}
    assert yaml.safe_load((path / ENV / "args.yml").read_text()) == {"env_kwargs": {}}


@pytest.fixture
def run_here(zoo, tmp_path, monkeypatch, capsys):
    """Run a command of a module in this process and in an empty folder; return what it prints."""
    from sb3_shm.zoo import __main__ as zoo_commands

    monkeypatch.chdir(tmp_path)

    def run(module: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        assert {"zoo": zoo_commands.main, "sharing": main}[module]() in (None, 0)
        return capsys.readouterr().out

    return run


@pytest.fixture
def run_as_process(hub, tmp_path):
    """The same as a process, to which the environment names the Hub."""
    variables = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    variables |= dict(OMP_NUM_THREADS="1", NO_PROXY="127.0.0.1,localhost")

    def run(module: str, *arguments: str) -> str:
        line = [sys.executable, "-m", f"sb3_shm.{module}", *arguments]
        result = subprocess.run(line, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.parametrize("how", ["run_here", pytest.param("run_as_process", marks=pytest.mark.slow)])
def test_train_enjoy_push_load_enjoy(hub, tmp_path, monkeypatch, request, how):
    pytest.importorskip("rl_zoo3")
    command = request.getfixturevalue(how)
    few = ["-params", "n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:2"]
    command("zoo", "train", "--env", ENV, "-n", "500", "--seed", "1", "--eval-freq", "250", "--eval-episodes", "2", *few)
    enjoy = ["enjoy", "--env", ENV, "--no-render", "-n", "300", "--deterministic"]
    command("zoo", *enjoy, "-f", "logs", "--reward-log", "before")
    push_ = ["push", "ann/agent", "--algo", "shm_ppo", "--env", ENV, "-f", "logs", "--n-eval-episodes", "2"]
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        assert command("sharing", *push_).strip() == f"{hub.url}/ann/agent"
    assert Path(command("sharing", "load", "ann/agent", "-f", "loaded").strip()) == Path("loaded/shm_ppo", f"{ENV}_1")
    command("zoo", *enjoy, "-f", "loaded", "--reward-log", "after")
    before, after = (load_results(str(tmp_path / name)) for name in ("before", "after"))
    assert len(before) > 1 and before[["r", "l"]].equals(after[["r", "l"]])
    one, two = (SHMPPO.load(tmp_path / logs / "shm_ppo" / f"{ENV}_1" / f"{ENV}.zip") for logs in ("logs", "loaded"))
    np.testing.assert_array_equal(actions(one, steps=300), actions(two, steps=300))
    assert (hub.root / "ann/agent/learning_curve.png").is_file()
