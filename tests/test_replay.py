"""MemoryReplayBuffer: the tape against a slow list of rows, all windows and episodes one by one, and bad use."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from small_envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import VecNormalize

from sb3_shm.shm_sac.sampling import lay_out
from sb3_shm.shm_sac.tape import MemoryReplayBuffer

NUMBERS = spaces.Box(-np.inf, np.inf, (1,), np.float64)
GO_ON, TERMINATED, TIMED_OUT = range(3)


def mask_of(obs: np.ndarray) -> np.ndarray:
    """Which of three actions are legal with numbered observations, (n, 3)."""
    return np.asarray(obs)[..., None] // [1, 2, 4] % 2 == 0


class SlowTape:
    """What the buffer should hold: for each environment a list of its newest rows."""

    def __init__(self, n_envs: int, size: int) -> None:
        self.size = size
        self.rows: list[list[dict]] = [[] for _ in range(n_envs)]
        self.in_episode = [False] * n_envs

    def add(self, env: int, obs: float, next_obs: float, action: float, reward: float, end: int, context: int) -> None:
        rows = self.rows[env]
        if not self.in_episode[env]:
            rows.append(dict(obs=obs, step=0))
        assert rows[-1]["obs"] == obs
        rows[-1].update(action=action, reward=reward, terminal=end == TERMINATED, context=context)
        rows.append(dict(obs=next_obs, step=rows[-1]["step"] + 1))
        self.in_episode[env] = end == GO_ON
        del rows[: -self.size]

    def windows(self, length: int) -> list[list[dict]]:
        return [rows[i : i + length] for rows in self.rows for i in range(len(rows) - length + 1)]

    def episodes(self) -> list[list[dict]]:
        """Those with both ends on the tape."""
        found = []
        for rows, in_episode in zip(self.rows, self.in_episode, strict=True):
            starts = [i for i, row in enumerate(rows) if row["step"] == 0]
            whole = [rows[i:j] for i, j in zip(starts, [*starts, len(rows)][1:], strict=True)]
            found += whole[:-1] if in_episode else whole
        return found


class Player:
    """Plays numbered observations into a buffer and into the slow tape: none comes twice, except as the next of another."""

    def __init__(self, buffer: MemoryReplayBuffer, context: bool = False, seed: int = 0, masks: bool = False) -> None:
        self.buffer, self.context, self.masks = buffer, context, masks
        n = buffer.n_envs
        self.slow = SlowTape(n, buffer.buffer_size)
        self.now = 1000.0 * np.arange(1, n + 1)
        self.starts = np.ones(n, dtype=bool)
        self.rng = np.random.default_rng(seed)

    def step(self, ends: list[int], reset: bool = False) -> None:
        n = self.buffer.n_envs
        if reset:  # from outside: what comes next is no consequence of what was done
            self.now += 1
            self.starts[:] = True
            self.slow.in_episode = [False] * n
        action, reward = self.rng.normal(size=(n, 1)).astype(np.float32), self.rng.normal(size=n).astype(np.float32)
        context = self.rng.integers(256, size=(n, 1), dtype=np.uint8)
        done = np.array(ends) != GO_ON
        infos = [{"TimeLimit.truncated": end == TIMED_OUT} for end in ends]
        kept = context[:, None] if self.context else None
        masks = [mask_of(self.now), mask_of(self.now + 1)] if self.masks else []
        self.buffer.add(self.now[:, None], self.now[:, None] + 1, action, reward, done, infos, self.starts, kept, *masks)
        for i, end in enumerate(ends):
            self.slow.add(i, self.now[i], self.now[i] + 1, action[i, 0], reward[i], end, context[i, 0])
        self.now += 1 + done  # the next observation, or another episode's first
        self.starts = done


def make(n_envs: int = 1, size: int = 10, seq_len: int | None = 3, burn_in: int = 0, **kwargs) -> MemoryReplayBuffer:
    args = dict(observation_space=NUMBERS, action_space=spaces.Box(-1, 1, (1,), np.float32), device="cpu")
    args.update(kwargs)
    return MemoryReplayBuffer(size * n_envs, n_envs=n_envs, seq_len=seq_len, burn_in=burn_in, **args)


def each_once(buffer: MemoryReplayBuffer, env: VecNormalize | None = None):
    """A batch with all that the buffer could draw, each once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda high, size: np.arange(high))
        return buffer.sample(1, env)


