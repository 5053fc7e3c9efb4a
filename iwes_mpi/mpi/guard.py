"""What an environment must not do to the process of a rank, by accident or for want of knowing that it is one.

An environment is somebody else's code, which runs inside a rank. It may end the process, end MPI, or fork it and go on
in two processes, and the other ranks would wait for ever, or the launcher take the job for finished. Here such calls
are turned into errors that are said. That is no defense against malice: compiled code can do all of this unseen.
"""

import fcntl
import os
import signal
import stat
import sys
import termios
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

end_process = os._exit  # Python's own, whatever `Guard` puts in its place
_PATIENCE = 1.0  # s for child processes to end by themselves once they are asked to


class Forbidden(RuntimeError):
    """A call that only the program itself may make."""


class Guard:
    """Keeps a rank's process one process that ends as a rank must. There is one, made by `launch`.

    Parameters
    ----------
    fail : callable
        Tells of an exception as of one that has left the program, and ends all ranks.
    claim : callable
        Whether this process is the first of its node to say why the job ends, without MPI.
    """

    _only: "Guard | None" = None

    def __init__(self, fail: Callable[[BaseException], Any], claim: Callable[[], bool]):
        self._pid, self._fail, self._claim = os.getpid(), fail, claim
        self._finalize = _take_over_mpi()
        Guard._only = self
        os._exit = self._exit

    @property
    def is_rank(self) -> bool:
        """Whether this process is the rank itself, not a child that was forked from it."""
        return os.getpid() == self._pid

    def _exit(self, status: int) -> NoReturn:
        """In place of os._exit: on a rank it is an error, in forked children what it was."""
        if self.is_rank:
            error = Forbidden(f"os._exit({status}) was called, which ends this rank without a word")
            error.add_note("".join(["by:\n", *traceback.format_stack()[:-1]]))
            self._fail(error)
        end_process(status)

    def finalize(self) -> None:
        """End MPI. Collective."""
        self._finalize()

    @staticmethod
    def require_one_process(error: BaseException | None = None) -> None:
        """End the job if this is a child process that goes on running the program as if it were the rank.

        It shares the rank's connections to the others, and whatever it sent or read would confuse them. A child that
        asks for its own end, by `error`, gets that.
        """
        guard = Guard._only
        if guard is None or guard.is_rank:
            return
        if isinstance(error, SystemExit):
            end_process(exit_code(error))
        if guard._claim():
            text = "the environment forked a rank, and the child goes on running the program; ending all ranks"
            os.write(2, f"iwes_mpi: {text}\n".encode())
        if os.getppid() == guard._pid:
            os.kill(guard._pid, signal.SIGKILL)  # which its neighbor and the launcher notice
        end_process(1)


def exit_code(error: SystemExit) -> int:
    """What a process ends with whom Python's SystemExit ends."""
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)


def _take_over_mpi() -> Callable[[], None]:
    """Keep environments from ending MPI, or the job as if it had succeeded; returns what ends MPI."""
    from iwes_mpi.mpi.process import MPI  # here, since who checks for one process only need not load it

    class World(MPI.Intracomm):
        """MPI's world for environments: whoever aborts it does so with an exit code that is not that of success."""

        def Abort(self, errorcode: int = 0) -> NoReturn:
            wait_until_read()
            super().Abort(errorcode or 1)
            end_process(errorcode or 1)

    def refuse() -> NoReturn:
        raise Forbidden("MPI.Finalize was called: it ends MPI on all ranks, which is for the program to do")

    finalize: Callable[[], None] = MPI.Finalize
    MPI.Finalize = refuse
    MPI.COMM_WORLD = World(MPI.COMM_WORLD)  # type: ignore[misc]  # final, as it says
    return finalize


def wait_until_read(streams: tuple[int, ...] = (1, 2), patience: float = _PATIENCE) -> None:
    """Wait until the launcher has read what this process has written: it forgets what is left when a job aborts.

    Parameters
    ----------
    streams : tuple of int
        File descriptors; those that are no pipes are passed over.
    patience : float
        The most seconds to wait, should nobody read.
    """
    deadline = time.monotonic() + patience
    for stream in streams:
        try:
            while stat.S_ISFIFO(os.fstat(stream).st_mode) and time.monotonic() < deadline:
                left = fcntl.ioctl(stream, termios.FIONREAD, bytes(4))
                if not any(left):
                    break
                time.sleep(0.001)
        except OSError:  # it is closed, or a system that does not tell
            continue


def end_children() -> None:
    """End the child processes that are left, and theirs: they hold what the launcher waits for, such as its pipes."""
    left = _descendants(os.getpid())
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, 0.0)):
        for process in left:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while (left := [process for process in left if _lives(process)]) and time.monotonic() < deadline:
            time.sleep(0.01)


def _status(process: int) -> tuple[str, int] | None:
    """A process's state and its parent; None if there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except (OSError, ValueError, IndexError):
        return None


def _lives(process: int) -> bool:
    status = _status(process)
    return status is not None and status[0] not in "ZX"


def _descendants(pid: int) -> list[int]:
    """The living processes started by `pid`, and by those; but not Python's own helpers, which end by themselves."""
    children: dict[int, list[int]] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for number in numbers:
        status = _status(number)
        if status is not None and status[0] not in "ZX" and not _is_helper(number):
            children.setdefault(status[1], []).append(number)
    found, queue = [], [pid]
    while queue:
        queue = [child for process in queue for child in children.get(process, [])]
        found += queue
    return found


def _is_helper(process: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def settle_recursion() -> None:
    """Give Python its usual depth of calls again, should somebody have lowered it."""
    if sys.getrecursionlimit() < 1000:
        sys.setrecursionlimit(1000)
