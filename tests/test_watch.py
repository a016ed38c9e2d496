"""``sb3-shm watch``: what is recorded of an episode and shown of a step, which agents are found, and the page in a browser."""

import argparse
import base64
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from PIL import Image
from small_envs import Memoryless, RandomEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.envs import BATCHED_TASKS
from sb3_shm.envs.single import make_single
from sb3_shm.memory import MEMORIES
from sb3_shm.watch.marks import bars, columns, heat_map
from sb3_shm.watch.page import launch, make_page
from sb3_shm.watch.recording import record
from sb3_shm.watch.states import about, parts_of
from sb3_shm.watch.view import show_step, show_summary

folder = pytest.importorskip("sb3_shm.sharing.folder")
from sharing import nothing_unpickled  # noqa: E402  # needs the same packages

from sb3_shm.zoo import watch  # noqa: E402

ROOT = Path(__file__).parent.parent
BOX = spaces.Box(np.float32([-1, -3]), np.float32([1, 5]))
# Small, and such that pictures of different memories have different sizes
SMALL = {
    **{name: dict(memory_size=5) for name in ("shm", "shm_paper", "lru", "s6", "linear_attention", "fwp", "mlstm")},
    **{name: dict(hidden_size=6) for name in ("gru", "lstm")},
    **{name: dict(hidden_size=8, n_heads=2, window=5) for name in ("gpt", "gtrxl")},
    "ffm": dict(memory_size=5, n_contexts=3),
    "frame_stack": dict(n_frames=4),
    "mlp": {},
}
# Rows and columns of each part
SHAPES = {
    "shm": [(5, 5), (2, 4)],
    "shm_paper": [(5, 5)],
    "gru": [(2, 4)],
    "lstm": [(2, 4), (2, 4)],
    "mlp": [],
    "frame_stack": [(3, 7)],
    "ffm": [(5, 3)],
    "lru": [(2, 4)],
    "linear_attention": [(6, 5)],
    "fwp": [(5, 5)],
    "mlstm": [(6, 5), (1, 1)],
}


def env(action_space=None, longest=40, **kwargs):
    made = DummyVecEnv([lambda: RandomEnv(action_space=action_space, longest=longest, **kwargs)])
    made.seed(3)
    return made


def make(algorithm=SHMPPO, action_space=None, memory="shm", policy="MlpSHMPolicy", vec_env=None, **policy_kwargs):
    kwargs = dict(memory=memory, memory_kwargs=SMALL[memory], encoder_arch=[7], **policy_kwargs)
    return algorithm(policy, vec_env or env(action_space), policy_kwargs=kwargs, seed=0)


