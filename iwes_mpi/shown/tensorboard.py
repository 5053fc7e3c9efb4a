"""TensorBoard's scalars of a run (``--tensorboard``), under RUN/tensorboard, written by tensorboardX.

A view for convenience: the log is the record. tensorboardX's synchronous writer is used, since its usual one hands
events to a thread through a queue, and blocks forever once that thread has met a full disk.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iwes_mpi.files.columns import Rows
from iwes_mpi.settings.wrong_input import WrongInput

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10.0
_GROUPS = {
    "eval": "evaluation",
    "return": "population",
    "episode": "population",
    "time": "time_s",
}
_LEFT_OUT = ("iteration", "theta_digest")


def require() -> None:
    """Raise WrongInput if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise WrongInput("tensorboard", f"needs tensorboardX ({error}): pip install 'iwes_mpi[tensorboard]'") from None


def scalars(rows: Rows) -> Iterator[tuple[str, float]]:
    """Tags and values of an iteration: its log row, and ESS and KL of each importance-weighted update."""
    for name, value in dataclasses.asdict(rows.iteration).items():
        if name not in _LEFT_OUT:
            yield f"{_GROUPS.get(name.partition('_')[0], 'run')}/{name}", float(value)
    for update in rows.updates:
        if update.k > 0:
            yield f"ess/k{update.k}", update.ess
            yield f"kl/k{update.k}", update.kl


class Scalars:
    """A display (`console.Display`) that writes event files. A file that cannot be written does not stop the run.

    Parameters
    ----------
    run_dir : Path
    iteration : int
        Where the run begins or goes on: TensorBoard drops what an earlier job wrote from there on.
    """

    def __init__(self, run_dir: Path, iteration: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder = run_dir / FOLDER
        self._writer: Any = None
        try:
            self._folder.mkdir(exist_ok=True)
            # The suffix keeps two jobs that start within a second apart.
            self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{iteration}")
            self._write(Event(step=iteration, session_log=SessionLog(status=SessionLog.START)))
        except OSError as error:
            self._give_up(error)
        self._flushed_at = -math.inf

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        print(f"warning: {self._folder}: {error.strerror}; no more is written for TensorBoard", file=sys.stderr)

    def note(self, text: str) -> None:
        """See `console.Display`."""

    def update(self, rows: Rows) -> None:
        """See `console.Display`."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            return
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(rows) if math.isfinite(value)]
        try:
            self._write(Event(step=rows.iteration.iteration, summary=Summary(value=values)))
            if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed_at = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def episodes(self, done: int, n: int) -> None:
        """See `console.Display`."""

    def close(self) -> None:
        """See `console.Display`."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)