def check_rows(batch, i: int, begin: int, expected: list[dict]) -> None:
    """Rows of the batch's sequence i, from ``begin`` on, against those of the slow tape."""
    for t, row in enumerate(expected, begin):
        assert batch.observations[i, t].item() == row["obs"]
        if batch.action_masks is not None:  # the last row's, too
            assert batch.action_masks[i, t].tolist() == mask_of(row["obs"]).tolist()
        assert batch.steps[i, t].item() == row["step"]
        assert batch.episode_starts[i, t].item() == (row["step"] == 0)
        if "action" in row and t < batch.mask.shape[1]:
            assert batch.actions[i, t].item() == row["action"]
            assert batch.rewards[i, t].item() == row["reward"]
            assert batch.terminals[i, t].item() == row["terminal"]
        if "action" in row and batch.context is not None:
            assert batch.context[i, t].item() == row["context"]


def test_the_row_after_a_transition_is_its_true_next_observation():
    """By hand: environment 0 terminates at its second step, environment 1 times out at its third; both then go on."""
    buffer = make(n_envs=2, size=8)
    script = [  # (obs, next_obs, how it ended) of both environments
        ((10, 11, GO_ON), (20, 21, GO_ON)),
        ((11, 12, TERMINATED), (21, 22, GO_ON)),
        ((13, 14, GO_ON), (22, 23, TIMED_OUT)),
        ((14, 15, GO_ON), (24, 25, GO_ON)),
    ]
    for t, step in enumerate(script):
        obs, next_obs, ends = (np.array(part, dtype=float) for part in zip(*step, strict=True))
        infos = [{"TimeLimit.truncated": end == TIMED_OUT} for end in ends]
        actions, rewards = np.full((2, 1), t / 10), np.array([t, -t])
        buffer.add(obs[:, None], next_obs[:, None], actions, rewards, ends != GO_ON, infos)
    assert buffer.tape[""][:, :, 0].tolist() == [[10, 11, 12, 13, 14, 15, 0, 0], [20, 21, 22, 23, 24, 25, 0, 0]]
    assert buffer.written.tolist() == [6, 6] and buffer.size() == 12
    assert buffer.steps[:, :6].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1]]
    assert buffer.is_transition[:, :6].tolist() == [[1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 1, 0]]
    assert buffer.terminals[:, :6].tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    taken = buffer.is_transition
    assert buffer.rewards[0][taken[0]][:4].tolist() == [0, 1, 2, 3]
    assert buffer.rewards[1][taken[1]][:4].tolist() == [0, -1, -2, -3]
    np.testing.assert_array_equal(buffer.actions[1, :, 0][taken[1]][:4], np.float32([0, 0.1, 0.2, 0.3]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_windows_against_the_slow_tape(data):
    """Every window that fits, none across the write head, nothing stale in it, and the right rows count."""
    n_envs = data.draw(st.integers(1, 3))
    size = data.draw(st.integers(2, 9))
    seq_len = data.draw(st.integers(1, size - 1))
    burn_in = data.draw(st.integers(0, seq_len - 1))
    end = st.sampled_from([GO_ON, GO_ON, GO_ON, TERMINATED, TIMED_OUT])
    moves = data.draw(st.lists(st.lists(end, min_size=n_envs, max_size=n_envs), max_size=25))
    resets = data.draw(st.sets(st.integers(0, 24), max_size=3))
    context, masks = data.draw(st.booleans()), data.draw(st.booleans())
    buffer = make(n_envs, size, seq_len, burn_in)
    player = Player(buffer, context, masks=masks)
    for t, ends in enumerate(moves):
        player.step(ends, reset=t in resets)
    assert buffer.size() == sum(len(rows) for rows in player.slow.rows)
    expected = player.slow.windows(seq_len + 1)
    assert buffer.can_sample() == bool(expected)
    if not expected:
        with pytest.raises(ValueError, match="does not hold"):
            buffer.sample(1)
        return
    batch = each_once(buffer)
    assert len(batch.mask) == len(expected) and (batch.context is not None) == context
    assert (batch.action_masks is not None) == masks
    for i, window in enumerate(expected):
        check_rows(batch, i, 0, window)
        complete = False
        for t, row in enumerate(window[:-1]):
            complete |= row["step"] == 0
            follows = window[t + 1]["step"] == row["step"] + 1  # or else the row is an episode's last observation
            assert batch.mask[i, t].item() == (follows and (complete or t >= burn_in))
            if batch.mask[i, t]:
                assert batch.observations[i, t + 1] == batch.observations[i, t] + 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whole_episodes_against_the_slow_tape(data):
    """Every episode with both ends on the tape, each once, end to end, and no other."""
    n_envs = data.draw(st.integers(1, 3))
    size = data.draw(st.integers(2, 9))
    end = st.sampled_from([GO_ON, GO_ON, GO_ON, TERMINATED, TIMED_OUT])
    moves = data.draw(st.lists(st.lists(end, min_size=n_envs, max_size=n_envs), max_size=25))
    resets = data.draw(st.sets(st.integers(0, 24), max_size=3))
    buffer = make(n_envs, size, seq_len=None)
    player = Player(buffer, context=data.draw(st.booleans()), masks=data.draw(st.booleans()))
    for t, ends in enumerate(moves):
        # No longer than the tape: the step that fills it is the last one
        steps = [rows[-1]["step"] if on else 0 for rows, on in zip(player.slow.rows, player.slow.in_episode, strict=True)]
        ends = [end or TIMED_OUT * (step == size - 2) for end, step in zip(ends, steps, strict=True)]
        player.step(ends, reset=t in resets)
    expected = {episode[0]["obs"]: episode for episode in player.slow.episodes()}
    assert buffer.can_sample() == bool(expected)
    if not expected:
        with pytest.raises(ValueError, match="does not hold a whole episode"):
            buffer.sample(1)
        return
    batch = each_once(buffer)
    assert batch.mask.shape[1] + 1 == max(map(len, expected.values()))
    assert batch.mask.sum() == sum(len(episode) - 1 for episode in expected.values())
    assert batch.episode_starts.sum() == len(expected)
    for i, t in batch.episode_starts.nonzero().tolist():
        episode = expected.pop(batch.observations[i, t].item())
        check_rows(batch, i, t, episode)
        assert batch.mask[i, t : t + len(episode) - 1].all()
    assert not expected


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.integers(2, 12), min_size=1, max_size=12))
def test_lay_out(rows):
    """Nothing is lost, doubled or torn, and no episode could move up into a row above."""
    k = len(rows)
    envs, first = np.arange(k) + 5, 100 * np.arange(k)
    env_of, age_of, held = lay_out(envs, first, np.array(rows))
    assert env_of.shape == age_of.shape == held.shape == (len(held), max(rows))
    assert held[:, 0].all() and held.sum() == sum(rows)
    places = {}
    for i, n in enumerate(rows):
        (row,), (begin,) = np.nonzero(held & (env_of == envs[i]) & (age_of == first[i]))
        here = (row, slice(begin, begin + n))
        assert held[here].all() and (env_of[here] == envs[i]).all()
        assert (age_of[here] == np.arange(first[i], first[i] + n)).all()
        places[i] = row
    for i, row in places.items():
        for above in range(row):
            # What lies there and was placed before episode i, which is not longer
            longer = [j for j, r in places.items() if r == above and (rows[j] > rows[i] or (rows[j] == rows[i] and j < i))]
            assert sum(rows[j] for j in longer) + rows[i] > max(rows)