def text_of(html: str) -> str:
    """All that is there to be read. It is well-formed, or this raises."""
    return " ".join("".join(ET.fromstring(html).itertext()).split())


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory(algorithm, memory):
    recording = record(make(algorithm, memory=memory), env(longest=40), max_steps=6)
    assert len(recording) == 6 and not recording.over
    shapes = [part.tables.shape for part in recording.memory]
    assert all(shape[0] == 6 for shape in shapes) and len({part.name for part in recording.memory}) == len(shapes)
    assert [shape[1:] for shape in shapes] == SHAPES.get(memory, [shape[1:] for shape in shapes])
    assert (recording.reads is not None) == memory.startswith("shm")
    changes = [np.nanmax(np.abs(np.diff(part.tables, axis=0))) > 0 for part in recording.memory]
    assert all(changes) and bool(changes) == (memory != "mlp")
    assert np.isfinite(recording.values).all() and (np.triu(recording.counts, 1) == 0).all()
    last = show_step(recording, 5)
    assert text_of(last).count("What each past step contributes to this action") == 1
    assert last.count('class="heat"') == len(shapes) and MEMORIES[memory].__name__ in text_of(show_summary(recording, "Env"))
    words = {"mlp": "keeps nothing", "gru": "No number in it has a meaning", "gtrxl": "Keys and values", "shm": "by key"}
    assert words.get(memory, "") in recording.about_memory
    assert ("critics have another" in recording.about_memory) == (algorithm is SHMSAC)


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX], ids=["Discrete", "Box"])
def test_it_is_what_the_policy_does_step_by_step(algorithm, action_space):
    model = make(algorithm, action_space, share_memory=False)
    recording = record(model, env(action_space))
    assert recording.over and len(recording) > 8
    policy, state = model.policy, None
    starts = th.tensor([True])
    critic_state = None if algorithm is SHMPPO else policy.critic.body.trunk.initial_state(1)
    for t, seen in enumerate(recording.observations):
        obs = seen[""][None]
        before = state or policy.pi_trunk.initial_state(1)
        action, state = model.predict(obs, state, starts.numpy(), deterministic=True)
        assert np.array_equal(action[0], recording.actions[t])
        with th.no_grad():
            if algorithm is SHMPPO:
                distribution, _ = policy.get_distribution(th.as_tensor(obs), before, starts, deterministic=True)
                if t == 0:
                    value_state = policy.initial_state(1)
                _, value, _, value_state, _ = policy(th.as_tensor(obs), value_state, starts, deterministic=True)
                probabilities = None if action_space is BOX else distribution.distribution.probs[0]
            else:
                reading, critic_state, _ = policy.critic.body.step(th.as_tensor(obs), critic_state, starts, deterministic=True)
                taken = policy.scale_action(action) if action_space is BOX else action[:, None]
                value = policy.critic.of_taken(reading, th.as_tensor(taken)[None]).min()
                reading, _, _ = policy.acting_body.step(th.as_tensor(obs), before, starts, deterministic=True)
                probabilities = None if action_space is BOX else policy.actor.options(reading)[2][0, 0]
        assert float(value) == pytest.approx(float(recording.values[t]), rel=1e-3, abs=1e-5)
        if probabilities is None:
            assert recording.options is None
        else:
            assert np.allclose(recording.options[0][t], probabilities, atol=1e-5)
        starts = th.tensor([False])


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX], ids=["Discrete", "Box"])
def test_what_counts_is_measured_by_playing_again(algorithm, action_space):
    """Each observation exchanged in turn, and the episode played again through predict's own way, step by step."""
    model = make(algorithm, action_space, memory="frame_stack")
    recording = record(model, env(action_space), max_steps=7)
    seen = np.stack([part[""] for part in recording.observations])
    offsets = th.randint(1, 7, (4,), generator=th.Generator().manual_seed(0)).tolist()

    def play(observations):
        """Probabilities, or actions as a part of what is between the bounds."""
        result = []
        state, starts = model.policy.pi_trunk.initial_state(1), th.tensor([True])
        for obs in observations:
            tensor = th.as_tensor(obs)[None]
            if action_space is BOX:
                action, state = model.predict(obs[None], state, starts.numpy(), deterministic=True)
                result.append((action[0] - BOX.low) / (BOX.high - BOX.low))
            elif algorithm is SHMPPO:
                distribution, state = model.policy.get_distribution(tensor, state, starts, deterministic=True)
                result.append(distribution.distribution.probs[0].detach().numpy())
            else:
                reading, state, _ = model.policy.acting_body.step(tensor, state, starts, deterministic=True)
                result.append(model.policy.actor.options(reading)[2][0, 0].detach().numpy())
            starts = th.tensor([False])
        return np.stack(result)

    as_it_was = play(seen)
    for s in (0, 3):
        distances = []
        for offset in offsets:
            changed = seen.copy()
            changed[s] = seen[(s + offset) % 7]
            moved = np.abs(play(changed) - as_it_was)
            distances.append(moved.mean(axis=1) if action_space is BOX else moved.sum(axis=1) / 2)
        assert np.allclose(recording.counts[:, s], np.mean(distances, axis=0), atol=1e-5)
    assert recording.counts[3, 0] > 0 and recording.counts[4, 0] == 0  # four frames


def test_without_a_memory_only_now_counts():
    counts = record(make(memory="mlp"), env(), max_steps=6).counts
    assert (counts.diagonal() > 0).any() and (np.tril(counts, -1) == 0).all()


class Masked(RandomEnv):
    """Only one action is legal at each step: 0, 1, 2, 0, ..."""

    step_number = 0

    def action_masks(self):
        return np.arange(3) == self.step_number % 3

    def step(self, action):
        self.step_number += 1
        return super().step(action)


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
def test_masks_are_asked_for(algorithm):
    vec_env = DummyVecEnv([lambda: Masked(longest=40)])
    vec_env.seed(3)  # as env() does: the first episode is longer than what is recorded
    recording = record(make(algorithm), vec_env, max_steps=7)
    assert recording.actions == [t % 3 for t in range(7)]
    assert np.array_equal(recording.options[0].argmax(axis=1), recording.actions) and recording.options[0].max() == 1


@pytest.mark.parametrize("algorithm", [SHMPPO, SHMSAC])
def test_masks_of_box_actions_are_not(algorithm):
    vec_env = DummyVecEnv([lambda: Masked(action_space=BOX, longest=40)])
    vec_env.seed(3)
    assert len(record(make(algorithm, BOX), vec_env, max_steps=2)) == 2


