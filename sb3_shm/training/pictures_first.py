"""Pictures with their channels first, around VecNormalize."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecTransposeImage, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class ChannelsFirst(VecTransposeImage):
    """
    SB3's VecTransposeImage around a VecNormalize that leaves pictures alone: what VecNormalize keeps as the original
    observations, which are what a replay buffer stores, is transposed, too.
    """

    def _transpose_originals(self) -> None:
        normalize = unwrap_vec_normalize(self.venv)
        assert normalize is not None
        normalize.old_obs = self.transpose_observations(normalize.old_obs)

    def step_wait(self) -> VecEnvStepReturn:
        """See :meth:`stable_baselines3.common.vec_env.VecEnv.step_wait`."""
        result = super().step_wait()
        self._transpose_originals()
        return result

    def reset(self) -> np.ndarray | dict[str, Any]:
        """See :meth:`stable_baselines3.common.vec_env.VecEnv.reset`."""
        result = super().reset()
        self._transpose_originals()
        return result