def test_lay_out_by_hand():
    env_of, age_of, held = lay_out(np.array([0, 1, 2, 3]), np.array([7, 0, 3, 9]), np.array([2, 5, 3, 2]))
    assert env_of[held].tolist() == [1] * 5 + [2] * 3 + [0] * 2 + [3] * 2
    assert age_of[held].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 7, 8, 9, 10]
    assert held.tolist() == [[True] * 5, [True] * 5, [True, True, False, False, False]]


def test_windows_are_drawn_uniformly():
    """Also where environments hold different numbers of rows: each window is as likely as any other."""
    buffer = make(n_envs=3, size=40, seq_len=4)
    player = Player(buffer)
    for t in range(30):  # environment 0 ends every step, 1 every third, 2 never: 60 (so 40), 40, and 31 rows
        player.step([TERMINATED, TIMED_OUT * (t % 3 == 2), GO_ON])
    assert [len(rows) for rows in player.slow.rows] == [40, 40, 31]
    n_windows, n = 36 + 36 + 27, 60_000
    first = buffer.sample(n).observations[:, 0, 0].numpy()
    _, counts = np.unique(first, return_counts=True)
    assert len(counts) == n_windows
    chi_square = ((counts - n / n_windows) ** 2 / (n / n_windows)).sum()
    assert chi_square < n_windows + 4 * np.sqrt(2 * n_windows)


