"""Writing the log behind a run: rows are handed over in no time, and a thread writes them in batches.

A row costs a system call or two for each column, some milliseconds in all, as long as a short iteration; a batch of
rows costs hardly more than one.
"""

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from iwes_mpi.files.columns import Rows, Tables
from iwes_mpi.files.log import LogWriter


class WriteBehind:
    """A log that is written at most `DELAY` seconds after `append`; all of it at `sync` and `close`.

    A batch that cannot be written is the last, and what it raised is raised by the call after it.

    Parameters
    ----------
    log : LogWriter
    ready : callable
        Called before each batch is written; raises OSError if there is no room.
    """

    DELAY = 1.0  # s

    def __init__(self, log: LogWriter, ready: Callable[[], None] = lambda: None):
        self._log, self._ready = log, ready
        self._waiting: list[tuple[Rows, Sequence[NDArray[Any]]]] = []
        self._problem: BaseException | None = None
        self._lock = threading.Lock()  # held by who uses the log
        self._handing_over = threading.Lock()  # held by who uses what is waiting, for a moment only
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_now_and_then, daemon=True)
        self._thread.start()

    def append(self, rows: Rows, population: Sequence[NDArray[Any]] = ()) -> None:
        """Write one iteration, soon. What is handed over must not be changed any more."""
        self._raise()
        with self._handing_over:
            self._waiting.append((rows, population))

    def sync(self) -> None:
        """Return only when all rows are on disk."""
        self._write()
        self._raise()
        with self._lock:
            self._log.sync()

    def tables(self) -> Tables:
        """All rows, by table and column."""
        self._write()
        self._raise()
        with self._lock:
            return self._log.tables()

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._closed.set()
        self._thread.join()
        self._write()
        with self._lock:
            self._log.close()
        self._raise()

    def _write_now_and_then(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while self._problem is None and not self._closed.wait(self.DELAY):
            self._write()

    def _write(self) -> None:
        """Write what is waiting, unless there has been a problem; note one."""
        with self._lock:
            if self._problem is not None or not self._waiting:
                return
            with self._handing_over:  # else a row could be added to a batch that has been written
                batch, self._waiting = self._waiting, []
            try:
                self._ready()
                self._log.extend(batch)
            except BaseException as error:  # for the main thread to deal with, whatever it is
                self._problem = error

    def _raise(self) -> None:
        if self._problem is not None:
            raise self._problem
