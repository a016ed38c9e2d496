"""rl-zoo3's ``train`` such that a run that is killed can go on, and runs that start at once do not mix."""

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_shm import SHMSAC
from sb3_shm.files import open_atomically, save_vec_normalize
from sb3_shm.zoo.exchange import exchanged


class SaveWithCheckpoint(BaseCallback):
    """
    Beside rl-zoo3's checkpoints of the model, the statistics of the VecNormalize and the replay buffer, where rl-zoo3's
    ``--trained-agent`` looks for them; rl-zoo3 writes them at the end only, or with a better model.

    :param manager: rl-zoo3's, which says where and how often
    """

    def __init__(self, manager: ExperimentManager) -> None:
        super().__init__()
        self.manager = manager

    def _on_step(self) -> bool:
        if self.n_calls % self.manager.save_freq == 0:
            vec_normalize = self.model.get_vec_normalize_env()
            if vec_normalize is not None:
                vec_normalize.save(os.path.join(self.manager.params_path, "vecnormalize.pkl"))
            if self.manager.save_replay_buffer and hasattr(self.model, "save_replay_buffer"):
                self.model.save_replay_buffer(os.path.join(self.manager.save_path, "replay_buffer.pkl"))
        return True


class TimeEstimate(BaseCallback):
    """
    Says once how long a training will take: some seconds after it has begun to learn, from its speed since then.

    :param seconds: how long to measure
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._begin: tuple[float, int] | None = None
        self._is_said = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # SAC does not learn before learning_starts, and first uses compile
        if self._is_said or self.n_calls == 0 or self.num_timesteps < getattr(self.model, "learning_starts", 0):
            return
        now = time.monotonic(), self.num_timesteps
        if self._begin is None:
            self._begin = now
            return
        passed, steps = now[0] - self._begin[0], now[1] - self._begin[1]
        if passed >= self.seconds:
            left = (self.model._total_timesteps - self.num_timesteps) / steps * passed
            left = min(left, timedelta.max.days * 86400)  # who means to stop it by hand gives any number of steps
            print(f"{steps / passed:,.0f} steps/s: about {timedelta(seconds=round(left))} h:m:s left", flush=True)
            self._is_said = True


class _TrialId(int):
    """The number of a trial, of which 0 is one, too; rl-zoo3 asks whether it is true."""

    def __bool__(self) -> bool:
        return True


_WHERE_ARGUMENTS_ARE_REFUSED = ("rl_zoo3.", "sb3_shm.", "stable_baselines3.", "gymnasium.envs.registration.")


def _is_refusal(error: Exception) -> bool:
    """:return: whether an argument was refused, rather than the user's own code broken, whose traceback is wanted"""
    last = list(traceback.walk_tb(error.__traceback__))[-1][0]
    module = f"{last.f_globals.get('__name__')}."
    return isinstance(error, TypeError | ValueError) and module.startswith(_WHERE_ARGUMENTS_ARE_REFUSED)