def test_episodes_are_drawn_uniformly():
    buffer = make(n_envs=2, size=40, seq_len=None)
    player = Player(buffer)
    for t in range(36):
        player.step([TERMINATED * (t % 2), TIMED_OUT * (t % 9 == 8)])
    expected = player.slow.episodes()
    assert len(expected) == 13 + 4
    n = 3000
    batch = buffer.sample(n)
    _, counts = np.unique(batch.observations[batch.episode_starts].numpy(), return_counts=True)
    assert len(counts) == 17 and counts.sum() == n
    assert ((counts - n / 17) ** 2 / (n / 17)).sum() < 17 + 4 * np.sqrt(2 * 17)


def test_burn_in_by_hand():
    """Rows of a window count from its ``burn_in``-th on, and from the first start of an episode in it on."""
    buffer = make(size=20, seq_len=4, burn_in=3)
    player = Player(buffer)
    for end in (GO_ON, TERMINATED, GO_ON, GO_ON, GO_ON, GO_ON, GO_ON):
        player.step([end])
    # steps in the episodes: 0 1 2 | 0 1 2 3 4 5, where 2 | is a last observation
    assert each_once(buffer).mask.int().tolist() == [
        [1, 1, 0, 1],  # 0 1 2 | 0 1
        [0, 0, 1, 1],  # 1 2 | 0 1 2
        [0, 1, 1, 1],  # 2 | 0 1 2 3
        [1, 1, 1, 1],  # 0 1 2 3 4
        [0, 0, 0, 1],  # 1 2 3 4 5
    ]


SPACES = {
    "box": spaces.Box(-5, 5, (2, 3), np.float64),
    "image": spaces.Box(0, 255, (3, 5, 4), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (1, 4, 4), np.uint8), "n": spaces.Discrete(3)}),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("seq_len", [3, None], ids=["windows", "episodes"])
