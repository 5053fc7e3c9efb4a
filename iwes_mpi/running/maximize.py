"""`iwes_mpi.maximize`: any objective as training does it, on all ranks of the job, or on one without mpirun."""

from iwes_mpi.mpi import process  # isort: skip  # noqa: F401 - before NumPy: it settles the number of threads

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iwes_mpi.mpi.faults import Neighbor
from iwes_mpi.mpi.launch import first_of_launch, report_and_abort
from iwes_mpi.mpi.program import BAD_INPUT, FINISHED, STOPPED_EARLY, Refused, agree
from iwes_mpi.mpi.world import LauncherMismatch, World
from iwes_mpi.rollouts.objective import Objective, ObjectiveRunner, starting_point
from iwes_mpi.running import session
from iwes_mpi.running.objectives import DEFAULTS, FIXED, SETTINGS, name_of, plain, refuse_others
from iwes_mpi.settings.command_line import Request
from iwes_mpi.settings.config import Config, check_together
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:
    from iwes_mpi.files.columns import IterationRow
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.state import State

_NAME = "iwes_mpi.maximize"
_RESUME = ("never", "always", "auto")


class RunFailed(RuntimeError):
    """A run ended neither by a limit nor by a request to stop; known on every rank.

    Parameters
    ----------
    problem : str
    exit_code : int
        That of training in such a case (docs/reliability.md).
    """

    def __init__(self, problem: str, exit_code: int):
        super().__init__(problem)
        self.exit_code = exit_code


@dataclass(frozen=True, eq=False)
class Result:
    """What `maximize` came to; the same on every rank."""

    theta: NDArray[np.float64]  # (d,)
    finished: bool  # a limit was reached; False: a signal, or max_wall_time, has stopped the run
    iterations: int  # in all, over restarts
    evaluations: int  # of the population, in all, over restarts
    mean_return: float  # of the last population; NaN before the first
    best_return: float  # the largest of all populations; -inf before the first
    eval_return: float  # of theta at the start of the iteration that last evaluated it; NaN if none did
    rank: int  # of this process; 0 is the one that talks

    @property
    def exit_code(self) -> int:
        """What a job that ends here should say: 0, or 75 for a run that was stopped and can be resumed."""
        return FINISHED if self.finished else STOPPED_EARLY


def maximize(
    objective: Objective, theta0: ArrayLike, *, run_dir: str | os.PathLike[str] | None = None,
    resume: Literal["never", "always", "auto"] = "never", seed: int = 0, iterations: int | None = None,
    on_iteration: "Callable[[IterationRow], object] | None" = None, **settings: Any,
) -> Result:  # fmt: skip
    """Find theta for which an objective returns much, by IW-ES on all ranks of this job. Collective.

    Under mpirun every rank calls it with the same arguments; those of rank 0 count, but for the objective. What is said
    of training holds here: the result depends on settings and seed alone, files, signals and restarts are the same.

    Parameters
    ----------
    objective : callable
        ``objective(theta, rng)`` takes theta, float32 (d,), and a `numpy.random.Generator` of this evaluation's own,
        and returns a number. What is random in it must come from `rng`. NaN counts as the worst of its population.
    theta0 : array (d,)
        Where a new run begins.
    run_dir : path, optional
        The directory of the run's log and checkpoints; without one it leaves no files.
    resume : "never", "always" or "auto"
        As ``--resume`` of training: "auto" goes on with what is in `run_dir`, or begins.
    seed : int
    iterations : int, optional
        A limit. Without any limit it goes on until it is stopped.
    on_iteration : callable, optional
        Called on rank 0 with each iteration's row of the log, an `iwes_mpi.files.columns.IterationRow`.
    **settings
        Any other setting of ``python -m iwes_mpi.train --help`` that is not about environments or policies, such as
        `n_pairs`, `sigma`, `learning_rate`, `iw_updates`, `max_env_steps` (evaluations), `checkpoint_every`.

    Returns
    -------
    Result

    Raises
    ------
    WrongInput
        On every rank, naming the argument; if nobody catches it, rank 0 prints one line and the job ends with code 2.
    RunFailed
        On every rank, if theta is not finite any more, or files cannot be written.

    Notes
    -----
    With several ranks, any other exception on one of them prints its traceback and ends the job: the others would wait
    for it for ever. So it is with an objective that returns something else than a number, in one line.
    """
    begin = time.monotonic()
    world = _world()
    given = settings | {"seed": seed, "iterations": iterations}
    work = _Maximization(objective, theta0, run_dir, resume, on_iteration, given)
    neighbor = Neighbor(world)
    try:
        outcome = session.run(world, work, begin)
    except Refused as refused:
        neighbor.leave()
        error = refused.error
        raise WrongInput(error.setting, plain(error.problem), error.source) from None
    except BaseException as error:
        if world.size > 1:  # the others wait
            if isinstance(error, WrongInput):
                _say_and_abort(world, error)
            report_and_abort(world, error)
        raise
    neighbor.leave()
    if outcome.problem:
        raise RunFailed(outcome.problem, outcome.code)
    return _result(world, outcome, work)


def _result(world: World, outcome: session.Outcome, work: "_Maximization") -> Result:
    state, (mean, best) = outcome.state, outcome.returns or (math.nan, -math.inf)
    if state is None:
        theta = world.from_root(work.theta0)
        return Result(theta, False, 0, 0, math.nan, -math.inf, math.nan, world.rank)
    world.broadcast(state.theta)
    evaluation = state.recent_evaluations[-1] if state.recent_evaluations else math.nan
    finished = outcome.code == FINISHED
    return Result(state.theta, finished, state.iteration, state.episodes, mean, best, evaluation, world.rank)


