"""rl-zoo3's commands in environments with action masks, which rl-zoo3 does not know of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rl_zoo3.enjoy
import rl_zoo3.utils
from stable_baselines3.common import callbacks
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_shm.training.masks import ReadsMasks, WithMasks, masks_of
from sb3_shm.zoo.exchange import exchanged


@contextmanager
def passing_masks() -> Iterator[None]:
    """
    While this lasts, our algorithms get the masks of the environments in which ``train`` evaluates them, and ``enjoy`` and
    ``record_video`` let them play. Names are exchanged because these call ``predict`` without masks, and offer no hook.
    """
    of_played: list[Callable[[], dict[str, Any]]] = []
    predict, create_test_env = ReadsMasks.predict, rl_zoo3.utils.create_test_env

    def evaluate(model: Any, env: VecEnv, *args: Any, **kwargs: Any) -> Any:
        return evaluate_policy(WithMasks(model, env) if isinstance(model, ReadsMasks) else model, env, *args, **kwargs)

    def create(*args: Any, **kwargs: Any) -> VecEnv:
        env = create_test_env(*args, **kwargs)
        of_played[:] = [masks_of(env)]
        return env

    def predict_there(model: ReadsMasks, *args: Any, **kwargs: Any) -> Any:
        return predict(model, *args, **{**(of_played[0]() if of_played else {}), **kwargs})

    with exchanged(
        (callbacks, "evaluate_policy", evaluate),
        (rl_zoo3.utils, "create_test_env", create),
        (rl_zoo3.enjoy, "create_test_env", create),
        (ReadsMasks, "predict", predict_there),
    ):
        yield
