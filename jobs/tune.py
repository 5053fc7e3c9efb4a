"""Find settings for a task with a stated budget: python jobs/tune.py jobs/tune/swimmer-es.toml --parallel 2.

A search file names what is fixed, what is searched and in which range, what counts, and the budget: so many trials of
so many seeds each, of so many environment steps (population and evaluation together). Trials are drawn by Optuna's TPE.

    python jobs/tune.py FILE --parallel 2          on one machine; Ctrl-C stops it, the same command goes on
    python jobs/tune.py FILE --array               one trial or finalist's run, then end: a task of a Slurm array
    python jobs/tune.py FILE --report [BEST.toml]  the table of trials, and the best settings as a file for --config

What is found depends on the file alone: neither on the number of processes nor on kills. Trial n is drawn from the
results of trials 0 … n − at_once, which it waits for, and is compared with the complete ones among them.

A trial's loss is the mean over its seeds, and less is better:
  return to reach  share of the steps spent when the mean of three evaluations in a row reaches the return, counted to
                   the end of the third; 2 − p if it never does, where p is the share of the way from `start` to the
                   return that the best three in a row came
  area             minus the mean of the evaluation curve over all steps, beginning at `start`

The best of few seeds has been lucky as well as good. So the `finalists` best trials are run with `final_seeds` further
seeds, and the one with the smallest mean loss over these is the best.

A trial is stopped early if its loss so far is above the median of the losses that complete trials had at that point:
at every tenth of a run, from the third tenth of the first run on, once `startup` complete trials can be compared. The
loss so far counts a run under way as if it ended there, and runs to come as the mean of the others.
"""

import argparse
import csv
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout, where it is not installed

import tomli_w

from iwes_mpi.mpi.program import BAD_INPUT, FAILED, FINISHED, STOPPED_EARLY
from iwes_mpi.mpi.world import LauncherMismatch, World
from iwes_mpi.settings import values
from iwes_mpi.settings.config import Config, refuse_unknown
from iwes_mpi.settings.limits import GOAL_WINDOW, reached
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

POINTS = 10  # at which a run is compared with those of other trials
WARM_UP = 3  # of these, at the start of the first run, are not
DIGITS = 3  # of searched numbers
OURS = ("seed", "run_dir", "iterations", "max_env_steps", "max_wall_time", "stop_at_return")  # settings of a run
INITIAL_SEED = 1  # of the first run of each trial; the others follow it, and then the finalists' seeds
_WITH_DEFAULTS = {"at_once": 4, "startup": 10, "seed": 0, "finalists": 1, "final_seeds": 8}  # of a search file


# -- search files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, all as likely, or their logarithms."""

    low: float
    high: float
    log: bool
    whole: bool

    def distribution(self) -> "BaseDistribution":
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: Any) -> Any:
        """A drawn value as it is used."""
        return value if self.whole else min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    def decoded(self, value: Any) -> Any:
        """The setting's value."""
        return value

    def ends(self) -> tuple[Any, ...]:
        """Values that tell whether all are valid."""
        return self.low, self.high


@dataclass(frozen=True)
class Choices:
    """Some values, all as likely; Optuna knows them by their JSON text."""

    texts: tuple[str, ...]

    def distribution(self) -> "BaseDistribution":
        """As `Range.distribution`."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def rounded(self, value: Any) -> Any:
        """As `Range.rounded`."""
        return value

    def decoded(self, value: Any) -> Any:
        """As `Range.decoded`."""
        return json.loads(value)

    def ends(self) -> tuple[Any, ...]:
        """As `Range.ends`."""
        return tuple(map(json.loads, self.texts))


@dataclass(frozen=True)
class Criterion:
    """What counts: the steps to a return, or without one the area under the evaluation curve."""

    goal: float | None
    start: float  # what a policy returns before it has learned anything


@dataclass(frozen=True)
class Search:
    """A search file."""

    name: str
    trials: int
    seeds: int  # of each trial
    steps: int  # of each run, population and evaluation together
    at_once: int  # the most trials that may be under way
    startup: int  # trials drawn at random; complete ones that a trial needs before it can be stopped early
    seed: int
    finalists: int  # trials that are run with further seeds; 1: the best trial is the best
    final_seeds: int  # of each finalist
    criterion: Criterion
    fixed: dict[str, Any]
    space: dict[str, Range | Choices]
    preset: dict[str, Any]  # further settings of the best settings' file

    def config(self, params: dict[str, Any], seed: int) -> Config:
        """The settings of a run of a trial. One rank has no use for a queue."""
        return Config(**(self.fixed | self.settings(params) | {"seed": seed, "schedule": "static"}))

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The searched settings of a trial."""
        return {name: dimension.decoded(params[name]) for name, dimension in self.space.items()}

    def identity(self) -> str:
        """What the trials of a study have in common; more of them, and of finalists, may be asked for later."""
        parts = dataclasses.asdict(self)
        later = ("name", "trials", "preset", "finalists", "final_seeds")
        return json.dumps({name: parts[name] for name in parts if name not in later})