@pytest.mark.parametrize(
    "action_space, sizes",
    [(spaces.MultiDiscrete([2, 4]), [2, 4]), (spaces.MultiBinary(3), [2, 2, 2])],
    ids=["discrete", "binary"],
)
def test_several_choices(action_space, sizes):
    recording = record(make(action_space=action_space), env(action_space), max_steps=4)
    assert [options.shape for options in recording.options] == [(4, size) for size in sizes]
    for i, options in enumerate(recording.options):
        assert np.allclose(options.sum(axis=1), 1, atol=1e-5)
        assert np.array_equal(options.argmax(axis=1), [action[i] for action in recording.actions])
    assert f"choice {len(sizes) - 1}" in text_of(show_step(recording, 3))


def test_dictionaries_and_pictures():
    picture = spaces.Box(0, 255, (8, 9, 3), np.uint8)
    space = spaces.Dict(view=picture, position=spaces.Box(-1, 1, (2,)), many=spaces.Box(-1, 1, (30,)))
    vec_env = env(observation_space=space)
    recording = record(make(SHMSAC, policy="MultiInputSHMPolicy", vec_env=vec_env, share_memory=True), vec_env, max_steps=2)
    html = show_step(recording, 1)
    assert {"observation position", "observation many, 1 × 30"} <= set(re.findall("observation [^<,]*(?:, 1 × 30)?", html))
    encoded = re.search('alt="observation view"[^>]*base64,([^"]*)"', html)[1]
    shown = np.asarray(Image.open(BytesIO(base64.b64decode(encoded))))
    assert np.array_equal(shown, recording.observations[1]["view"])
    assert "Actor and critics read this memory" in text_of(html)


def test_frames_are_of_before_the_step():
    def cards():
        return make_single("sb3_shm.envs.popgym.batched:RepeatPrevious", render_mode="rgb_array", n_decks=1, k=4)

    vec_env = make_vec_env(cards)
    model = make(vec_env=vec_env)
    vec_env.seed(2)
    recording = record(model, vec_env)
    assert len(recording) == len(recording.frames) == 51 and recording.over
    again = cards()
    again.reset(seed=2)
    for frame, action in zip(recording.frames, recording.actions, strict=True):
        assert np.array_equal(again.render(), frame)
        again.step(action)


def test_an_environment_that_fails_to_draw():
    class Broken(RandomEnv):
        render_mode = "rgb_array"

        def render(self):
            raise RuntimeError("no <screen>")

    class Grey(Broken):
        def render(self):
            return np.zeros((5, 6), np.uint8)

    for one, error in ((Broken, "no <screen>"), (Grey, "it has the shape (5, 6), not (height, width, 3)")):
        vec_env = DummyVecEnv([lambda one=one: one(longest=40)])
        vec_env.seed(3)
        recording = record(make(), vec_env, max_steps=2)
        assert not recording.frames and f"draws no picture: {error}" in text_of(show_step(recording, 0))


def test_layers():
    recording = record(make(memory="gru", memory_layers=2), env(), max_steps=3)
    assert [part.name for part in recording.memory] == ["layer 1: hidden state", "layer 2: hidden state"]


def test_a_memory_of_ones_own():
    class Own(Memoryless):
        def initial_state(self, n):
            return th.zeros(n, 9), (th.zeros(n, dtype=th.int64), th.zeros(n, 2, 3, 4))

    first, second = parts_of(Own(3), [Own(3).initial_state(1)] * 2)
    assert (first.name, first.tables.shape, second.name, second.tables.shape) == (
        "part 1 of its state",
        (2, 2, 5),
        "part 2 of its state",
        (2, 2, 12),
    )
    assert np.isnan(first.tables).sum() == 2 and "does not know this memory" in about(Own(3))


def test_heat_maps_have_the_colours_of_their_numbers():
    html = heat_map(np.array([[-2.0, 0.0], [2.0, np.nan]]), 2.0, "a <table>")
    assert text_of(html) == "a <table>, 2 × 2-2 2"
    encoded = re.search('class="heat"[^>]*base64,([^"]*)"', html)[1]
    (blue, white), (red, nothing) = np.asarray(Image.open(BytesIO(base64.b64decode(encoded)))).astype(int)
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and white.min() > 240 and (nothing == 255).all()