class _Maximization:
    """An objective to be maximized: a `work.Work`."""

    def __init__(
        self, objective: Objective, theta0: ArrayLike, run_dir: str | os.PathLike[str] | None, resume: str,
        on_iteration: "Callable[[IterationRow], object] | None", settings: dict[str, Any],
    ):  # fmt: skip
        self._objective, self._given, self._run_dir, self._resume = objective, theta0, run_dir, resume
        self._on_iteration, self._settings = on_iteration, settings
        self.theta0: NDArray[np.float64] = np.zeros(0)  # once it is known to be right
        self.command = ["python", *sys.argv]

    def plan(self) -> "Plan":
        """See `work.Work`."""
        from iwes_mpi.files.directory import Plan, make_plan
        from iwes_mpi.method.state import digest

        if not callable(self._objective):
            raise WrongInput("objective", f"must be a function of theta and rng, got {self._objective!r}")
        self.theta0 = starting_point(self._given)
        if self._on_iteration is not None and not callable(self._on_iteration):
            raise WrongInput("on_iteration", f"must be a function of a row, got {self._on_iteration!r}")
        if self._resume not in _RESUME:
            raise WrongInput("resume", f"must be one of {', '.join(_RESUME)}, got {self._resume!r}")
        refuse_others(self._settings, SETTINGS, "maximize")
        begins_at = {"theta0": f"{digest(self.theta0):016x}", "d": self.theta0.size}
        mine = {"env_id": name_of(self._objective), "env_kwargs": begins_at, **FIXED}
        named = {} if self._run_dir is None else {"run_dir": os.fspath(self._run_dir)}
        request = Request({**self._settings, **mine, **named}, self._resume, DEFAULTS)  # type: ignore[arg-type]
        if named:
            plan = self._fitting(lambda: make_plan(request))
        elif self._resume != "never":
            raise WrongInput("resume", "needs `run_dir`, the directory of the run to continue")
        else:
            config = request.config()
            check_together(config)
            plan = Plan(config, Path(), Path(), False, None, [], (), kept=False)
        if plan.config.stop_at_return is not None and plan.config.n_eval == 0:
            raise WrongInput("stop_at_return", "needs evaluations, but `n_eval` is 0")
        if plan.config.tensorboard:
            if not plan.kept:
                raise WrongInput("tensorboard", "needs `run_dir`, the directory of its files")
            from iwes_mpi.shown.tensorboard import require

            require()
        return plan

    def _fitting(self, make: "Callable[[], Plan]") -> "Plan":
        """A plan for the directory. Raises WrongInput, in the words of `maximize` if the run there began elsewhere."""
        try:
            return make()
        except WrongInput as error:
            if error.setting == "env_kwargs":
                raise WrongInput("theta0", f"the run in {self._run_dir} began at another theta0") from None
            if error.setting == "env_id":
                raise WrongInput("objective", error.problem) from None
            raise

    def open(self, world: World, config: Config) -> ObjectiveRunner:
        """See `work.Work`."""
        self.theta0 = world.from_root(self.theta0)
        agree(world, self._check_objective)
        return ObjectiveRunner(self._objective, self.theta0, f"objective {config.env_id}")

    def _check_objective(self) -> None:
        if not callable(self._objective):
            raise WrongInput("objective", f"must be a function of theta and rng, got {self._objective!r}")

    def hook(self, config: Config) -> "Callable[[IterationRow], object] | None":
        """See `work.Work`."""
        return self._on_iteration

    def spell(self, text: str) -> str:
        """See `work.Work`."""
        return plain(text)

    def fail(self, problem: str) -> None:
        """See `work.Work`: it is raised, on every rank."""

    def summarize(self, plan: "Plan", state: "State", median: float, code: int) -> str:
        """See `work.Work`."""
        from iwes_mpi.shown.console import clock

        verb = "Finished" if code == FINISHED else "Stopped early" + (", with a checkpoint" if plan.kept else "")
        reached = "" if math.isnan(median) else f", last evaluation {median:.6g}"
        text = (
            f"{verb}: {state.iteration} iterations, {state.episodes} evaluations in {clock(state.wall_time)}{reached}."
        )
        if plan.kept and code == FINISHED:
            text += f"\nResults are in {plan.run_dir}; see them with: python -m iwes_mpi.watch {plan.run_dir}"
        elif plan.kept:
            text += "\nTo go on, on any number of ranks: call maximize again with resume='auto'"
        return text


@cache
def _world() -> World:
    """The world of this process's job, made once; from then on what nobody catches ends all of its ranks."""
    try:
        world = World()
    except LauncherMismatch as error:
        if first_of_launch(os.environ):
            print(f"iwes_mpi: error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    before = sys.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, WrongInput | RunFailed):  # every rank knows
            if world.is_root:
                print(f"{_NAME}: error: {one_line(error)}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code if isinstance(error, RunFailed) else BAD_INPUT)
        if world.size > 1:
            report_and_abort(world, error)
        before(kind, error, trace)

    sys.excepthook = uncaught
    return world


def _say_and_abort(world: World, error: WrongInput) -> None:
    """End the job for wrong input that only showed while it went on: one line of the first rank that meets it."""
    if world.last_words.be_first():
        print(f"{_NAME}: error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(Neighbor.PATIENCE)  # while the first prints
    world.abort(BAD_INPUT)
