"""
The 42 POPGym tasks with flat observations, so that Stable-Baselines3 accepts every one of them.

Source: POPGym 1.0.7 (Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning", ICLR 2023; MIT
licence). Rules, rewards and lengths are POPGym's own; this module only flattens what the agent sees. Two ids per task and
level:

* ``<Task><Level>-v0``, for example ``AutoencodeEasy-v0``: the task as released;
* ``<Task><Level>PrevAction-v0``: each observation is followed by the previous action (zero at the first step) and by a
  one-hot flag for the first step, both from POPGym's own wrappers ``PreviousAction`` and ``Antialias``. Battleship,
  Concentration, MineSweeper and MultiarmedBandit cannot be played well without the previous action.

Observations are float32 vectors, laid out as ``gymnasium.spaces.utils.flatten`` does: one-hot for (multi-)discrete values,
plain numbers for the rest, the parts of a tuple one after the other. No time limit is added. In the list, a/b/c are the
values at the levels Easy/Medium/Hard, n is the number of cards, and returns lie between -1 and 1 unless the line says
otherwise.

* Autoencode: mode and suit (6 numbers); Discrete(4); 103/207/311 steps. Watch n = 52/104/156 cards, then name their suits
  from the last to the first: ±1/n each. The mode turns from 1 to 0 with the last card.
* Battleship: hit or not (2); MultiDiscrete, a cell of a board of 8²/10²/12²; at most 64/100/144 steps. Sink four ships of 12
  cells in all: +1/12 for a new hit, -1/(cells - 12) for a miss. The worst return is below -1.
* Concentration: every card on the table, face down included (156/312/728); Discrete(52/104/52); at most 104/208/104 steps.
  Turn up equal cards (colour/colour/rank) two by two: +2/n for a pair, otherwise -1 or -2 per 104/208/104.
* CountRecall: the dealt and the queried card (4/8/26); Discrete(27/27/17); 51/103/207 steps. How often was the queried card
  (colour/suit/rank) dealt so far: ±1/length each.
* HigherLower: rank (13); Discrete(2); 51/103/155 steps. Will the next card be higher (0) or lower (1): ±1/n, 0 for equal
  ranks.
* MineSweeper: mines around the last cell (3/7/10); MultiDiscrete, a cell of a board of 4²/6²/8²; at most 14/30/54 steps.
  Open the 14/30/54 cells without a mine: 1/14, 1/30, 1/54 each; an open cell costs a little, a mine costs more than 0.5 and
  ends the episode.
* MultiarmedBandit: paid or not (2); Discrete(10/20/30); 200/400/600 steps. Pull the arm that pays most often: ±1/length
  each.
* PositionOnlyCartPole: position and angle (2); Discrete(2); at most 200/400/600 steps. Hold the pole up: 1/limit per step.
* VelocityOnlyCartPole: the same with both velocities (2), but the first observation of an episode holds position and angle,
  as POPGym 1.0.7 has it.
* NoisyPositionOnlyCartPole: the same as PositionOnlyCartPole with Gaussian noise of 0.1/0.2/0.3 and at most 200 steps.
* PositionOnlyPendulum: cosine and sine (2); Box(-2, 2, (1,)); 200/150/100 steps. Swing up and hold: between ±1/length per
  step.
* NoisyPositionOnlyPendulum: the same with Gaussian noise of 0.1/0.2/0.3 and 200 steps.
* RepeatFirst: suit (4); Discrete(4); 51/415/831 steps. Name the suit of the first card at each step: ±1/(n - 1).
* RepeatPrevious: suit (4); Discrete(4); 51/103/155 steps. Name the suit of k - 1 observations ago (k = 4/32/64): ±1/(n - k),
  0 as long as there is none.

``popgym`` itself is imported when an environment is made, not before: ``pip install "sb3-shm[popgym]"``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsFloat, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from numpy.typing import NDArray

from sb3_shm.envs.popgym import LEVELS

FloatArray: TypeAlias = NDArray[np.float32]
Flattener: TypeAlias = Callable[[Any], FloatArray]
# Writes one part of an observation into its place in the flat vector
PartWriter: TypeAlias = Callable[[FloatArray, Any], None]

# Every task of POPGym that needs nothing beyond numpy (the Labyrinth tasks need mazelib). Written down here because the ids
# must be known without importing popgym; a test compares the list with popgym's own.
TASKS = (
    "Autoencode",
    "Battleship",
    "Concentration",
    "CountRecall",
    "HigherLower",
    "MineSweeper",
    "MultiarmedBandit",
    "NoisyPositionOnlyCartPole",
    "NoisyPositionOnlyPendulum",
    "PositionOnlyCartPole",
    "PositionOnlyPendulum",
    "RepeatFirst",
    "RepeatPrevious",
    "VelocityOnlyCartPole",
)
POPGYM_NAMES = tuple(task + level for task in TASKS for level in LEVELS)


# The parts below are module-level functions bound with ``partial``, not closures: an environment must be picklable.
def _flatten_discrete(size: int, start: int, value: int) -> FloatArray:
    flat = np.zeros(size, dtype=np.float32)
    flat[value - start] = 1.0
    return flat


def _flatten_multi_discrete(size: int, offsets: NDArray[np.int64], value: NDArray[np.int64]) -> FloatArray:
    flat = np.zeros(size, dtype=np.float32)
    flat[offsets + value] = 1.0
    return flat


def _flatten_discretes(size: int, offsets: tuple[int, ...], values: tuple[int, ...]) -> FloatArray:
    flat = np.zeros(size, dtype=np.float32)
    for offset, value in zip(offsets, values, strict=True):
        flat[offset + value] = 1.0
    return flat


def _flatten_parts(size: int, writers: tuple[PartWriter, ...], values: tuple[Any, ...]) -> FloatArray:
    flat = np.zeros(size, dtype=np.float32)
    for write, value in zip(writers, values, strict=True):
        write(flat, value)
    return flat


def _flatten_any(space: spaces.Space[Any], value: Any) -> FloatArray:
    return np.asarray(flatten(space, value), dtype=np.float32)


def _write_discrete(offset: int, flat: FloatArray, value: int) -> None:
    flat[offset + value] = 1.0


def _write_multi_discrete(offsets: NDArray[np.int64], flat: FloatArray, value: NDArray[np.int64]) -> None:
    flat[offsets + value] = 1.0


def _write_any(begin: int, end: int, space: spaces.Space[Any], flat: FloatArray, value: Any) -> None:
    flat[begin:end] = np.asarray(flatten(space, value))


def _one_hot_offsets(space: spaces.MultiDiscrete) -> NDArray[np.int64]:
    """
    :return: The number to add to each entry of a sample to get the place of its 1 in the flat vector.
    """
    return np.concatenate(([0], np.cumsum(space.nvec)[:-1])).astype(np.int64) - space.start


def make_flattener(space: spaces.Space[Any]) -> Flattener:
    """
    Build a function that does the same as ``gymnasium.spaces.utils.flatten(space, observation)``, as float32 and several times
    faster: what depends on the space only (sizes, offsets) is worked out once, here.

    :param space: Discrete, MultiDiscrete and Tuples of these take the fast way, any other space that Gymnasium can flatten the
        general one.
    :return: A function from an observation of ``space`` to a new float32 vector of ``flatdim(space)`` numbers.
    :raises ValueError: If the space has no flat size (graphs, sequences).
    """
    size = flatdim(space)
    if isinstance(space, spaces.Discrete):
        return partial(_flatten_discrete, size, int(space.start))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return partial(_flatten_multi_discrete, size, _one_hot_offsets(space))
    if not isinstance(space, spaces.Tuple):
        return partial(_flatten_any, space)

    ends = np.cumsum([flatdim(part) for part in space.spaces]).tolist()
    begins = [0, *ends[:-1]]
    if all(isinstance(part, spaces.Discrete) for part in space.spaces):
        starts = [int(part.start) for part in space.spaces if isinstance(part, spaces.Discrete)]
        return partial(_flatten_discretes, size, tuple(begin - start for begin, start in zip(begins, starts, strict=True)))
    writers: list[PartWriter] = []
    for begin, end, part in zip(begins, ends, space.spaces, strict=True):
        if isinstance(part, spaces.Discrete):
            writers.append(partial(_write_discrete, begin - int(part.start)))
        elif isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim == 1:
            writers.append(partial(_write_multi_discrete, begin + _one_hot_offsets(part)))
        else:
            writers.append(partial(_write_any, begin, end, part))
    return partial(_flatten_parts, size, tuple(writers))


def _own_copy(info: dict[str, Any]) -> dict[str, Any]:
    """
    CountRecall and MultiarmedBandit put arrays into info that they change or return again later, which would change the infos
    that a user has kept (Gymnasium's ``check_env`` refuses it).
    """
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in info.items()}


def flat_box(space: spaces.Space[Any]) -> spaces.Box[np.float32]:
    """
    The space of what ``make_flattener(space)`` returns.

    :param space: Any space that Gymnasium can flatten.
    :return: A one-dimensional float32 Box with the bounds of the parts (0 and 1 for one-hot parts).
    """
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box), f"{space} does not flatten to a Box"
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


class FlatPOPGym(gym.Wrapper[FloatArray, Any, Any, Any]):
    """
    A POPGym task with flat observations, and with a text rendering if the task draws nothing itself.

    :param env: The POPGym environment, inside POPGym's own wrappers or not.
    :param render_mode: "human" or "rgb_array" for the CartPole and Pendulum tasks, "human" (printed) or "ansi" (returned as
        a string) for all others, where "rgb_array" is taken as None.
    :raises ValueError: If the task has no such ``render_mode``.
    """

    def __init__(self, env: gym.Env[Any, Any], render_mode: str | None = None) -> None:
        super().__init__(env)
        self._flatten = make_flattener(env.observation_space)
        self.observation_space = flat_box(env.observation_space)
        self._draws_itself = bool(env.metadata.get("render_modes"))
        if not self._draws_itself:
            self.metadata = {**env.metadata, "render_modes": ["human", "ansi"], "render_fps": 4}
            # Stable-Baselines3 asks every environment that it makes from an id for images, in case someone wants a video
            render_mode = None if render_mode == "rgb_array" else render_mode
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode must be one of {modes} for {type(env.unwrapped).__name__}, not {render_mode!r}")
        # The constructors of POPGym's levels take no render_mode; it is read when the first frame is drawn
        env.unwrapped.render_mode = render_mode
        self._last_observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """
        :param seed: Seed of the environment's random numbers.
        :param options: Passed on; POPGym's own tasks have none.
        :return: The flat observation, and the task's info.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._last_observation = observation
        return self._flatten(observation), _own_copy(info)

    def step(self, action: Any) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: An action of the task, unchanged.
        :return: The flat observation; reward, terminated, truncated and info are the task's own.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last_observation = observation
        return self._flatten(observation), reward, terminated, truncated, _own_copy(info) if info else info

    def render(self) -> Any:
        """
        :return: An image, or a text in the mode "ansi", or None.
        """
        if self._draws_itself:
            return self.env.render()
        if self.render_mode is None:
            return None
        printed = io.StringIO()
        try:
            # POPGym's board and card games print themselves or return a text, whatever the mode
            with contextlib.redirect_stdout(printed):
                returned = self.env.render()
            text = returned if isinstance(returned, str) else printed.getvalue()
        except (NotImplementedError, ValueError):
            # Most tasks have no picture, and that of Concentration fits 52 cards only: show what POPGym returned last
            text = f"{type(self.unwrapped).__name__}: {self._last_observation}\n"
        if self.render_mode == "ansi":
            return text
        print(text, end="" if text.endswith("\n") else "\n")
        return None


def make_popgym(name: str, previous_action: bool = False, render_mode: str | None = None) -> FlatPOPGym:
    """
    Make a POPGym task: the entry point behind every id of this module.

    :param name: Task and level, one of ``POPGYM_NAMES``, for example ``"AutoencodeEasy"``.
    :param previous_action: Append the previous action and a flag for the first step to each observation.
    :param render_mode: See ``FlatPOPGym``.
    :return: The environment.
    :raises ImportError: If popgym is not installed.
    :raises ValueError: If there is no such task, or the task has no such ``render_mode``.
    """
    if name not in POPGYM_NAMES:
        raise ValueError(f"{name!r} is no task with a level: the tasks are {', '.join(TASKS)}, the levels {', '.join(LEVELS)}")
    try:
        import popgym.envs
        from popgym.wrappers import Antialias, PreviousAction
    except ImportError as error:
        raise ImportError(f'{name} needs the package popgym: pip install "sb3-shm[popgym]"') from error

    env = getattr(popgym.envs, name)()
    if previous_action:
        # POPGym's wrappers take nothing but POPGym's environments, so they cannot be put around what gym.make() returns
        env = Antialias(PreviousAction(env))
    return FlatPOPGym(env, render_mode=render_mode)
