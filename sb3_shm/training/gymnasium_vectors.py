"""Vector environments of Gymnasium as vector environments of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymnasiumVecEnv(VecEnv):
    """
    A vector environment of Gymnasium as one of Stable-Baselines3. It behaves as ``make_vec_env`` does with N single
    environments: where an episode ends, ``step`` returns the first observation of the next one, and ``infos`` hold the last
    one's ``terminal_observation``, ``TimeLimit.truncated`` and, as if each environment was in a Monitor, ``episode`` with
    return, length and time. The algorithms make it of a ``gymnasium.vector.VectorEnv`` by themselves.

    How the next episode begins depends on ``metadata["autoreset_mode"]`` (NEXT_STEP if it is not there, as in Gymnasium):

    * SAME_STEP: by the same step; the last observation comes from ``infos["final_obs"]``, the infos from ``final_info``.
    * DISABLED: by ``reset(options={"reset_mask": ...})``, at once.
    * NEXT_STEP: Gymnasium would spend a step on it, which ignores the action and is no transition of any episode.
      SyncVectorEnv and AsyncVectorEnv know ``reset_mask`` in this mode, too: it is done as in the mode DISABLED, and no step
      is spent. Others are refused.

    :param env: N environments
    :raises ValueError: a vector environment in the mode NEXT_STEP that cannot begin single episodes anew, or whose mode is
        unknown, or Gymnasium's NormalizeObservation
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if not isinstance(mode, AutoresetMode):
            raise ValueError(f"metadata['autoreset_mode'] of {env} must be a gymnasium.vector.AutoresetMode, got {mode!r}")
        base = env.unwrapped
        # Without shared memory, the worker of an AsyncVectorEnv would reset once more at the next step
        can_reset_some = isinstance(base, SyncVectorEnv) or (isinstance(base, AsyncVectorEnv) and base.shared_memory)
        if mode == AutoresetMode.NEXT_STEP and not can_reset_some:
            raise ValueError(
                f"{env} begins new episodes by a step that ignores the action (AutoresetMode.NEXT_STEP), which is no step of "
                "any episode: make it with an autoreset_mode of SAME_STEP or DISABLED if it has one, by "
                "gym.make_vec(id, num_envs, vectorization_mode='sync'), or by make_vec_env of Stable-Baselines3"
            )
        layer: Any = env
        while isinstance(layer, VectorWrapper):
            if isinstance(layer, NormalizeObservation):
                raise ValueError(
                    "gymnasium.wrappers.vector.NormalizeObservation cannot begin single episodes anew: use VecNormalize of "
                    "Stable-Baselines3, VecNormalize(GymnasiumVecEnv(env)), instead"
                )
            layer = layer.env
        self.env = env
        self._resets_itself = mode == AutoresetMode.SAME_STEP
        self.tells_last_masks = False
        """Put an episode's last action mask into its info, as ``terminal_action_masks``; in the mode SAME_STEP it is to."""
        self._actions: Any = None
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._begin = time.time()
        self._known: set[str] = set()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """
        Begin a new episode in every environment; what was given to ``seed()`` and ``set_options()`` takes effect.

        :return: observations, (N, ...) or a dict of them
        :raises ValueError: options that are not the same for all environments
        """
        if any(options != self._options[0] for options in self._options):
            raise ValueError("A vector environment of gymnasium takes the same options for all its environments")
        # Gymnasium counts up from the first seed, as Stable-Baselines3 does
        obs, infos = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = _list_infos(infos, self.num_envs)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._reset_seeds()
        self._reset_options()
        return self._own(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: (N, ...)
        :raises ValueError: fractions where the actions are whole numbers
        """
        actions, dtype = np.asarray(actions), self.env.action_space.dtype
        # Bits of MultiBinary may come as 0.0 and 1.0
        if actions.dtype.kind == "f" and np.issubdtype(dtype, np.integer) and not (actions % 1 == 0).all():
            raise ValueError(f"The actions must be whole numbers, got {actions}")
        self._actions = np.asarray(actions, dtype=dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations (N, ...) or a dict of them, rewards (N,) float32, dones (N,) bool, infos
        :raises ValueError: the mode is SAME_STEP, an episode ended, and its last observation is not in ``infos["final_obs"]``
        """
        new_obs, *others, of_all = self.env.step(self._actions)
        obs, rewards, terminated, truncated = self._own(new_obs), *map(np.asarray, others)
        infos = _list_infos(of_all, self.num_envs)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        if dones.any():
            ended = dones.nonzero()[0].tolist()
            last = [self._final(infos[i]) if self._resets_itself else _row(obs, i) for i in ended]
            if self._resets_itself:
                of_resets = infos
                infos = [infos[i].get("final_info", {}) if done else infos[i] for i, done in enumerate(dones)]
            else:
                if self.tells_last_masks:
                    masks = self.env_method("action_masks")
                    for i in ended:
                        infos[i]["terminal_action_masks"] = np.array(masks[i])
                first, of_all = self.env.reset(options={"reset_mask": dones.copy()})
                of_resets = _list_infos(of_all, self.num_envs)
                obs = _replace(obs, self._own(first), dones)
            now = round(time.time() - self._begin, 6)
            for i, last_obs in zip(ended, last, strict=True):
                self.reset_infos[i] = {k: v for k, v in of_resets[i].items() if k not in ("final_obs", "final_info")}
                infos[i]["terminal_observation"] = last_obs
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                infos[i]["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": now}
            self._returns[dones] = 0
            self._lengths[dones] = 0
        return obs, rewards.astype(np.float32), dones, infos

    def _final(self, info: dict[str, Any]) -> Any:
        if "final_obs" not in info:
            raise ValueError(
                f"{self.env} declares AutoresetMode.SAME_STEP, but gives no infos['final_obs'] where an episode ended: the "
                "last observation must be there, as it is learned from"
            )
        return deepcopy(info["final_obs"])

    def _own(self, obs: Any) -> VecEnvObs:
        """Observations as numpy's arrays, which later steps leave alone."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.array(obs[key]) for key in self.observation_space.spaces}
        return np.array(obs)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: a picture of each environment, (height, width, 3) uint8
        """
        pictures: Any = self.env.render()
        return [None] * self.num_envs if pictures is None else list(pictures)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: ``spec``, ``render_mode`` or ``metadata`` of the vector environment, or an attribute of its
            environments, or, if it has none, of itself
        :param indices: which environments, all by default
        :return: its value once per environment
        :raises AttributeError: there is none of this name
        """
        base: Any = self.env.unwrapped
        if attr_name in ("spec", "render_mode", "metadata") or not hasattr(base, "call"):
            values = [getattr(base if attr_name == "spec" else self.env, attr_name)] * self.num_envs
        else:
            self._check_has(attr_name)
            values = list(base.get_attr(attr_name))
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: an attribute of the environments
        :param value: its new value
        :param indices: None for all
        :raises NotImplementedError: there are no single environments, or not all of them are meant
        """
        self._calling("set", attr_name, indices).set_attr(attr_name, [value] * self.num_envs)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: a method of the environments
        :param indices: None for all
        :return: what it returns, once per environment
        :raises NotImplementedError: there are no single environments, or not all of them are meant
        :raises AttributeError: they have no such method
        """
        together: Any = self.env.unwrapped
        if method_name == "action_masks" and not hasattr(together, "call"):
            masks = np.asarray(together.action_masks())
            return [masks[i] for i in self._get_indices(indices)]
        base = self._calling("call", method_name, indices)
        self._check_has(method_name)
        return list(base.call(method_name, *method_args, **method_kwargs))

    def _calling(self, what: str, name: str, indices: VecEnvIndices) -> Any:
        base = self.env.unwrapped
        if not hasattr(base, "call") or list(self._get_indices(indices)) != list(range(self.num_envs)):
            raise NotImplementedError(f"Cannot {what} {name!r}: {self.env} does it in all its environments, or cannot do it")
        return base

    def _check_has(self, name: str) -> None:
        """An AsyncVectorEnv does not survive being asked for what its environments have not."""
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv) and name not in self._known:
            one = base.env_fns[0]()
            try:
                one.get_wrapper_attr(name)
            finally:
                one.close()
            self._known.add(name)  # a method may be called at each step

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :return: True for Monitor, whose work is done here; for others whether the environments are in one, as far as they are
            in this process
        """
        envs = getattr(self.env.unwrapped, "envs", None)
        return [
            issubclass(wrapper_class, Monitor) or (envs is not None and is_wrapped(envs[i], wrapper_class))
            for i in self._get_indices(indices)
        ]


def adapt_vector_env(env: Any) -> Any:
    """
    :param env: what a user gave as environment
    :return: the same; of an id the environment; of a vector environment of Gymnasium one of Stable-Baselines3
    :raises ValueError: see :class:`GymnasiumVecEnv`
    """
    env = maybe_make_env(env, verbose=0)
    return GymnasiumVecEnv(env) if isinstance(env, VectorEnv) else env


def _list_infos(infos: Any, n_envs: int) -> list[dict[str, Any]]:
    """
    :param infos: of a vector environment, ``_key`` says which of its environments have ``key``
    :param n_envs: N
    :return: one for each environment, without what is not one value per environment
    """
    if isinstance(infos, list):  # of gymnasium.wrappers.vector.DictInfoToList
        return infos
    listed: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    for key, value in infos.items() if isinstance(infos, dict) else ():
        values = _list_infos(value, n_envs) if isinstance(value, dict) else value
        is_list = isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim > 0)
        if key.startswith("_") or not is_list or len(values) != n_envs:
            continue
        mask = infos.get(f"_{key}")
        for i, one in enumerate(values):
            if mask is None or mask[i]:
                listed[i][key] = one
    return listed


def _row(obs: Any, i: int) -> Any:
    return {key: part[i].copy() for key, part in obs.items()} if isinstance(obs, dict) else obs[i].copy()


def _replace(obs: Any, new: Any, rows: np.ndarray) -> Any:
    if isinstance(obs, dict):
        return {key: _replace(part, new[key], rows) for key, part in obs.items()}
    obs[rows] = new[rows]
    return obs
