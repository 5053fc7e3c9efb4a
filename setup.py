"""What pyproject.toml cannot say: a package that is built knows the commit it was built from."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
COMMIT = "iwes_mpi/commit.txt"  # read by iwes_mpi.files.provenance


def commit():
    """The commit of this checkout, marked if it has changes; None where this is no checkout of its own."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "setup.py")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def record(folder):
    """Write the commit below a folder; what a source distribution brings along is copied by setuptools."""
    if found := commit():
        path = Path(folder, COMMIT)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found + "\n", encoding="utf-8")


class BuildWithCommit(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # a checkout tells of itself
            record(self.build_lib)


class SdistWithCommit(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        record(base_dir)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithCommit, "sdist": SdistWithCommit})