def test_observation_spaces(space, seq_len):
    """What goes in comes out, in its own type."""
    n, steps = 2, 12
    rng = np.random.default_rng(0)
    space.seed(0)
    buffer = make(n, 50, seq_len, observation_space=space, action_space=spaces.Discrete(5))

    def stack(observations: list) -> np.ndarray | dict[str, np.ndarray]:
        if isinstance(space, spaces.Dict):
            return {key: np.stack([o[key] for o in observations]) for key in space.spaces}
        return np.stack(observations)

    def parts(observation) -> dict[str, np.ndarray]:
        return observation if isinstance(observation, dict) else {"": observation}

    now = [space.sample() for _ in range(n)]
    transitions = []  # rewards number them
    for t in range(steps):
        following = [space.sample() for _ in range(n)]
        action, done = rng.integers(5, size=n), np.array([t % 4 == 3, t % 5 == 4])
        buffer.add(stack(now), stack(following), action, np.arange(n) + n * t, done, [{}] * n)
        transitions += zip(now, action, following, done, strict=True)
        now = [space.sample() if d else f for d, f in zip(done, following, strict=True)]
    batch = each_once(buffer)
    assert batch.actions.dtype == th.int64 and batch.rewards.dtype == th.float32 and batch.steps.dtype == th.int64
    assert batch.mask.any()
    observations = parts(batch.observations)
    for i, t in batch.mask.nonzero().tolist():
        obs, action, following, done = transitions[int(batch.rewards[i, t])]
        assert batch.actions[i, t].tolist() == [action] and batch.terminals[i, t] == done
        for name, o in observations.items():
            here, after = np.asarray(parts(obs)[name]), np.asarray(parts(following)[name])
            assert o.numpy().dtype == here.dtype and o.shape[2:] == (here.shape or (1,))
            np.testing.assert_array_equal(o[i, t].numpy().reshape(here.shape), here)
            np.testing.assert_array_equal(o[i, t + 1].numpy().reshape(here.shape), after)


def test_actions_of_several_dimensions():
    buffer = make(action_space=spaces.Box(-1, 1, (2, 3), np.float64), seq_len=1)
    action = np.arange(6).reshape(1, 2, 3) / 10
    buffer.add(np.zeros((1, 1)), np.ones((1, 1)), action, np.zeros(1), np.zeros(1), [{}])
    batch = buffer.sample(1)
    assert batch.actions.dtype == th.float32
    np.testing.assert_array_equal(batch.actions[0, 0].numpy(), action.ravel().astype(np.float32))


def test_normalised_when_sampled():
    """By the statistics of that moment, the tape keeps the raw numbers."""
    box = spaces.Box(-9, 9, (2,), np.float32)
    for space in (box, spaces.Dict({"a": box, "b": box})):
        is_dict = isinstance(space, spaces.Dict)
        keys = ["a"] if is_dict else None
        env = VecNormalize(
            make_vec_env(RandomEnv, 1, env_kwargs=dict(observation_space=space)),
            norm_obs_keys=keys,
            clip_obs=1.5,
            epsilon=0.25,
        )
        statistics = env.obs_rms["a"] if is_dict else env.obs_rms
        statistics.mean, statistics.var = np.array([1.0, -2.0]), np.array([0.75, 3.75])  # with epsilon: 1 and 4
        env.ret_rms.var = np.float64(8.75)  # 9
        buffer = make(observation_space=space, seq_len=1)
        obs = np.array([[2.0, -1.0]], dtype=np.float32)
        further = np.array([[9.0, 0.0]], dtype=np.float32)
        pack = (lambda o: {"a": o, "b": o}) if is_dict else (lambda o: o)
        buffer.add(pack(obs), pack(further), np.zeros((1, 1)), np.array([6.0]), np.array([True]), [{}])
        raw, batch = buffer.sample(1), buffer.sample(1, env)
        observations = batch.observations["a"] if is_dict else batch.observations
        assert observations.dtype == th.float32 and observations[0].tolist() == [[1, 0.5], [1.5, 1]]
        assert batch.rewards.dtype == th.float32 and batch.rewards.item() == 2
        if is_dict:
            assert batch.observations["b"][0].tolist() == [[2, -1], [9, 0]]
        assert (raw.observations["a"] if is_dict else raw.observations)[0].tolist() == [[2, -1], [9, 0]]
        assert raw.rewards.item() == 6