def _take(table: dict[str, Any], name: str, kind: type, source: str, default: Any = None) -> Any:
    """Remove a value of a type from a table of the file."""
    value = table.pop(name, default)
    if value is None:
        raise WrongInput(source, f"{name} is missing")
    try:
        value = values.coerce(name, kind, value)
    except WrongInput as error:
        raise WrongInput(source, f"{error.setting} {error.problem}") from None
    if kind is int and value < (0 if name == "seed" else 1):
        raise WrongInput(source, f"{name} must be at least {0 if name == 'seed' else 1}, got {value}")
    if kind is float and not math.isfinite(value):
        raise WrongInput(source, f"{name} must be finite, got {value}")
    return value


def _no_more(table: dict[str, Any], source: str) -> None:
    """Refuse what is left of a table."""
    for name in table:
        raise WrongInput(source, f"{name} is unknown here")


def _dimension(name: str, given: Any, source: str) -> Range | Choices:
    """What a searched setting may be."""
    hint = values.target(typing.get_type_hints(Config)[name])
    if isinstance(given, list) and given:
        return Choices(tuple(json.dumps(value) for value in given))
    if isinstance(given, dict) and hint in (int, float) and {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        given = dict(given)
        where = f"{source}: search: {name}"
        try:
            low, high = (values.coerce(end, hint, given[end]) for end in ("low", "high"))
            log = values.coerce("log", bool, given.get("log", False))
        except WrongInput as error:
            raise WrongInput(where, f"{error.setting} {error.problem}") from None
        if not -math.inf < low < high < math.inf or (log and low <= 0):
            raise WrongInput(where, f"{low} to {high} is no range{' of logarithms' if log and low <= 0 else ''}")
        return Range(low, high, log, hint is int)
    kinds = "a list of choices" + (" or { low = …, high = …, log = true }" if hint in (int, float) else "")
    raise WrongInput(f"{source}: search: {name}", f"must be {kinds}, got {given!r}")


def read_search(path: Path) -> Search:
    """A search file, checked.

    Raises
    ------
    WrongInput
        Naming the file and what is wrong with it.
    """
    source = str(path)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WrongInput(source, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise WrongInput(source, f"is not valid TOML: {error}") from None
    parts: dict[str, dict[str, Any]] = {}
    for name in ("criterion", "fixed", "search", "preset"):
        found = table.pop(name, {} if name == "preset" else None)
        if not isinstance(found, dict) or (name != "preset" and not found):
            raise WrongInput(source, f"[{name}] is missing")
        parts[name] = found
    for name in ("fixed", "search", "preset"):
        refuse_unknown(parts[name], f"{source}: {name}")
    for name in ("fixed", "search"):
        for setting in parts[name]:
            if setting in OURS:
                raise WrongInput(f"{source}: {name}", f"{setting} is for the search to set")
    if twice := parts["fixed"].keys() & parts["search"].keys():
        raise WrongInput(source, f"{min(twice)} is both fixed and searched")
    where = f"{source}: criterion"
    goal = _take(parts["criterion"], "return", float, where) if "return" in parts["criterion"] else None
    if goal is None and _take(parts["criterion"], "area", bool, where, False) is not True:
        raise WrongInput(where, "must have return = … or area = true")
    criterion = Criterion(goal, _take(parts["criterion"], "start", float, where))
    _no_more(parts["criterion"], where)
    if goal is not None and goal <= criterion.start:
        raise WrongInput(where, f"return must be above start, got {goal} and {criterion.start}")
    search = Search(
        name=path.stem,
        **{name: _take(table, name, int, source) for name in ("trials", "seeds", "steps")},
        **{name: _take(table, name, int, source, n) for name, n in _WITH_DEFAULTS.items()},
        criterion=criterion,
        fixed=parts["fixed"],
        space={name: _dimension(name, given, source) for name, given in parts["search"].items()},
        preset=parts["preset"],
    )
    _no_more(table, source)
    first = {name: dimension.ends()[0] for name, dimension in search.space.items()}
    for name, dimension in search.space.items():
        for end in dimension.ends():
            config = Config.from_dict(search.fixed | first | {name: end}, source)
    Config.from_dict(search.fixed | first | search.preset, f"{source}: preset")
    if config.n_eval == 0:
        raise WrongInput(source, "n_eval is 0, but evaluations are what counts")
    return search


# -- runs ----------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """The evaluations of a run so far, and what it would be worth if it ended now."""

    criterion: Criterion
    steps: int
    spent: list[int] = field(default_factory=list)  # steps at the end of each evaluation, all of them counted
    returns: list[float] = field(default_factory=list)
    goal_after: int | None = None  # steps to the return
    total: int = 0  # steps made

    def add(self, spent: int, score: float) -> None:
        """An evaluation that ended after so many steps; not of interest beyond the last step."""
        if spent > self.steps or not math.isfinite(score):
            return
        self.spent.append(spent)
        self.returns.append(score)
        goal = self.criterion.goal
        if goal is not None and self.goal_after is None and reached(goal, self.returns):
            self.goal_after = spent

    def loss(self, spent: int) -> float:
        """The loss of a run that ends after so many steps."""
        start, goal = self.criterion.start, self.criterion.goal
        if goal is None:
            return -self._mean(min(spent, self.steps))
        if self.goal_after is not None:
            return self.goal_after / self.steps
        windows = zip(*(self.returns[i:] for i in range(GOAL_WINDOW)), strict=False)
        best = max((sum(window) / GOAL_WINDOW for window in windows), default=start)
        return 2.0 - min(1.0, max(0.0, (best - start) / (goal - start)))

    def _mean(self, end: int) -> float:
        """The mean of the curve up to a step: linear between evaluations, level after the last."""
        known = [(0, self.criterion.start), *zip(self.spent, self.returns, strict=True)]
        known.append((max(end, known[-1][0]), known[-1][1]))
        area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(known))
        return area / known[-1][0] if known[-1][0] else self.criterion.start


class Stop:
    """A request to stop, by a signal or by the end of the process that started this one."""

    def __init__(self, parent: int | None):
        self._parent, self._requested = parent, False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self._requested and number == signal.SIGINT:
            os._exit(128 + number)
        self._requested = True

    def pending(self) -> bool:
        """Whether it was made."""
        return self._requested or (self._parent is not None and os.getppid() != self._parent)


class Stopped(Exception):
    """A run was left unfinished because of a request to stop."""


class Pruned(Exception):
    """A trial is not worth going on with."""


def run(
    search: Search, config: Config, world: World, stop: Stop, curve: Curve, at_point: Callable[[int, int], None]
) -> None:
    """A run of `iwes_mpi.train`, bit by bit, without its files. Nothing of it is left afterwards.

    Parameters
    ----------
    search : Search
    config : Config
    world : World
        Of one rank.
    stop : Stop
    curve : Curve
        What came of it.
    at_point : callable
        Called with the number of the point, from 0, and the steps made whenever another tenth of them is; what it
        raises ends the run. At the end, for all the points that are left.

    Raises
    ------
    Stopped
        If that was asked for.
    WrongInput
        If the environment is wrong.
    """
    from iwes_mpi.method.es import EvolutionStrategies, Interrupted
    from iwes_mpi.method.learner import Diverged
    from iwes_mpi.method.noise import NoiseTable, choose_size
    from iwes_mpi.method.rehearsal import rehearse
    from iwes_mpi.method.state import initial_state
    from iwes_mpi.method.weight_kernels import needs_norms
    from iwes_mpi.mpi.turns import in_turn
    from iwes_mpi.rollouts.choose import open_runner

    runner = open_runner(config)
    try:
        in_turn(world, lambda: rehearse(config, runner))
        size, _ = choose_size(config, world, runner.network.n_parameters)
        noise = NoiseTable(world, config.seed, size, with_norms=needs_norms(config.weight_kernel))
        state = initial_state(
            config.seed, runner.network, config.optimizer, config.train_episode_steps or 0, config.whiten
        )
        es = EvolutionStrategies(config, world, runner, noise, state, stop)  # type: ignore[arg-type]
        point = 0
        while curve.total < search.steps and curve.goal_after is None:
            before = state.env_steps
            if stop.pending():
                raise Stopped
            try:
                report = es.iterate()
            except Interrupted:
                raise Stopped from None
            except Diverged:
                break  # it learns nothing more
            if any(map(math.isfinite, report.population.eval_returns)):
                curve.add(before + state.eval_env_steps, state.recent_evaluations[-1])
            curve.total = state.env_steps + state.eval_env_steps
            while point < POINTS - 1 and curve.total >= (point + 1) * search.steps / POINTS:
                at_point(point, curve.total)
                point += 1
        for rest in range(point, POINTS):
            at_point(rest, search.steps)
    finally:
        runner.close()
        world.close()


# -- trials --------------------------------------------------------------------------------------------------


class FileLock:
    """A lock that the kernel drops with the process, however it ends; Optuna's own would outlive it.

    What a process that was killed left of the journal's last line is removed.
    """

    def __init__(self, path: Path, journal: Path | None = None):
        self._path, self._journal = path, journal
        self._file: IO[bytes] | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; whether it was taken."""
        file = self._path.open("ab")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            file.close()
            return False
        self._file = file
        if self._journal is not None and self._journal.exists():
            with self._journal.open("rb+") as journal:
                if journal.seek(0, os.SEEK_END) and journal.seek(-1, os.SEEK_END) >= 0 and journal.read() != b"\n":
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Study:
    """The trials of a search, in a directory that all processes at work on it share.

    Parameters
    ----------
    search : Search
    directory : Path

    Raises
    ------
    WrongInput
        If the directory belongs to another search, or cannot be written.
    """

    def __init__(self, search: Search, directory: Path):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search, self._directory = search, directory
        self._space = {name: dimension.distribution() for name, dimension in search.space.items()}
        journal = directory / "journal.log"
        try:
            (directory / "trials").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / "lock")
            backend = optuna.storages.journal.JournalFileBackend(
                str(journal), FileLock(directory / "journal.lock", journal)
            )
        except OSError as error:
            raise WrongInput(str(directory), f"cannot be written: {error.strerror}") from None
        with self._locked():
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend), study_name="search", load_if_exists=True
            )
            known = self._study.user_attrs.get("search")
            if known is None:
                self._study.set_user_attr("search", search.identity())
        if known not in (None, search.identity()):
            raise WrongInput(
                str(directory), f"was begun with other settings than {search.name} has now; choose another --directory"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All trials so far, by number."""
        return self._study.get_trials(deepcopy=False)

    def claim(self) -> "tuple[Trial, FileLock] | bool":
        """A trial to work on, with its lock: one that another process left unfinished, else the next.

        Returns
        -------
        tuple or bool
            True where the next has to wait for others, False where nothing is left to take.
        """
        import optuna

        with self._locked():
            trials = self.trials
            for trial in trials:
                if not trial.state.is_finished() and (lock := self._claimed(trial.number)):
                    return optuna.trial.Trial(self._study, trial._trial_id), lock
            n = len(trials)
            if n >= self._search.trials:
                return False
            if not all(trial.state.is_finished() for trial in self._known_to(n)):
                return True
            lock = self._claimed(n)
            assert lock is not None, "nobody else has it, since all take trials under one lock"
            # One line of the journal: a kill leaves no trial that knows but some of its settings.
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=self._drawn(n), distributions=self._space
                )
            )
            return optuna.trial.Trial(self._study, self.trials[n]._trial_id), lock

    def _claimed(self, number: int) -> FileLock | None:
        """The lock of a trial, if nobody has it."""
        lock = FileLock(self._directory / "trials" / f"{number:04d}.lock")
        return lock if lock.acquire(wait=False) else None

    def _known_to(self, number: int) -> "list[FrozenTrial]":
        """The trials whose results a trial may depend on."""
        return self.trials[: max(0, number - self._search.at_once + 1)]

    def _drawn(self, number: int) -> dict[str, Any]:
        """The settings of a new trial. Those that may be under way count as just that, finished or not."""
        import optuna

        seed = int.from_bytes(hashlib.blake2b(f"{self._search.seed} {number}".encode()).digest()[:4], "little")
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._search.startup, multivariate=True)
        memory = optuna.create_study(sampler=sampler)
        known = self._known_to(number)
        memory.add_trials(known)
        for trial in self.trials[len(known) :]:
            memory.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=trial.params, distributions=trial.distributions
                )
            )
        params = memory.ask(self._space).params
        return {name: dimension.rounded(params[name]) for name, dimension in self._search.space.items()}

    def carry_out(self, trial: "Trial", world: World, stop: Stop) -> None:
        """Make the runs of a trial, those that are not made yet, and record what became of it.

        Raises
        ------
        Stopped
            If that was asked for.
        """
        import optuna

        search, begin = self._search, time.monotonic()
        frozen = self.trials[trial.number]
        losses: list[float] = list(made(frozen).get("losses", []))
        steps, seconds = int(made(frozen).get("steps", 0)), float(made(frozen).get("seconds", 0.0))
        reported = set(frozen.intermediate_values)
        others = [
            known.intermediate_values
            for known in self._known_to(trial.number)
            if known.state == optuna.trial.TrialState.COMPLETE
        ]

        def at_point(point: int, spent: int) -> None:
            number = len(losses) * POINTS + point
            loss = (sum(losses) + curve.loss(spent)) / (len(losses) + 1)
            if number not in reported:
                trial.report(loss, number)
            compared = len(others) >= search.startup and number >= WARM_UP - 1
            if compared and loss > statistics.median(other[number] for other in others):
                raise Pruned

        complete, early = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
        state = early if made(frozen).get("early") else complete
        while state == complete and len(losses) < search.seeds:
            curve = Curve(search.criterion, search.steps)
            try:
                run(search, search.config(trial.params, INITIAL_SEED + len(losses)), world, stop, curve, at_point)
            except Pruned:
                state = early
            else:
                losses.append(curve.loss(search.steps))
            steps += curve.total
            spent = seconds + time.monotonic() - begin
            trial.set_user_attr("made", {"losses": losses, "steps": steps, "seconds": spent, "early": state == early})
        value = statistics.fmean(losses) if state == complete else None
        self._study.tell(trial, value, state)
        what = "stopped early" if value is None else f"loss {value:.4f}"
        print(f"{search.name}: trial {trial.number}: {what}, {time.monotonic() - begin:.0f} s", flush=True)

    def finalists(self) -> "list[FrozenTrial]":
        """The complete trials of the smallest losses, the best first, once all trials are finished; else none."""
        trials = self.trials
        if len(trials) < self._search.trials or not all(trial.state.is_finished() for trial in trials):
            return []
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        return sorted(complete, key=lambda trial: (trial.value, trial.number))[: self._search.finalists]

    def finals(self) -> dict[int, list[dict[str, Any]]]:
        """What the further runs of each finalist came to, by its number, as far as they are made: loss and steps."""
        known = self._study.user_attrs
        seeds = range(self._search.final_seeds)
        return {
            trial.number: [known[key] for i in seeds if (key := _final(trial.number, i)) in known]
            for trial in self.finalists()
            if self._search.finalists > 1
        }

    def claim_final(self) -> "tuple[FrozenTrial, int, FileLock] | bool":
        """A further run of a finalist, with its lock; otherwise as `claim`."""
        if not all(trial.state.is_finished() for trial in self.trials):
            return True
        if self._search.finalists == 1:
            return False
        under_way = False
        with self._locked():
            known = self._study.user_attrs
            for i in range(self._search.final_seeds):
                for trial in self.finalists():
                    if _final(trial.number, i) in known:
                        continue
                    if lock := self._claimed_final(trial.number, i):
                        return trial, i, lock
                    under_way = True
        return under_way

    def _claimed_final(self, number: int, i: int) -> FileLock | None:
        lock = FileLock(self._directory / "trials" / f"{number:04d}-{i:02d}.lock")
        return lock if lock.acquire(wait=False) else None

    def carry_out_final(self, trial: "FrozenTrial", i: int, world: World, stop: Stop) -> None:
        """Make a further run of a finalist and record its loss.

        Raises
        ------
        Stopped
            If that was asked for.
        """
        search, begin, curve = self._search, time.monotonic(), Curve(self._search.criterion, self._search.steps)
        seed = INITIAL_SEED + search.seeds + i
        run(search, search.config(trial.params, seed), world, stop, curve, lambda point, spent: None)
        loss = curve.loss(search.steps)
        with self._locked():
            self._study.set_user_attr(_final(trial.number, i), {"loss": loss, "steps": curve.total})
        print(
            f"{search.name}: finalist {trial.number}, seed {seed}: loss {loss:.4f}, {time.monotonic() - begin:.0f} s",
            flush=True,
        )

    def best(self) -> "tuple[FrozenTrial, float] | None":
        """The best trial and its loss: of the finalists, once all their runs are made; of all trials before that."""
        finals = self.finals()
        if finals and all(len(made) == self._search.final_seeds for made in finals.values()):
            means = {number: statistics.fmean(run["loss"] for run in made) for number, made in finals.items()}
            number = min(means, key=lambda number: (means[number], number))
            return self.trials[number], means[number]
        complete = [trial for trial in self.trials if trial.state.name == "COMPLETE"]
        found = min(complete, key=lambda trial: (trial.value, trial.number), default=None)
        return found and (found, float(found.value))


