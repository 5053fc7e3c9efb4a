"""Where the time of an iteration goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """What a rank does, in the order in which it is shown. A phase is a column ``time_…`` of the log."""

    def __new__(cls, name: str, label: str, meaning: str) -> "Phase":
        """A member that is its name, with what figures and the log say of it."""
        phase = str.__new__(cls, name)
        phase._value_ = name
        phase.label, phase.meaning = label, meaning
        return phase

    label: str  # in figures
    meaning: str

    ROLLOUTS = "rollouts", "rollouts", "running episodes"
    IDLE = "idle", "idle", "waiting for other ranks"
    WEIGHTS = "weights", "weights", "importance weights and gradient sums"
    COMM = "comm", "communication", "exchanging returns and gradients"
    UPDATE = "update", "optimizer", "optimizer steps, shaping, statistics and all the rest"
    IO = "io", "log and checkpoints", "writing log and checkpoint since the previous row"


class Phases:
    """Seconds this rank spends in each phase. Every moment belongs to one: to the innermost that is entered.

    Where none is entered, the time is the update's.
    """

    def __init__(self) -> None:
        self._stack = [Phase.UPDATE]
        self._since = time.perf_counter()
        self._seconds = dict.fromkeys(Phase, 0.0)

    def _charge(self) -> None:
        """Charge the time since the last change to the phase that it was spent in."""
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Time spent inside the block belongs to a phase, not to the one outside."""
        self._charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def take(self) -> dict[Phase, float]:
        """Seconds by phase since this was last called."""
        self._charge()
        taken, self._seconds = self._seconds, dict.fromkeys(Phase, 0.0)
        return taken
