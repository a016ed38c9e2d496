"""Acting without carrying the state by hand."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_shm.memory.base import State
from sb3_shm.training.masks import WithMasks


class StatefulPredictor:
    """
    A trained model that remembers between calls::

        predictor = StatefulPredictor(model)
        obs, done = vec_env.reset(), None
        while True:
            action = predictor.act(obs, done)
            obs, reward, done, info = vec_env.step(action)

    :param model: a model whose ``predict`` takes and returns a state, or one :class:`~sb3_shm.WithMasks`
    :param deterministic: the most likely actions
    :raises TypeError: no model, for example the path of one
    """

    def __init__(self, model: BaseAlgorithm | WithMasks, deterministic: bool = True) -> None:
        if not hasattr(model, "predict"):
            raise TypeError(f"model must be a trained model, for example SHMPPO.load(path), got {model!r}")
        self.model = model
        self.deterministic = deterministic
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next observation is the first of an episode, in all environments."""
        self._state: State | None = None

    def act(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        done: np.ndarray | bool | None = None,
        action_masks: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        :param obs: observation of one environment, or observations of several
        :param done: whether the previous step ended the episode, so that ``obs`` is the first of a new one; one bool per
            environment; None for nowhere
        :param action_masks: which options are legal, one mask of bool per observation; None for all
        :return: action(s)
        """
        start = None if done is None else np.atleast_1d(np.asarray(done, dtype=bool))
        model: Any = self.model
        masks = {} if action_masks is None else {"action_masks": action_masks}
        actions: np.ndarray
        actions, state = model.predict(obs, self._state, start, self.deterministic, **masks)
        self._state = state
        return actions