def _final(number: int, i: int) -> str:
    """The name by which a study knows a further run of a finalist."""
    return f"final {number} {i}"


# -- report --------------------------------------------------------------------------------------------------


def made(trial: "FrozenTrial") -> dict[str, Any]:
    """What the runs of a trial have come to so far. It was in several places at first."""
    found: dict[str, Any] = trial.user_attrs.get("made", trial.user_attrs)
    return found


def table(search: Search, trials: "list[FrozenTrial]", finals: dict[int, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """The trials, heading first; values that are not known are empty. `final` is a finalist's loss with its seeds."""
    seeds = range(search.seeds)
    yield [
        "trial",
        "state",
        "loss",
        *(f"loss_seed{INITIAL_SEED + i}" for i in seeds),
        *(["final"] if finals else []),
        "steps",
        "seconds",
        *search.space,
    ]
    for trial in trials:
        losses = [f"{loss:.6g}" for loss in made(trial).get("losses", [])]
        state = {"COMPLETE": "complete", "PRUNED": "stopped early"}.get(trial.state.name, "under way")
        yield [
            str(trial.number), state, "" if state != "complete" else f"{trial.value:.6g}",
            *losses, *[""] * (search.seeds - len(losses)),
            *([_mean_loss(finals.get(trial.number, []))] if finals else []),
            str(made(trial).get("steps", "")), f"{made(trial).get('seconds', 0):.0f}",
            *(shown(search.settings(trial.params)[name]) for name in search.space),
        ]  # fmt: skip


def _mean_loss(runs: list[dict[str, Any]]) -> str:
    return f"{statistics.fmean(run['loss'] for run in runs):.6g}" if runs else ""


def shown(value: Any) -> str:
    """A setting's value in the table."""
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def best_settings(search: Search, best: "FrozenTrial", loss: float, budget: str) -> str:
    """The best settings as a TOML file for --config: those of the runs of the search, with its limits."""
    settings = search.fixed | search.settings(best.params)
    if search.criterion.goal is not None:
        settings["stop_at_return"] = search.criterion.goal
    settings |= {"max_env_steps": search.steps} | search.preset
    head = f"# Found by jobs/tune.py for {search.name}: trial {best.number}, loss {loss:.4g}; {budget}.\n"
    return head + tomli_w.dumps({name: values.for_toml(value) for name, value in settings.items()})


def budget(search: Search, trials: "list[FrozenTrial]", finals: dict[int, list[dict[str, Any]]]) -> str:
    """What a search has cost."""
    steps = sum(made(trial).get("steps", 0) for trial in trials)
    steps += sum(run["steps"] for runs in finals.values() for run in runs)
    further = f"; the {len(finals)} best with {search.final_seeds} further seeds" if finals else ""
    early = sum(trial.state.name == "PRUNED" for trial in trials)
    under_way = sum(not trial.state.is_finished() for trial in trials)
    return (
        f"{len(trials)} of {search.trials} trials of {search.seeds} seeds and at most {search.steps} steps a run, "
        f"{early} of them stopped early{f', {under_way} under way' if under_way else ''}{further}, "
        f"{steps / 1e6:.3g} M steps in all"
    )


def report(search: Search, directory: Path, target: Path | None) -> None:
    """Print the table of trials and the best settings; the latter go to a file too if one is named.

    Raises
    ------
    WrongInput
        If there are no trials yet.
    """
    if not (directory / "journal.log").exists():
        raise WrongInput(str(directory), "holds no trials of this search yet")
    study = Study(search, directory)
    finals = study.finals()
    csv.writer(sys.stdout, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None).writerows(
        table(search, study.trials, finals)
    )
    if (best := study.best()) is None:
        if target is not None:
            raise WrongInput(str(directory), "holds no complete trial yet")
        return
    text = best_settings(search, *best, budget(search, study.trials, finals))
    print("\n" + text, end="")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")


# -- processes -----------------------------------------------------------------------------------------------


def work(search: Search, directory: Path, one: bool, parent: int | None) -> int:
    """Carry out trials and then finalists' runs until none is left, or just one; returns the exit code."""
    study, stop, world = Study(search, directory), Stop(parent), World()
    if world.size > 1:
        raise WrongInput("tune.py", "takes --parallel N, not several ranks")
    try:
        while claimed := study.claim():
            if claimed is True:
                if stop.pending():
                    raise Stopped
                time.sleep(0.2)
                continue
            trial, lock = claimed
            try:
                study.carry_out(trial, world, stop)
            finally:
                lock.release()
            if one:
                return FINISHED
        while claim := study.claim_final():
            if claim is True:
                if stop.pending():
                    raise Stopped
                time.sleep(0.2)
                continue
            finalist, i, lock = claim
            try:
                study.carry_out_final(finalist, i, world, stop)
            finally:
                lock.release()
            if one:
                break
    except Stopped:
        return STOPPED_EARLY
    return FINISHED


def check_environment(search: Search) -> None:
    """Raise WrongInput if it is wrong, before there are trials."""
    from iwes_mpi.rollouts.choose import open_runner

    first = {name: dimension.ends()[0] for name, dimension in search.space.items()}
    open_runner(Config(**(search.fixed | first))).close()


def fan_out(count: int) -> int:
    """Start this program so many times, each doing its share; returns the exit code."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child", str(os.getpid())]
    children = [subprocess.Popen(command) for _ in range(count)]
    interrupted = False
    for child in children:
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:  # they got it too
                interrupted = True
    failed = [child.returncode for child in children if child.returncode]
    return STOPPED_EARLY if interrupted or STOPPED_EARLY in failed else FAILED if failed else FINISHED


def main() -> int:
    """Search, or report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a search file such as jobs/tune/swimmer-es.toml")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="of the trials [default runs/tune/NAME]")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="processes, each of one core [default 1]")
    parser.add_argument("--array", action="store_true", help="carry out one trial, then end")
    parser.add_argument("--report", nargs="?", type=Path, const=Path(), metavar="BEST.toml", help="show the trials")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        search = read_search(arguments.file)
        directory = arguments.directory or Path("runs/tune") / search.name
        if not 1 <= arguments.parallel <= search.at_once:
            raise WrongInput(
                "--parallel", f"must be at least 1, and at most at_once = {search.at_once}, got {arguments.parallel}"
            )
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise WrongInput("Optuna", "is not installed; pip install 'iwes_mpi[tune]'") from None
        if arguments.report is not None:
            report(search, directory, arguments.report if arguments.report != Path() else None)
            return FINISHED
        if arguments.child is None:
            check_environment(search)
        if arguments.parallel > 1 and arguments.child is None:
            Study(search, directory)  # what is wrong with it is said once
            return fan_out(arguments.parallel)
        return work(search, directory, arguments.array, arguments.child)
    except (WrongInput, LauncherMismatch) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
