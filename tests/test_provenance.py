"""Where a run says it is from: the program's own commit and the CPU, whatever is around."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iwes_mpi.compiled import cpu
from iwes_mpi.files import provenance

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *arguments: str) -> str:
    """Output of git in a folder, as somebody."""
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a program with a package, committed."""
    folder = tmp_path / "checkout"
    (folder / "iwes_mpi").mkdir(parents=True)
    (folder / "iwes_mpi" / "version.py").write_text("__version__ = '1'\n")
    (folder / "iwes_mpi" / "__init__.py").touch()
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "iwes_mpi"\nversion = "1"\n'
        '[tool.setuptools]\npackages = ["iwes_mpi"]\n[tool.setuptools.package-data]\niwes_mpi = ["commit.txt"]\n'
    )
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_checkout_tells_its_commit(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.commit_of(checkout / "iwes_mpi") == head
    (checkout / "iwes_mpi" / "commit.txt").write_text("an old one")
    assert provenance.commit_of(checkout / "iwes_mpi") == head
    (checkout / "iwes_mpi" / "version.py").write_text("__version__ = '2'\n")
    assert provenance.commit_of(checkout / "iwes_mpi") == head + "-dirty"


def test_somebody_elses_checkout_tells_nothing(checkout: Path) -> None:
    """A virtual environment in a project: its commit is not the program's."""
    installed = checkout / ".venv" / "lib" / "iwes_mpi"
    installed.mkdir(parents=True)
    (installed / "version.py").write_text("__version__ = '1'\n")
    assert provenance.commit_of(installed) == ""
    (installed / "commit.txt").write_text("0123456789\n")
    assert provenance.commit_of(installed) == "0123456789"


@pytest.mark.slow
def test_a_built_package_knows_its_commit(checkout: Path, tmp_path: Path) -> None:
    def build(folder: Path, *command: str) -> None:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", *command], cwd=folder, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    head = git(checkout, "rev-parse", "HEAD")
    build(checkout, "sdist", "--dist-dir", str(tmp_path / "dist"))
    shutil.unpack_archive(next((tmp_path / "dist").glob("*.tar.gz")), tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    (source / ".git").mkdir()  # no checkout of anything
    build(source, "build_py", "--build-lib", str(tmp_path / "lib"))
    assert provenance.commit_of(tmp_path / "lib" / "iwes_mpi") == head
    assert not (checkout / "iwes_mpi" / "commit.txt").exists()


def test_another_kind_of_cpu_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cpu.cpu()
    assert all(here[name] for name in ("kind", "features"))
    assert provenance.other_cpu({"cpu": json.dumps(here)}) is None
    assert provenance.other_cpu({"cpu": json.dumps(here | {"model": "the same, renamed"})}) is None
    assert provenance.other_cpu({}) is None, "a log from before it was recorded"
    assert provenance.other_cpu({"cpu": "[]"}) is None
    told = provenance.other_cpu({"cpu": json.dumps(here | {"model": "Abacus", "kind": "x86_64 abacus"})})
    assert told is not None
    assert "(Abacus)" in told
    assert "may differ" in told
    told = provenance.other_cpu({"cpu": json.dumps(here | {"features": "none"})})
    assert told is not None
    assert told.count("with other instructions") == 2


def test_other_versions_are_told_of() -> None:
    here = provenance.versions("MPICH 5")
    assert provenance.other_versions({"versions": json.dumps(here)}) is None
    # What changes no bit may change.
    assert provenance.other_versions({"versions": json.dumps(here | {"mpi": "other", "h5py": "1.0"})}) is None
    for nothing in ({}, {"versions": "[]"}, {"versions": "{"}, {"versions": "7"}):
        assert provenance.other_versions(nothing) is None
    told = provenance.other_versions({"versions": json.dumps(here | {"mujoco": "3.17.0\x1b[31m"})})
    assert told is not None
    assert f"mujoco 3.17.0\\x1b[31m, now {here['mujoco']}" in told
    assert "numba" not in told
    assert "may differ" in told
