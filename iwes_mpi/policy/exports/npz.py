"""The policy's own file, which `iwes_mpi.load_policy` reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from iwes_mpi.policy.policy import Policy, load_policy

SUFFIX, NEEDS, EXTRA = ".npz", (), ""


def write(policy: Policy, path: Path) -> None:
    """Write the file."""
    policy.save(path)


def reader(path: Path) -> Callable[..., Any]:
    """What acts from the file."""
    return load_policy(path)
