"""Signals that ask a run to stop, from its first moment on: importing this takes next to no time."""

import os
import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Note:
    """A handler that only notes that a stop was requested, for `stop.StopFlag` to take over; a second SIGINT ends."""

    requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.requested and number == signal.SIGINT:
            os._exit(128 + number)
        self.requested = True


def note() -> None:
    """From now on only note signals that ask to stop."""
    handler = Note()
    for number in STOPPING:
        signal.signal(number, handler)
