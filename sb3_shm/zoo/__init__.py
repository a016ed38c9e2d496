"""rl-zoo3's commands for the algorithms and environments of this package: ``python -m sb3_shm.zoo train --env ...``"""

from sb3_shm.zoo.registration import ALGORITHMS, hyperparams_file, register

__all__ = ["ALGORITHMS", "hyperparams_file", "register"]
