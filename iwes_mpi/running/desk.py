"""Rank 0's side of a run: its files, what is shown of it, and who is told of each iteration."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from iwes_mpi.files.columns import IterationRow, Rows, rows_of
from iwes_mpi.files.keeper import Keeper, StorageError
from iwes_mpi.files.progress import Progress
from iwes_mpi.files.provenance import provenance
from iwes_mpi.mpi.process import library_version
from iwes_mpi.mpi.program import FAILED, FINISHED, STORAGE_FAILED
from iwes_mpi.mpi.world import World
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import reached_limit
from iwes_mpi.settings.printable import printable
from iwes_mpi.shown.console import Display, LastEvaluation, open_display
from iwes_mpi.shown.diagnosis import Diagnosis

if TYPE_CHECKING:
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.report import Report
    from iwes_mpi.method.state import State
    from iwes_mpi.running.work import Work


class Unkept:
    """In place of a `Keeper` where a run has no directory: nothing is kept."""

    def __init__(self, state: "State", begin: float):
        self._state, self._begin = state, begin
        self._wall_time_before = state.wall_time
        self.notices: list[str] = []

    def keep(self, report: "Report") -> Rows:
        """The rows of an iteration; see `Keeper`."""
        self._state.wall_time = report.wall_time = self._wall_time_before + time.monotonic() - self._begin
        return rows_of(report)

    def save(self) -> None:
        """See `Keeper`."""

    def close(self) -> None:
        """See `Keeper`."""


class Desk:
    """Rank 0's side of a run.

    Parameters
    ----------
    plan : Plan
    config : Config
        Settled in full.
    state : State
    world : World
    work : Work
    begin : float
        When this job began, by `time.monotonic`.

    Attributes
    ----------
    returns : (float, float) or None
        Of the population: its mean return in the last iteration, the largest return of all iterations.

    Raises
    ------
    WrongInput
        If the run directory cannot be written, or is in use; or there is nothing to call after iterations.
    """

    def __init__(self, plan: "Plan", config: Config, state: "State", world: World, work: "Work", begin: float):
        self._plan, self._config, self._state, self._world, self._work = plan, config, state, world, work
        self._hook: Callable[[IterationRow], object] | None = work.hook(config)
        self.returns: tuple[float, float] | None = None
        if plan.checkpoint is not None and state.iteration:
            rows = plan.checkpoint.tables["iterations"]
            self._note(float(rows["return_mean"][-1]), *map(float, rows["return_max"]))
        self._keeper: Keeper | Unkept
        if plan.kept:
            origin = provenance(config, library_version(), world.size, world.n_nodes, work.command)
            self._keeper = Keeper(plan, config, state, origin, begin)
        else:
            self._keeper = Unkept(state, begin)
        self._progress: Progress | None = Progress(plan.place) if plan.kept else None
        self._display: Display = open_display(config, state, plan.place)
        self._diagnosis: Diagnosis = Diagnosis(config, state.theta.size)
        self._evaluation: LastEvaluation = LastEvaluation()

    def _note(self, mean: float, *largest: float) -> None:
        """Remember returns; NaN is none."""
        before = -math.inf if self.returns is None else self.returns[1]
        best = max((value for value in (before, *largest) if not math.isnan(value)), default=-math.inf)
        self.returns = mean, best

    def begin(self, description: str, notice: str | None) -> None:
        """Say what begins."""
        plan, world = self._plan, self._world
        for text in (*self._keeper.notices, *([notice] if notice else [])):
            self._warn(text)
        self._display.note(
            f"{'Resuming' if plan.resumed else 'Starting'}{f' {plan.run_dir}' if plan.kept else ''} at iteration "
            f"{self._state.iteration}: {description}, K = {self._config.iw_updates}, {world.size} "
            f"rank{'s' if world.size > 1 else ''} on {world.n_nodes} node{'s' if world.n_nodes > 1 else ''}"
        )
        for text in [] if plan.resumed else self._diagnosis.beforehand(world.size):
            self._warn(text)
        state = self._state
        if limit := reached_limit(self._config, state.iteration, state.env_steps, state.recent_evaluations):
            value = getattr(self._config, limit)
            self._warn(
                f"nothing is left to do: `{limit}` {value} is reached; give another, or lift it by `{limit}` none"
            )

    def episodes(self, done: int, n: int) -> None:
        """Show how many of an iteration's episodes are done, about."""
        self._display.episodes(done, n)
        if self._progress is not None:
            self._progress.episodes(self._state.iteration, done, n)

    def _warn(self, text: str) -> None:
        self._display.note(f"warning: {self._work.spell(text)}")

    def take(self, report: "Report") -> tuple[int, str]:
        """Keep and show an iteration, and tell of it; returns the exit code that it gives cause for, or 0, and why."""
        try:
            rows = self._keeper.keep(report)
        except StorageError as error:
            return STORAGE_FAILED, str(error)
        self._note(rows.iteration.return_mean, rows.iteration.return_max)
        self._evaluation(rows)
        self._display.update(rows)
        if self._progress is not None:
            self._progress.over()
        if text := self._diagnosis(rows):
            self._warn(text)
        if self._hook is not None:
            self._hook(rows.iteration)
        return FINISHED, ""

    def _close_display(self) -> None:
        if self._progress is not None:
            self._progress.close()
        self._display.close()

    def abandon(self) -> None:
        """Leave the terminal as it was, and the directory with a log of all iterations that were kept."""
        with suppress(Exception):  # another one is on its way
            self._close_display()
        with suppress(Exception):
            self._keeper.close()

    def end(self, code: int, problem: str) -> tuple[int, str]:
        """Save the last state, close the files and say how the run ended; returns the exit code and what is wrong."""
        failed = code == FAILED  # the state is not worth saving
        if not problem:
            try:
                self._keeper.save()
            except StorageError as error:
                problem = str(error)
        self._close_display()
        try:
            self._keeper.close()
        except StorageError as error:
            problem = problem or str(error)
        if problem:
            if not failed:
                code = STORAGE_FAILED
                problem += "; the run stopped at its last good checkpoint, continue with `resume`"
            problem = self._work.spell(problem)
            self._work.fail(problem)
        elif self._config.display != "none":
            said = self._work.summarize(self._plan, self._state, self._evaluation.median, code)
            print(printable(said), flush=True)
        return code, problem
