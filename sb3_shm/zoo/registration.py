"""Makes rl-zoo3 know the algorithms of this package."""

from pathlib import Path

from sb3_shm.sharing.manifest import ALGORITHMS as ALGORITHMS  # rl-zoo3's --algo -> class
from sb3_shm.zoo import samplers


def register() -> None:
    """
    Add the algorithms, and what samples their hyperparameters, to rl-zoo3's tables. Calling it again changes nothing. The
    environments are registered with Gymnasium as soon as ``sb3_shm`` is imported.

    :raises ImportError: rl-zoo3 is not installed
    """
    try:
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
        from rl_zoo3.utils import ALGOS
    except ImportError as error:
        raise ImportError(f'rl-zoo3 cannot be imported ({error}): pip install "sb3-shm[zoo]"') from error
    # rl-zoo3 reads its --algo choices from this very dictionary whenever a command starts
    ALGOS.update(ALGORITHMS)
    HYPERPARAMS_SAMPLER.update(shm_ppo=samplers.sample_shm_ppo_params, shm_sac=samplers.sample_shm_sac_params)
    HYPERPARAMS_CONVERTER.update(shm_ppo=samplers.convert_shm_ppo_params, shm_sac=samplers.convert_shm_sac_params)


def hyperparams_file(algo: str, release: bool = False) -> Path:
    """
    :param algo: "shm_ppo" or "shm_sac"
    :param release: those of the paper's released code, else those that learn on a laptop
    :return: the file of its hyperparameters, in rl-zoo3's format: within the package if it was installed from a wheel, beside
        it in a checkout or an editable installation
    :raises ValueError: another algorithm
    :raises FileNotFoundError: the installation lacks the file
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"There are hyperparameters of {', '.join(ALGORITHMS)}, got {algo!r}")
    package = Path(__file__).resolve().parent.parent
    name = f"hyperparams/release/{algo}.yml" if release else f"hyperparams/{algo}.yml"
    for folder in (package, package.parent):
        if (path := folder / name).is_file():
            return path
    raise FileNotFoundError(f"{name} is neither in {package} nor beside it: install sb3-shm again")