class Manager(ExperimentManager):  # type: ignore[misc, unused-ignore]
    """
    rl-zoo3's, with checkpoints that are complete, a folder that belongs to one run alone, and one line where an argument is
    refused.
    """

    _has_folder = False

    def setup_experiment(self) -> Any:
        """
        :return: rl-zoo3's
        :raises SystemExit: an argument of algorithm, policy or environment is refused; says why
        """
        try:
            return super().setup_experiment()  # type: ignore[no-untyped-call, unused-ignore]
        except Exception as error:
            if not _is_refusal(error):
                raise
            if self._has_folder:
                shutil.rmtree(self.save_path, ignore_errors=True)  # which holds nothing yet
            raise SystemExit(f"sb3-shm train: error: {' '.join(str(error).split())}") from error

    def read_hyperparameters(self) -> Any:
        """:return: rl-zoo3's, those of the trial 0, too"""
        if self.trial_id is not None:
            self.trial_id = _TrialId(self.trial_id)
        return super().read_hyperparameters()

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> Any:
        """
        :return: rl-zoo3's
        :raises ValueError: the study has no such trial
        """
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except KeyError as error:  # optuna's
            raise ValueError(f"There is no study {study_name} in {storage}") from error
        except IndexError as error:
            raise ValueError(f"The study {study_name} in {storage} has no trial {trial_id}; they count from 0") from error

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """
        :return: rl-zoo3's
        :raises ValueError: the model to go on with has no statistics beside it, and rl-zoo3 would begin new ones
        """
        statistics = Path(self.trained_agent).parent / self.env_name / "vecnormalize.pkl"
        are_read = self.normalize and self.normalize_kwargs.get("norm_obs", True)
        if self.continue_training and are_read and not statistics.exists():
            others = [str(path) for path in Path(self.trained_agent).parent.glob("*/vecnormalize.pkl")]
            hint = f"copy {others[0]} there" if len(others) == 1 else "name the model in its own folder"
            raise ValueError(
                f"{statistics} is missing, which says how {Path(self.trained_agent).name} sees its observations: {hint}, or "
                "-params normalize:False if it was trained without"
            )
        return super()._maybe_normalize(env, eval_env)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> Any:
        """:return: rl-zoo3's, having said what a replay buffer that was not saved means"""
        model = super()._load_pretrained_agent(hyperparams, env)
        if isinstance(model, SHMSAC) and not Path(self.trained_agent).with_name("replay_buffer.pkl").exists():
            print("There is no replay buffer beside the model (--save-replay-buffer): it begins with an empty one")
        return model

    def hyperparameters_optimization(self) -> None:
        """
        See rl-zoo3.

        :raises SystemExit: it was interrupted before a trial had finished
        """
        try:
            super().hyperparameters_optimization()  # type: ignore[no-untyped-call, unused-ignore]
        except ValueError as error:  # optuna's
            if "No trials are completed" not in str(error):
                raise
            raise SystemExit("No trial has finished") from error

    def create_log_folder(self) -> None:
        """Make the run's folder; if another run, that started at the same time, has made it, the next one."""
        os.makedirs(self.log_path, exist_ok=True)
        while True:
            try:
                os.mkdir(self.save_path)
                self._has_folder = True
                break
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = os.path.join(self.log_path, f"{self.env_name}_{number}")
                self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()  # type: ignore[no-untyped-call, unused-ignore]

    def create_callbacks(self) -> None:
        """Add what is saved with the checkpoints, and how long the training will take; the progress bar says it already."""
        super().create_callbacks()  # type: ignore[no-untyped-call, unused-ignore]
        if self.verbose > 0 and not self.show_progress:
            self.callbacks.append(TimeEstimate())
        if self.save_freq > 0:
            self.callbacks.append(SaveWithCheckpoint(self))


@contextmanager
def safe_saving() -> Iterator[None]:
    """
    While this lasts, rl-zoo3's ``train`` uses :class:`Manager`, and statistics and evaluations are written atomically.

    Names are exchanged because rl-zoo3's ``train()`` makes an ExperimentManager, and that an EvalCallback and a VecNormalize,
    without a hook to say of which class; a subclass of VecNormalize would also be what the file names, and so needs.
    """
    on_step = EvalCallback._on_step

    def evaluate(callback: EvalCallback) -> bool:
        if callback.log_path is None or callback.eval_freq <= 0 or callback.n_calls % callback.eval_freq:
            return on_step(callback)
        log_path = callback.log_path
        try:
            with open_atomically(f"{log_path}.npz") as file:
                callback.log_path = file  # type: ignore[assignment]  # numpy writes into files, too
                return on_step(callback)
        finally:
            callback.log_path = log_path

    with exchanged(
        (rl_zoo3.train, "ExperimentManager", Manager),
        (VecNormalize, "save", save_vec_normalize),
        (EvalCallback, "_on_step", evaluate),
    ):
        yield
