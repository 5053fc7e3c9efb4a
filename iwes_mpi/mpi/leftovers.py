"""What jobs that were killed have left in the node's shared memory, for the next start to clear away.

MPICH gives each job files of a few megabytes in /dev/shm and removes them at its end; killed by SIGKILL it cannot, and
they take memory until the node is started again.
"""

import fcntl
import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_NAMES = re.compile(r"mpich_shm_[0-9a-f]+_[0-9]+")
_YOUNGEST = 30.0  # s: its job may still be about to open a younger one


def remove_segments(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove MPICH's files in shared memory that belong to this user and that no process has any more.

    A file is left alone unless all of these hold: its name is of MPICH's making; it is a regular file of this user, and
    has no other name; it has not changed for half a minute; and the kernel grants a lease on it, which it does only if
    no process on this machine, in whatever container, has the file open for writing or mapped.

    Returns
    -------
    list of str
        The names of those that were removed.
    """
    try:
        names = [name for name in os.listdir(folder) if _NAMES.fullmatch(name)]
    except OSError:
        return []
    return [name for name in names if _remove_unused(folder / name)]


def _remove_unused(path: Path) -> bool:
    """Remove a file if nobody has it; returns whether it was."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = os.fstat(descriptor)
        mine = stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1
        if not mine or time.time() - info.st_mtime < _YOUNGEST:
            return False
        with _lease(descriptor):
            os.unlink(path)
        return True
    except OSError:  # somebody has it; or this kernel or file system knows no leases, so that nothing can be known
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _lease(descriptor: int) -> Iterator[None]:
    """Hold the kernel's word that nobody else has a file. Raises OSError if somebody has, or it gives none."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # what tells that somebody opens it now, and ends a process
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        signal.signal(signal.SIGIO, before)