def test_bars_begin_at_zero():
    tree = ET.fromstring(bars(np.array([0.5, -2.0, 9.0]), ["a", "b", "<c>"], 2.0, chosen=1, signed=True))
    styles = [dict(part.split(":") for part in bar.get("style").split(";")) for bar in tree.iter("div")]
    assert [(style["margin-left"], style["width"]) for style in styles] == [
        ("50.0%", "12.5%"),
        ("0.0%", "50.0%"),
        ("50.0%", "50.0%"),
    ]
    assert [row.findtext("th") for row in tree] == ["a", "b", "<c>"] and tree[1][2].text == "-2 ◀"


def test_columns_stop_at_now():
    tree = ET.fromstring(columns(np.array([0.25, 1.0, 0.5, 0.0]), 2, 1.0, "share"))
    drawn = tree.findall("rect")[1:]
    assert [float(part.get("height")) / 90 for part in drawn] == [0.25, 1.0, 0.5]
    assert drawn[1].findtext("title") == "step 1: share 1"


def test_refusals():
    with pytest.raises(ValueError, match="must be an SHMPPO or an SHMSAC, got a PPO"):
        record(PPO("MlpPolicy", env()), env())
    with pytest.raises(ValueError, match="must be one environment, got 2"):
        record(make(), DummyVecEnv([RandomEnv, RandomEnv]))
    with pytest.raises(ValueError, match=r"env must be a VecEnv, got .*: write DummyVecEnv\(\[lambda: env\]\)"):
        record(make(), RandomEnv())
    with pytest.raises(ValueError, match="max_steps"):
        record(make(), env(), max_steps=0)
    recording = record(make(), env(), max_steps=2)
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        show_step(recording, 2)


# ---------------------------------------------------------------------------------------------------------------------


def arguments(*given: str) -> argparse.Namespace:
    return watch._parser().parse_args(given)


def recorded(*given: str, steps: int = 5):
    args = arguments(*given)
    with nullcontext() if args.trust else nothing_unpickled():
        model, vec_env, env_id = watch.load_agent(watch.find_agent(args), args)
    vec_env.seed(args.seed)
    recording = record(model, vec_env, steps)
    vec_env.close()
    return recording, env_id


def test_the_agents_of_a_clone_are_read_safely():
    recording, env_id = recorded(steps=60)
    assert env_id == "RepeatPreviousEasy-v0" and sum(recording.rewards) > 0.9 and recording.frames
    # It names the suit of three steps ago, and that is what counts
    assert np.array_equal(recording.counts[3:].argmax(axis=1), np.arange(len(recording) - 3))
    recording, _ = recorded("--algo", "shm_sac", "--env", "PendulumNoVel-v0")
    assert recording.options is None and recording.frames
    own, env_id = recorded("-f", str(ROOT / "trained" / "shm_ppo" / "CartPoleNoVel-v0_1"))
    assert env_id == "CartPoleNoVel-v0" and "GRU" in own.agent
    # Its statistics are those of its training: what the policy gets is not what the environment gives
    raw = gym.make("CartPoleNoVel-v0").reset(seed=0)[0]
    assert not np.allclose(own.observations[0][""], raw, atol=1e-3)


@pytest.fixture
def normalised(tmp_path):
    """A model of stacked and normalised frames, and its folder of logs as rl-zoo3 writes it."""
    vec_env = VecFrameStack(VecNormalize(make_vec_env("CartPoleNoVel-v0", 2, seed=0)), 3)
    model = SHMPPO("MlpSHMPolicy", vec_env, n_steps=16, seed=0).learn(64)
    path = tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_1"
    (path / "CartPoleNoVel-v0").mkdir(parents=True)
    (tmp_path / "logs" / "shm_ppo" / "CartPoleNoVel-v0_2").mkdir()  # of a training that failed
    model.save(path / "CartPoleNoVel-v0.zip")
    vec_env.venv.save(str(path / "CartPoleNoVel-v0" / "vecnormalize.pkl"))
    (path / "CartPoleNoVel-v0" / "config.yml").write_text("frame_stack: 3\nnormalize: true\n")
    (path / "CartPoleNoVel-v0" / "args.yml").write_text("env_kwargs: null\n")
    return model, vec_env, tmp_path / "logs"


