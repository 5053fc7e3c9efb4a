"""How far a long iteration is, in a small file beside the log: for those who follow a run from outside."""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from iwes_mpi.files.untrusted import Untrusted, read_bytes

PROGRESS = "progress"
_PERIOD = 1.0  # s between two notes; an iteration that is over sooner has none
_LONGEST = 100  # bytes
_FORM = re.compile(rb"iteration (\d{1,15}) episode (\d{1,15}) of (\d{1,15})\n")


class UnderWay(NamedTuple):
    """An iteration, and how many of its episodes are done, about."""

    iteration: int
    done: int
    n: int


class Progress:
    """Notes the episodes of a run's iteration in ``RUN/progress`` while it goes on. Rank 0 only.

    That a note cannot be written is no reason to end a run.

    Parameters
    ----------
    run_dir : Path
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / PROGRESS
        self._noted: float | None = None  # s; when the last note was written, or the last iteration over
        self._is_there = False

    def episodes(self, iteration: int, done: int, n: int) -> None:
        """Note how far an iteration is, if it is time to: at the first call of a job, then once a second at most."""
        now = time.monotonic()
        if self._noted is not None and now - self._noted < _PERIOD:
            return
        self._noted = now
        with suppress(OSError):
            self._path.write_text(f"iteration {iteration} episode {done} of {n}\n")
            self._is_there = True

    def over(self) -> None:
        """Remember that an iteration is over."""
        self._noted = time.monotonic()

    def close(self) -> None:
        """Take the file away."""
        if self._is_there:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def under_way(run_dir: Path) -> UnderWay | None:
    """What the newest note of a run says; None if there is none, or not a whole one."""
    with suppress(OSError, Untrusted):
        if found := _FORM.fullmatch(read_bytes(run_dir / PROGRESS, _LONGEST)):
            return UnderWay(*map(int, found.groups()))
    return None
