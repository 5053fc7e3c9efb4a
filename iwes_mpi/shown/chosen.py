"""The runs that a command line names, as far as they can be read."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from iwes_mpi.files.reader import LogError
from iwes_mpi.files.run import Run, open_run
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput


def _readable(path: str) -> Run:
    """The run in a directory. Raises LogError if it cannot be read, or not yet."""
    if not os.path.isdir(path):
        raise LogError(f"{path} is not a run directory")
    try:
        run = open_run(path)
        _ = run.config, run.updates
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from None
    if run.iterations.empty:
        raise LogError(f"{path} has no complete iteration yet")
    return run


def read_runs(paths: Sequence[str], purpose: str) -> list[Run]:
    """The runs in some directories, each once; on stderr, a line on each that cannot be read, or not yet.

    Parameters
    ----------
    paths : sequence of str
    purpose : str
        The command that asks, such as "plot".

    Raises
    ------
    WrongInput
        If a path does not exist, or none of the runs can be read.
    """
    if not paths:
        raise WrongInput("runs", "no run is given; name one or more run directories")
    for path in paths:
        if not os.path.exists(path):
            raise WrongInput("runs", f"{path} does not exist")
    found: list[Run] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        place = Path(path).resolve()
        try:
            if place in seen:
                raise LogError(f"{path} is given more than once")
            seen.add(place)
            found.append(_readable(path))
        except LogError as error:
            left_out.append(str(error))
    if not found:
        others = f" (and {len(seen) - 1} more)" if len(seen) > 1 else ""
        raise WrongInput("runs", f"there is nothing to {purpose}: {left_out[0]}{others}")
    for reason in left_out:
        print(f"iwes_mpi.{purpose}: left out: {one_line(reason)}", file=sys.stderr)
    return found
