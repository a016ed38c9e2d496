"""What setup.cfg cannot say: hyperparams/ stands beside the package in a checkout and travels inside it in a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithHyperparams(build_py):
    """Puts hyperparams/ into the package that a wheel is made of."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout's own files are read
            return
        for path in sorted(Path("hyperparams").rglob("*.yml")):
            target = Path(self.build_lib) / "sb3_shm" / path
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithHyperparams})