@pytest.mark.parametrize(
    "space, action_space, context, per_row",
    [
        (spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float64), False, 12 + 8 + 10),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Discrete(4), True, 192 + 8 + 1 + 10),
        (SPACES["dict"], spaces.Discrete(4), False, 16 + 8 + 8 + 10),
    ],
)
def test_bytes(space, action_space, context, per_row, capsys):
    """The docstring's formula, nothing before the first row, and the message that says so."""
    buffer = make(3, 100, observation_space=space, action_space=action_space, verbose=1)
    assert buffer.nbytes == 0 and not buffer.can_sample() and buffer.size() == 0
    obs = {k: np.stack([s.sample()] * 3) for k, s in space.items()} if isinstance(space, spaces.Dict) else None
    obs = np.stack([space.sample()] * 3) if obs is None else obs
    assert capsys.readouterr().out == ""
    action = np.stack([action_space.sample()] * 3)
    drawn = np.zeros((3, 1, 1), dtype=np.uint8) if context else None
    buffer.add(obs, obs, action, np.zeros(3), np.zeros(3), [{}] * 3, np.ones(3, dtype=bool), drawn)
    assert buffer.nbytes == 300 * per_row
    assert f"{300 * per_row / 1e9:.3g} GB" in capsys.readouterr().out
    buffer.reset()
    assert buffer.nbytes == 0 and buffer.size() == 0


def test_a_huge_tape_costs_nothing_before_it_is_used():
    buffer = make(size=10**12)
    assert buffer.nbytes == 0
    with pytest.raises(ValueError, match="does not hold a window of 4 rows"):
        buffer.sample(1)


def test_end_episodes_of_some_environments():
    buffer = make(n_envs=3, seq_len=1)
    player = Player(buffer)
    player.step([GO_ON, GO_ON, TERMINATED])
    buffer.end_episodes(np.array([True, False, False]))
    player.now[0] += 5  # of an episode that starts now, without a word in the next call
    player.starts[:] = False
    player.slow.in_episode[0] = False
    player.step([GO_ON] * 3)
    assert buffer.written.tolist() == [4, 3, 4]
    assert buffer.steps[:, :4].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0], [0, 1, 0, 1]]
    batch = each_once(buffer)
    for i, window in enumerate(player.slow.windows(2)):
        check_rows(batch, i, 0, window)
    assert batch.mask[:, 0].tolist() == [True, False, True, True, True, True, False, True]
    buffer.end_episodes()
    assert not buffer.is_open.any() and not buffer.steps_taken.any()


@pytest.mark.parametrize("seq_len", [3, None], ids=["windows", "episodes"])
def test_save_and_go_on(seq_len, tmp_path):
    """A loaded tape is the same tape: what is added and drawn later is the same, too."""
    buffer = make(n_envs=2, size=12, seq_len=seq_len, burn_in=0 if seq_len is None else 1)
    player = Player(buffer, context=True, masks=True)

    def play(steps: int) -> None:
        for _ in range(steps):
            player.step([int(end) for end in player.rng.choice([GO_ON, TERMINATED, TIMED_OUT], size=2)])

    play(9)
    save_to_pkl(tmp_path / "tape.pkl", buffer)
    loaded = load_from_pkl(tmp_path / "tape.pkl")
    assert loaded.nbytes == buffer.nbytes and loaded.verbose == buffer.verbose
    moment = [np.copy(player.now), np.copy(player.starts), player.rng.bit_generator.state]
    play(20)
    player.buffer, player.now, player.starts, player.rng.bit_generator.state = loaded, *moment
    player.slow = SlowTape(2, 12)  # compared already
    player.slow.add = lambda *args: None
    play(20)
    for ours, theirs in zip(each_once(buffer), each_once(loaded), strict=True):
        assert th.equal(ours, theirs)


