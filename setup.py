"""Put the configs and the micro-world models, which lie beside src, into the built package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Builds the package; an editable one finds them where they are."""

    def run(self) -> None:
        """Copy the modules, then the folders."""
        super().run()
        if not self.editable_mode:
            for folder in ("configs", "checkpoints"):
                self.copy_tree(folder, str(Path(self.build_lib, "oneshot_lit", folder)))


setup(cmdclass={"build_py": WithConfigs})
