"""Everything else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithHyperparams(build_py):
    """
    A wheel holds the tuned hyperparameters as ``sb3_shm/hyperparams``. In the repository they lie beside the package, where
    rl-zoo3's users look for them, and an editable installation reads them there.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "sb3_shm" / "hyperparams"
            target.mkdir(parents=True, exist_ok=True)
            for source in sorted(Path("hyperparams").glob("*.yml")):
                shutil.copy(source, target)


setup(cmdclass={"build_py": BuildWithHyperparams})
