"""What made a run: versions, command, commit, host."""

import datetime
import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from iwes_mpi.files.log import FORMAT
from iwes_mpi.settings.config import Config
from iwes_mpi.version import __version__


def versions(mpi_library: str) -> dict[str, str]:
    """Versions of all that a result depends on."""
    packages = ("numpy", "numba", "gymnasium", "mujoco", "mpi4py", "h5py")
    return {
        "python": platform.python_version(),
        "iwes_mpi": __version__,
        **{name: metadata.version(name) for name in packages},
        "mpi": mpi_library,
    }


def _git_commit() -> str:
    """The commit of the program's own checkout, marked if it has changes; empty if it is not a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = git("rev-parse", "HEAD")
    return commit + ("-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else "")


def provenance(config: Config, mpi_library: str, ranks: int, nodes: int, command: Sequence[str]) -> dict[str, Any]:
    """The root attributes of a new log: what the run is, and what made it."""
    return {
        "format": FORMAT,
        "config": config.to_json(),
        "seed": np.uint64(config.seed),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "git_commit": _git_commit(),
        "versions": json.dumps(versions(mpi_library)),
        "host": platform.node(),
        "ranks": ranks,
        "nodes": nodes,
    }