def test_statistics_and_stacked_frames(normalised, tmp_path):
    model, vec_env, logs = normalised
    trained = ("--env", "CartPoleNoVel-v0", "-f", str(logs), "--seed", "5")
    recording, _ = recorded(*trained, "--trust")
    task, kwargs = BATCHED_TASKS["CartPoleNoVel-v0"]
    raw = make_single(task, **kwargs)
    first = vec_env.venv.normalize_obs(raw.reset(seed=5)[0])
    assert np.allclose(recording.observations[0][""], [0, 0, 0, 0, *first], atol=1e-6)
    # The same as a folder without pickles
    packed = tmp_path / "packed" / "shm_ppo" / "CartPoleNoVel-v0_1"
    packed.parent.mkdir(parents=True)
    config = dict(frame_stack=3, normalize=True)
    folder.save_model_folder(model, packed, None, "CartPoleNoVel-v0", eval_env=vec_env, n_eval_episodes=1, config=config)
    again, _ = recorded("--env", "CartPoleNoVel-v0", "-f", str(tmp_path / "packed"), "--seed", "5")
    assert again.actions == recording.actions and np.allclose(again.values, recording.values, atol=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def refused(monkeypatch, capsys):
    monkeypatch.setattr(watch, "import_gradio", lambda: None)

    def run(*given: str) -> str:
        own = () if "--port" in given else ("--port", str(free_port()))  # the default may be taken by a page that is looked at
        with pytest.raises(SystemExit) as info:
            watch.watch([*given, *own])
        text = str(info.value)
        assert text.startswith("sb3-shm watch: ") and "\n" not in text
        return text

    return run


def test_what_is_wrong_is_said_in_one_line(refused, normalised, tmp_path, monkeypatch):
    _, _, logs = normalised
    assert "no folder nowhere: give -f" in refused("-f", "nowhere")
    assert "sb3-shm train --env CartPole-v1 -f logs" in refused("-f", str(tmp_path), "--env", "CartPole-v1")
    text = refused("--env", "Unknown-v0")
    assert "no agent of shm_ppo for Unknown-v0: it has --algo shm_ppo --env CartPole-v1; " in text
    assert "--algo shm_sac --env PendulumNoVel-v0" in text
    assert "--exp-id 7: it has --algo shm_ppo --env CartPole-v1 --exp-id 1; " in refused("--exp-id", "7")
    assert "env_id must be an id" in refused("--env", "../secret")
    ours = ("--env", "CartPoleNoVel-v0", "-f", str(logs))
    repeat_previous = tmp_path / "of another"
    shutil.copytree(logs / "shm_ppo" / "CartPoleNoVel-v0_1", repeat_previous / "shm_ppo" / "RepeatPreviousEasy-v0_1")
    shutil.copy(
        logs / "shm_ppo" / "CartPoleNoVel-v0_1" / "CartPoleNoVel-v0.zip",
        repeat_previous / "shm_ppo" / "RepeatPreviousEasy-v0_1" / "RepeatPreviousEasy-v0.zip",
    )
    with nothing_unpickled():
        assert "add --trust if you made it, or pack it by `sb3-shm hub pack" in refused(*ours)
    assert "pack --algo shm_ppo --env RepeatPreviousEasy-v0" in refused("-f", str(repeat_previous))
    run = ("-f", str(logs / "shm_ppo" / "CartPoleNoVel-v0_1"))
    of_run = f"write --algo shm_ppo --env CartPoleNoVel-v0 -f {logs} --exp-id 1"
    assert of_run in refused(*run) and of_run in refused(*run, "--env", "CartPoleNoVel-v0", "--trust")
    assert "holds no best_model.zip, but CartPoleNoVel-v0.zip" in refused(*ours, "--load-best", "--trust")
    assert "holds no rl_model_9_steps.zip" in refused(*ours, "--load-checkpoint", "9", "--trust")
    own = ROOT / "trained" / "shm_ppo" / "CartPole-v1_1"
    assert "holds an agent for CartPole-v1: give --env CartPole-v1" in refused("-f", str(own), "--env", "Ant-v5")
    for more in (["--load-best"], ["--load-checkpoint", "5"], ["--load-last-checkpoint"]):
        assert "a packed agent holds one model: leave out" in refused("-f", str(own), *more)
    assert "the environment CartPole-v1 is missing, damaged or does not fit" in refused(
        "--env", "CartPole-v1", "--env-kwargs", "length:3"
    )
    assert "--env-kwargs takes NAME:VALUE" in refused("--env", "CartPole-v1", "--env-kwargs", "length:open('x')")
    assert "--steps must be" in refused("--steps", "0") and "--seed must be" in refused("--seed", "-1")
    assert "--port must be from 1 to 65535" in refused("--port", "0")
    (logs / "shm_ppo" / "CartPoleNoVel-v0_1" / "CartPoleNoVel-v0.zip").write_bytes(b"no archive")
    assert "CartPoleNoVel-v0.zip is missing, damaged or does not fit" in refused(*ours, "--trust")
    damaged = tmp_path / "damaged"
    shutil.copytree(own, damaged)
    (damaged / "model.safetensors").write_bytes(b"12345678")
    assert "model.safetensors is missing, damaged or does not fit" in refused("-f", str(damaged))
    manifest = (own / "sb3_shm.json").read_text()
    (damaged / "sb3_shm.json").write_text(manifest.replace('"CartPole-v1"', '"CartPool-v1"'))
    assert "Unknown environment 'CartPool-v1', the nearest ids are CartPole-v1" in refused("-f", str(damaged))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Port {port} is taken: give another one, for example --port {port + 1}" in refused("--port", str(port))
    monkeypatch.setattr(watch.sb3_shm, "__file__", str(tmp_path / "site" / "sb3_shm" / "__init__.py"))
    assert "has no agents: give -f trained of a clone" in refused()


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'needs gradio: pip install "sb3-shm\[watch\]"'):
        watch.watch(["--port", "1"])


