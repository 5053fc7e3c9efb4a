"""Signals that ask a run to stop, from its first moment on: importing this takes next to no time."""

import os
import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_end_process = os._exit  # Python's own: `guard` puts another in its place


def stopping() -> tuple[signal.Signals, ...]:
    """The signals that ask to stop: not SIGHUP where it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return STOPPING[:-1] if ignored else STOPPING


class Note:
    """A handler that only notes that a stop was requested, for `stop.StopFlag` to take over; a second SIGINT ends."""

    requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.requested and number == signal.SIGINT:
            _end_process(128 + number)
        self.requested = True


def note() -> None:
    """From now on only note signals that ask to stop."""
    handler = Note()
    for number in stopping():
        signal.signal(number, handler)