def test_the_same_tape_in_other_windows():
    buffer = make(size=10, seq_len=None)
    player = Player(buffer)
    for end in (GO_ON, GO_ON, TERMINATED, GO_ON):
        player.step([end])
    assert each_once(buffer).mask.shape == (1, 3)
    buffer.set_windows(2, 1)
    assert each_once(buffer).mask.int().tolist() == [[1, 1], [0, 1], [0, 0], [0, 1]]


def test_episode_as_long_as_the_tape():
    """It fits; one step more does not, and what was held is held still."""
    buffer = make(size=5, seq_len=None)
    player = Player(buffer)
    player.step([TERMINATED])
    for end in (GO_ON, GO_ON, GO_ON, TERMINATED):
        player.step([end])
    batch = each_once(buffer)
    assert batch.observations[0, :, 0].tolist() == [1002, 1003, 1004, 1005, 1006] and batch.mask.all()
    for _ in range(4):
        player.step([GO_ON])
    assert not buffer.can_sample()  # the running episode takes all the room
    before = buffer.tape[""].copy(), buffer.rewards.copy(), buffer.written.copy()
    with pytest.raises(ValueError, match=r"environment 0 is longer than the buffer.*= 5 rows.*raise buffer_size"):
        player.step([GO_ON])
    for ours, theirs in zip(before, (buffer.tape[""], buffer.rewards, buffer.written), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    buffer.set_windows(4, 0)  # windows do not mind
    player.step([GO_ON])
    assert buffer.can_sample()


def test_environment_with_the_too_long_episode_is_named():
    buffer = make(n_envs=3, size=4, seq_len=None)
    player = Player(buffer)
    for _ in range(3):
        player.step([TERMINATED, GO_ON, TIMED_OUT])
    with pytest.raises(ValueError, match="environment 1 is longer"):
        player.step([TERMINATED, GO_ON, TIMED_OUT])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(seq_len=10), r"seq_len \+ 1 = 11 rows never fits into the 10 rows of one environment"),
        (dict(n_envs=3, seq_len=10), "raise buffer_size to 33 at least"),
        (dict(seq_len=0), "seq_len .* at least 1"),
        (dict(seq_len=2.5), "seq_len .* an integer"),
        (dict(seq_len=4, burn_in=4), "burn_in must be below seq_len = 4, got 4"),
        (dict(burn_in=-1), "burn_in must be an integer, at least 0"),
        (dict(seq_len=None, burn_in=1), "burn_in must be 0 with whole episodes"),
        (dict(size=1, seq_len=None), "buffer_size must be an integer, at least 2"),
        (dict(optimize_memory_usage=True), "optimize_memory_usage must be False"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_bad_windows_leave_the_old_ones():
    buffer = make(size=10, seq_len=4, burn_in=2)
    for wrong in ((10, 0), (3, 3), (None, 1)):
        with pytest.raises(ValueError):
            buffer.set_windows(*wrong)
        assert (buffer.seq_len, buffer.burn_in) == (4, 2)


def test_bad_batch_size():
    buffer = make(seq_len=1)
    Player(buffer).step([GO_ON])
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size must be an integer, at least 1"):
            buffer.sample(wrong)


def test_sampling_too_early_says_what_is_missing():
    buffer = make(n_envs=2, seq_len=3)
    player = Player(buffer)
    for _ in range(2):
        player.step([GO_ON, GO_ON])
    with pytest.raises(ValueError, match="a window of 4 rows of one environment yet, only 6 rows"):
        buffer.sample(4)
    player.step([GO_ON, GO_ON])
    assert buffer.sample(4).mask.shape == (4, 3)
    whole = make(seq_len=None)
    player = Player(whole)
    player.step([GO_ON])
    with pytest.raises(ValueError, match="a whole episode yet, only 2 rows"):
        whole.sample(4)
    player.step([TERMINATED])
    assert whole.sample(4).mask.shape == (4, 2)
