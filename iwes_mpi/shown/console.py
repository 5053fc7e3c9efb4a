"""What a person sees while a run goes on: a live bar on a terminal, one line per iteration elsewhere."""

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from iwes_mpi.files.columns import Rows
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import limited, used
from iwes_mpi.settings.printable import printable

if TYPE_CHECKING:
    from iwes_mpi.method.state import State

_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "prun", "orterun", "srun")


def terminal_width() -> int | None:
    """Columns of the terminal that shows this process's output; None if no person is watching.

    A launcher passes its ranks' output through a pipe: then the launcher's own output tells.
    """
    if sys.stdout.isatty():
        return os.get_terminal_size(sys.stdout.fileno()).columns
    try:
        process = os.getppid()
        for _ in range(4):
            entry = Path(f"/proc/{process}")
            if (entry / "comm").read_text().strip() in _LAUNCHERS:
                descriptor = os.open(entry / "fd" / "1", os.O_WRONLY | os.O_NOCTTY)
                try:
                    if os.isatty(descriptor):
                        return os.get_terminal_size(descriptor).columns
                finally:
                    os.close(descriptor)
            process = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


class Display(Protocol):
    """Shows a run's progress; only rank 0 has one."""

    def note(self, text: str) -> None:
        """Show one line about the run as a whole."""
        ...

    def update(self, rows: Rows) -> None:
        """Show an iteration that has just been completed."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Rate:
    """How much something grows per second, over the last iterations.

    A job's first iteration compiles, so it counts only as long as it is the only one.
    """

    def __init__(self, value: float):
        self._begin = (time.monotonic(), value)
        self._marks: list[tuple[float, float]] = []

    def __call__(self, value: float) -> float:
        """The rate with `value` reached by now."""
        self._marks = [*self._marks[-10:], (time.monotonic(), value)]
        (t0, v0), (t1, v1) = self._marks[0] if self.is_steady else self._begin, self._marks[-1]
        return (v1 - v0) / max(t1 - t0, 1e-9)

    @property
    def is_steady(self) -> bool:
        """Whether it was called more than once, so that the first iteration is left out."""
        return len(self._marks) > 1


def clock(seconds: float) -> str:
    """A duration for people: 0:07:31."""
    if not abs(seconds) < 1e12:  # nor NaN: from a file, say
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class LastEvaluation:
    """The newest evaluation median: not every iteration has an evaluation."""

    def __init__(self) -> None:
        self.median = math.nan

    def __call__(self, rows: Rows) -> float:
        """The median as of an iteration; NaN before the first evaluation."""
        if rows.iteration.eval_episodes:
            self.median = rows.iteration.eval_return_median
        return self.median


class Lines:
    """One line per iteration, for log files."""

    def __init__(self, state: "State"):
        self._rate = Rate(state.env_steps)
        self._evaluation = LastEvaluation()

    def note(self, text: str) -> None:
        """See `Display`."""
        print(printable(text), flush=True)

    def update(self, rows: Rows) -> None:
        """See `Display`."""
        row = rows.iteration
        print(
            f"iteration {row.iteration:>5}  env_steps {row.env_steps:>10}  "
            f"steps/s {self._rate(row.env_steps):>8.0f}  eval median {self._evaluation(rows):>10.2f}  "
            f"return mean {row.return_mean:>10.2f}  updates {row.updates}  ESS {rows.smallest_ess:.3f}  "
            f"time {clock(row.wall_time)}",
            flush=True,
        )

    def close(self) -> None:
        """See `Display`."""


class Bar:
    """A live progress bar with the figures that tell how learning goes."""

    def __init__(self, config: Config, state: "State", width: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._config, self._state = config, state
        self._rate = Rate(state.env_steps)
        self._evaluation = LastEvaluation()
        self._begin = time.monotonic()
        self._pace = Rate(self._used())
        columns = [
            TextColumn("iteration {task.fields[iteration]}"),
            BarColumn(bar_width=None),
            *([TextColumn("{task.percentage:>3.0f} %")] if limited(config) else []),
            TextColumn("{task.fields[figures]}"),
        ]
        self._console = Console(force_terminal=True, width=width, file=sys.stdout)
        # Redrawn after each iteration, not by a thread, which would take time from rank 0's episodes.
        self._progress = Progress(*columns, console=self._console, auto_refresh=False, expand=True)
        self._task = self._progress.add_task(
            "", total=1.0 if limited(config) else None, iteration=state.iteration, figures="compiling …"
        )
        self._progress.start()

    def _used(self) -> float:
        """The share of the nearest limit that is used up."""
        elapsed = time.monotonic() - self._begin
        return used(self._config, self._state.iteration, self._state.env_steps, elapsed)

    def note(self, text: str) -> None:
        """See `Display`."""
        self._progress.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        self._progress.refresh()

    def update(self, rows: Rows) -> None:
        """See `Display`."""
        row = rows.iteration
        done = self._used()
        pace = self._pace(done)
        figures = (
            f"{row.env_steps / 1e6:.2f}M steps  {self._rate(row.env_steps) / 1e3:.1f}k/s  "
            f"eval median {self._evaluation(rows):.1f}  ESS {rows.smallest_ess:.2f}"
        )
        if self._pace.is_steady and pace > 0:
            figures += f"  {clock((1 - done) / pace)} left"
        self._progress.update(self._task, completed=done, iteration=self._state.iteration, figures=figures)
        self._progress.refresh()

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()


class Nothing:
    """No display."""

    def note(self, text: str) -> None:
        """See `Display`."""

    def update(self, rows: Rows) -> None:
        """See `Display`."""

    def close(self) -> None:
        """See `Display`."""


class Both:
    """Two displays at once."""

    def __init__(self, first: Display, second: Display):
        self._displays = (first, second)

    def note(self, text: str) -> None:
        """See `Display`."""
        for display in self._displays:
            display.note(text)

    def update(self, rows: Rows) -> None:
        """See `Display`."""
        for display in self._displays:
            display.update(rows)

    def close(self) -> None:
        """See `Display`."""
        for display in self._displays:
            display.close()


def open_display(config: Config, state: "State", run_dir: Path) -> Display:
    """The displays that ``--display`` and ``--tensorboard`` ask for."""
    shown = _open_shown(config, state)
    if not config.tensorboard:
        return shown
    from iwes_mpi.shown.tensorboard import Scalars

    return Both(shown, Scalars(run_dir, state.iteration))


def _open_shown(config: Config, state: "State") -> Display:
    kind: Literal["auto", "bar", "lines", "none"] = config.display
    if kind == "none":
        return Nothing()
    width = terminal_width()
    if kind == "bar" or (kind == "auto" and width is not None):
        return Bar(config, state, width or 100)
    return Lines(state)
