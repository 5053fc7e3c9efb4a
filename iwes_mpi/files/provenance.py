"""What made a run: versions, command, commit, CPU, host."""

import datetime
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from iwes_mpi.compiled.cpu import cpu
from iwes_mpi.files.log import FORMAT
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.printable import one_line
from iwes_mpi.version import __version__

BITS_DEPEND_ON = ("numpy", "numba", "gymnasium", "mujoco")
COMMIT = "commit.txt"  # in the package, once it is built


def versions(mpi_library: str) -> dict[str, str]:
    """Versions of all that a result depends on."""
    packages = ("numpy", "numba", "gymnasium", "mujoco", "mpi4py", "h5py")
    return {
        "python": platform.python_version(),
        "iwes_mpi": __version__,
        **{name: metadata.version(name) for name in packages},
        "mpi": mpi_library,
    }


def commit_of(package: Path) -> str:
    """The commit of the program's source, marked if its checkout has changes; empty if it is not known.

    A checkout tells if the package's own files are tracked there: a virtual environment may lie in somebody else's.
    Else the package tells, if its commit was written into it when it was built (setup.py).

    Parameters
    ----------
    package : Path
        The folder of the package.
    """

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    if git("ls-files", "--error-unmatch", "version.py"):
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    try:
        return (package / COMMIT).read_text("utf-8").strip()
    except (OSError, UnicodeError):
        return ""


def other_cpu(attrs: Mapping[str, Any]) -> str | None:
    """One sentence if a run with these root attributes was begun on another kind of CPU than this one."""
    here = cpu()
    try:
        begun = json.loads(attrs.get("cpu", ""))
        same = all(begun[name] == here[name] for name in ("kind", "features"))
    except (ValueError, TypeError, KeyError):
        return None  # from before it was recorded
    if same:
        return None
    names = [str(one["model"] or one["kind"]) for one in (begun, here)]
    which = names if names[0] != names[1] else [f"{name} with other instructions" for name in names]
    return (
        f"the run was begun on another kind of CPU ({which[0]}) than this one ({which[1]}): the bits of what follows "
        "may differ from those of an uninterrupted run"
    )


def other_versions(attrs: Mapping[str, Any]) -> str | None:
    """One sentence if a run with these root attributes was begun with other libraries that bits depend on."""
    try:
        begun = json.loads(attrs.get("versions", ""))
        changed = {name: begun[name] for name in BITS_DEPEND_ON if begun[name] != metadata.version(name)}
    except (ValueError, TypeError, KeyError):
        return None  # not recorded
    if not changed:
        return None
    which = "; ".join(f"{name} {one_line(old)}, now {metadata.version(name)}" for name, old in changed.items())
    return (
        f"the run was begun with other versions ({which}): the bits of what follows may differ from those of an "
        "uninterrupted run"
    )


def provenance(config: Config, mpi_library: str, ranks: int, nodes: int, command: Sequence[str]) -> dict[str, Any]:
    """The root attributes of a new log: what the run is, and what made it."""
    return {
        "format": FORMAT,
        "config": config.to_json(),
        "seed": np.uint64(config.seed),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "git_commit": commit_of(Path(__file__).parents[1]),
        "versions": json.dumps(versions(mpi_library)),
        "cpu": json.dumps(cpu()),
        "host": platform.node(),
        "ranks": ranks,
        "nodes": nodes,
    }