def test_only_this_computers_names_are_answered():
    """A web page elsewhere may have its name lead to this computer, to read what is shown here."""
    pytest.importorskip("gradio", reason="extra watch")
    page, port = make_page(record(make(), env(), max_steps=2), "test"), free_port()
    try:
        launch(page, port, open_browser=False)
        for host, status in (("127.0.0.1", 200), ("localhost", 200), ("evil.example", 400)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/config", headers=dict(Host=f"{host}:{port}"))
            assert connection.getresponse().status == status, host
            connection.close()
    finally:
        page.close()


def browser_path() -> str | None:
    """:return: a Chromium of the system; None if there is none"""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path is not None), None)


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """Where gradio, playwright and a Chromium are. SCREENSHOT=docs/images/watch.png makes the picture of the documentation."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "sb3_shm.zoo", "watch", "--no-browser", "--port", str(port)]
    log = tmp_path / "log"
    with playwright.sync_playwright() as run, open(log, "w") as output:
        try:
            browser = run.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {error}")
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            deadline = time.monotonic() + 240
            while "Ctrl+C ends it" not in log.read_text():
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            own = socket.gethostbyname(socket.gethostname())
            if not own.startswith("127."):
                with socket.socket() as outside:
                    assert outside.connect_ex((own, port)) != 0, "others can reach the page"
            asked, errors = [], []
            page = browser.new_page(viewport=dict(width=1200, height=900))
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: errors.append(error))
            page.goto(url)

            def at(step: int) -> None:
                page.wait_for_selector(f"#shown .watch[data-step='{step}']")

            at(0)
            assert "RepeatPreviousEasy-v0 · SHMPPO, memory SHM" in page.inner_text("body")
            page.click("#forward")
            at(1)
            page.click("#back")
            at(0)
            page.click("#back")  # there is nothing before
            page.click("#play")
            at(2)
            page.click("#play")
            page.wait_for_timeout(1500)  # for a step that was on its way
            number = page.locator("#step input[type=number]")
            number.fill("20")
            number.press("Enter")
            at(20)
            page.wait_for_timeout(1200)
            at(20)  # it does not play on
            assert page.locator("#shown img.heat").count() == 2 and page.locator("#shown svg.chart").count() == 3
            assert "step 17, 3 ago: 1" in page.inner_text("#shown .causes")
            heat = page.locator("#shown img.heat").first
            before = heat.get_attribute("src")
            slider = page.locator("#step input[type=range]")
            slider.focus()
            slider.press("ArrowRight")
            at(21)
            assert heat.get_attribute("src") != before and heat.bounding_box()["width"] > 200
            number.fill("49")
            number.press("Enter")
            at(49)
            page.click("#play")
            at(50)
            page.wait_for_selector("#play:has-text('Play')")
            assert "return so far 1 " in page.inner_text("#shown")
            slider.press("Home")
            at(0)
            number.fill("20")
            number.press("Enter")
            at(20)
            picture = Path(os.environ.get("SCREENSHOT") or tmp_path / "watch.png")
            page.screenshot(path=picture, full_page=True)
            assert len(Image.open(picture).convert("RGB").getcolors(10**6)) > 50
            browser.close()
            assert not errors
            assert len(asked) > 5 and {address for address in asked if not address.startswith((url, "data:"))} == set()
        finally:
            server.terminate()
            server.wait(20)
