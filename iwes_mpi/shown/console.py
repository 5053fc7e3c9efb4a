"""What a person sees while a run goes on: a live bar on a terminal, one line per iteration elsewhere."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from iwes_mpi.files.columns import Rows
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import limited, used
from iwes_mpi.settings.printable import printable

if TYPE_CHECKING:
    from iwes_mpi.method.state import State

_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "prun", "orterun", "srun")
_GENERATIONS = 6  # from a rank to the launcher on its host, at most
_SHORTEST_BAR = 8  # columns
_PERIOD = 1.0  # s between two looks at episodes under way


def terminal_width() -> int | None:
    """Columns of the terminal that shows this process's output; None if no person is watching.

    The launcher's own output tells: it passes its ranks' output through pipes, or, as Open MPI does, through terminals
    of its own making, also where its output goes to a file.
    """
    launcher = _launcher()
    if launcher is not None:
        return _width_of(f"/proc/{launcher}/fd/1")
    if "OMPI_COMM_WORLD_SIZE" in os.environ:  # whose launcher is on another host
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None


def _launcher() -> int | None:
    """The process of this host that launched the ranks, by its name among this one's ancestors; None if there is none.

    The outermost counts: some launchers start another.
    """
    found, process = None, os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(_GENERATIONS):
            entry = Path(f"/proc/{process}")
            if (entry / "comm").read_text().strip() in _LAUNCHERS:
                found = process
            process = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _width_of(output: str) -> int | None:
    """Columns of the terminal that a file is; None if it is none, or is not to be seen."""
    with contextlib.suppress(OSError):
        descriptor = os.open(output, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            if os.isatty(descriptor):
                return os.get_terminal_size(descriptor).columns
        finally:
            os.close(descriptor)
    return None


class Display(Protocol):
    """Shows a run's progress; only rank 0 has one."""

    def note(self, text: str) -> None:
        """Show one line about the run as a whole."""
        ...

    def update(self, rows: Rows) -> None:
        """Show an iteration that has just been completed."""
        ...

    def episodes(self, done: int, n: int) -> None:
        """Show that of an iteration's `n` episodes so many are done, about; called after each of rank 0's own."""
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

    def __init__(self, config: Config, state: "State"):
        self._rate = Rate(state.env_steps)
        self._evaluation = LastEvaluation()
        self._weighted = config.iw_updates > 0

    def note(self, text: str) -> None:
        """See `Display`."""
        print(printable(text), flush=True)

    def update(self, rows: Rows) -> None:
        """See `Display`."""
        row = rows.iteration
        print(
            f"iteration {row.iteration:>5}  env_steps {row.env_steps:>10}  "
            f"steps/s {self._rate(row.env_steps):>8.0f}  eval median {self._evaluation(rows):>10.2f}  "
            f"return mean {row.return_mean:>10.2f}  updates {row.updates}  "
            f"{f'ESS {rows.smallest_ess:.3f}  ' if self._weighted else ''}"
            f"time {clock(row.wall_time)}",
            flush=True,
        )

    def episodes(self, done: int, n: int) -> None:
        """See `Display`."""

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
        self._figures = ""  # of the last iteration
        self._looked = time.monotonic()
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
        left = f"{clock((1 - done) / pace)} left" if self._pace.is_steady and pace > 0 else ""
        weighted = self._config.iw_updates > 0
        evaluated = self._evaluation(rows)
        figures = [  # by how early they give way on a narrow terminal
            (2, f"{row.env_steps / 1e6:.2f}M steps" if row.env_steps >= 1e6 else f"{row.env_steps / 1e3:.0f}k steps"),
            (5, f"{self._rate(row.env_steps) / 1e3:.1f}k/s"),
            (1, "" if math.isnan(evaluated) else f"eval median {evaluated:.1f}"),
            (4, f"ESS {rows.smallest_ess:.2f}" if weighted else ""),
            (3, left),
        ]
        self._figures = fit(figures, self._room())
        self._show(self._figures)
        self._progress.update(self._task, completed=done, iteration=self._state.iteration)
        self._looked = time.monotonic()
        self._progress.refresh()

    def episodes(self, done: int, n: int) -> None:
        """See `Display`."""
        now = time.monotonic()
        if now - self._looked < _PERIOD:  # short iterations show nothing but their end
            return
        self._looked = now
        under_way = f"episode {done} of {n}"
        self._show(fit([(1, under_way), (2, self._figures)], self._room()))
        self._progress.refresh()

    def _room(self) -> int:
        """Columns for figures, besides the iteration, a bar and the share done."""
        return self._console.width - len(f"iteration {self._state.iteration}") - _SHORTEST_BAR - 8

    def _show(self, figures: str) -> None:
        self._progress.update(self._task, figures=figures)

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()


def fit(figures: Sequence[tuple[int, str]], room: int) -> str:
    """As many figures as have room in a line, in their order; those of high rank give way first, the first never."""
    kept = [(rank, text) for rank, text in figures if text]
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > room:
        kept.remove(max(kept))
    return "  ".join(text for _, text in kept)


class Nothing:
    """No display."""

    def note(self, text: str) -> None:
        """See `Display`."""

    def update(self, rows: Rows) -> None:
        """See `Display`."""

    def episodes(self, done: int, n: int) -> None:
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

    def episodes(self, done: int, n: int) -> None:
        """See `Display`."""
        for display in self._displays:
            display.episodes(done, n)

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
    return Lines(config, state)
