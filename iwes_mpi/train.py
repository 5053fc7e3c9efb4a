"""``python -m iwes_mpi.train``: read the settings, build the parts, and iterate until a limit is reached."""

import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iwes_mpi import mpi
from iwes_mpi.config import Config, ConfigError, Request, build_parser, flag, parse
from iwes_mpi.launching import FINISHED, STOPPED_EARLY, agree, run_program

if TYPE_CHECKING:
    from iwes_mpi.es import Report
    from iwes_mpi.rollouts import EpisodeRunner
    from iwes_mpi.runlog import LogWriter
    from iwes_mpi.state import State


class Plan(NamedTuple):
    """What rank 0 found out before any work: where the run lives, its settings, and where it goes on."""

    config: Config
    run_dir: Path
    state: "State | None"  # from the checkpoint of a run being resumed
    resumed: bool
    notices: list[str]


def make_plan(request: Request) -> Plan:
    """Settle the settings of a run with what its directory holds. Rank 0 only.

    Raises
    ------
    ConfigError
        If a new run would overwrite another, a run to resume is not there or differs in a setting that changes
        results, or its files are damaged.
    """
    config = request.config()
    run_dir = Path(config.run_dir or _default_run_dir(config))
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError("--run-dir", f"{run_dir} is not a directory")
    from iwes_mpi import runlog

    exists = (run_dir / runlog.CONFIG).exists()
    if not exists:
        if request.resume == "always":
            raise ConfigError("--resume", f"there is no run in {run_dir} (no {runlog.CONFIG})")
        for name in (runlog.LOG, "checkpoint.h5"):
            if (run_dir / name).exists():
                raise ConfigError("--run-dir", f"{run_dir} holds a {name} but no {runlog.CONFIG}: not a whole run")
        return Plan(dataclasses.replace(config, run_dir=str(run_dir)), run_dir, None, False, [])
    if request.resume == "never":
        raise ConfigError("--run-dir", f"{run_dir} already holds a run; add --resume to continue it")
    recorded = runlog.recorded_config(run_dir)
    config = dataclasses.replace(request.config(recorded), run_dir=str(run_dir))
    if changed := recorded.differences(config):
        name = changed[0]
        raise ConfigError(
            flag(name),
            f"is {getattr(config, name)} but the run in {run_dir} was started with {getattr(recorded, name)}; "
            "a setting that changes results cannot change on --resume",
        )
    notices: list[str] = []
    from iwes_mpi.checkpoint import CheckpointError, load_newest

    try:
        state = load_newest(run_dir, notices.append).state
    except FileNotFoundError:
        state = None  # killed before its first checkpoint
    except CheckpointError as error:
        raise ConfigError("--resume", str(error)) from None
    return Plan(config, run_dir, state, True, notices)


def _default_run_dir(config: Config) -> str:
    name = config.env_id.replace(":", "-").replace("/", "-")
    return f"runs/{name}-seed{config.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def open_run_dir(plan: Plan, config: Config, state: "State", world: mpi.World) -> "LogWriter":
    """Create the run's files, or cut the log of a run being resumed back to `state`. Rank 0 only.

    Raises
    ------
    ConfigError
        If the directory cannot be written, or the log of a run being resumed cannot be read.
    """
    from iwes_mpi import checkpoint, runlog

    try:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        log_path = plan.run_dir / runlog.LOG
        tables = population = None
        attrs = runlog.provenance(config, mpi.library_version(), world.size, world.n_nodes)
        if log_path.exists():
            attrs = runlog.read_attrs(log_path) | {"config": config.to_json()}
            tables = {name: runlog.read_table(log_path, name) for name in runlog.TABLES}
            tables = {name: table[table["iteration"] < state.iteration] for name, table in tables.items()}
            population = runlog.read_population(log_path, state.iteration)
            if len(tables["iterations"]) != state.iteration:
                raise ConfigError(
                    "--resume",
                    f"{log_path} has {len(tables['iterations'])} of the {state.iteration} iterations before the "
                    "checkpoint",
                )
        elif state.iteration > 0:
            raise ConfigError("--resume", f"{log_path} is missing")
        if config.log_population and population is None:
            population = runlog.empty_population(state.iteration)
        runlog.write_config(plan.run_dir, config)
        log = runlog.LogWriter(log_path, attrs, tables, population)
        if not plan.resumed or plan.state is None:
            checkpoint.save(plan.run_dir, checkpoint.Checkpoint(state, config))
        return log
    except runlog.LogError as error:
        raise ConfigError("--resume", str(error)) from None
    except OSError as error:
        raise ConfigError("--run-dir", f"{error.filename or plan.run_dir}: {error.strerror}") from None


class Keeper:
    """Keeps what must survive on rank 0: log rows, checkpoints, display. On the other ranks it does nothing."""

    def __init__(self, plan: Plan, config: Config, state: "State", world: mpi.World, begin: float):
        from iwes_mpi.console import open_display

        self.config, self.state, self._begin = config, state, begin
        self._run_dir = plan.run_dir
        self._log = agree(world, lambda: open_run_dir(plan, config, state, world), on_root=True)
        self._display = open_display(config, state) if world.is_root else None
        self._saved_at = time.monotonic()
        self._saved_iteration = state.iteration if plan.state is not None else -1
        self._wall_time_before = state.wall_time
        self.last: Report | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since this job began."""
        return time.monotonic() - self._begin

    def note(self, text: str) -> None:
        """Show a line."""
        if self._display is not None:
            self._display.note(text)

    def tick(self) -> None:
        """Bring the state's wall-clock time up to date."""
        self.state.wall_time = self._wall_time_before + self.elapsed

    def keep(self, report: "Report") -> None:
        """Log an iteration, and write a checkpoint if one is due."""
        if self._log is None:
            return
        self.last = report
        population = (report.population.returns, report.population.lengths)
        self._log.append(report.iteration, report.updates, population)
        every = self.config.checkpoint_every
        due = every and self.state.iteration % every == 0
        if due or time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_minutes:
            self.save()
        assert self._display is not None
        self._display.update(report)

    def save(self) -> None:
        """Write a checkpoint, after the log rows that lead up to it are on disk."""
        from iwes_mpi.checkpoint import Checkpoint, save

        if self._log is None or self._saved_iteration == self.state.iteration:
            return
        self._log.sync()
        save(self._run_dir, Checkpoint(self.state, self.config))
        self._saved_at, self._saved_iteration = time.monotonic(), self.state.iteration

    def close(self) -> None:
        """Write the last checkpoint and close the log."""
        self.save()
        if self._log is not None:
            self._log.close()
        if self._display is not None:
            self._display.close()


def limit_reached(config: Config, state: "State") -> bool:
    """Whether the run is finished: it has all its iterations or environment steps. The same on every rank."""
    return (config.iterations is not None and state.iteration >= config.iterations) or (
        config.max_env_steps is not None and state.env_steps >= config.max_env_steps
    )


def train(world: mpi.World, argv: list[str]) -> int:
    """Run the whole of a training run on all ranks; returns the exit code. Collective.

    Raises
    ------
    Refused
        If the input is wrong.
    """
    begin = time.monotonic()
    plan = world.from_root(agree(world, lambda: make_plan(parse(argv)), on_root=True))
    config = plan.config

    # Imported after the command line is known to be right, and by all ranks at once.
    from iwes_mpi import state as states
    from iwes_mpi.es import EvolutionStrategies
    from iwes_mpi.noise import NoiseTable, choose_size
    from iwes_mpi.rollouts import open_runner

    # Rank 0 first: what is wrong with the environment is found, and said, once.
    runner: EpisodeRunner | None = agree(world, lambda: open_runner(config), on_root=True)
    if not world.is_root:
        runner = open_runner(config)
    assert runner is not None
    d = runner.network.n_parameters
    size, notice = agree(world, lambda: choose_size(config, world, d)) or (0, None)
    config = dataclasses.replace(config, noise_table_size=size)
    state = plan.state or states.initial_state(config.seed, runner.network)
    agree(world, lambda: _check_fit(state, runner))

    keeper = Keeper(plan, config, state, world, begin)
    for text in [*plan.notices, *([notice] if notice else [])]:
        keeper.note(f"warning: {text}")
    keeper.note(
        f"{'Resuming' if plan.resumed else 'Starting'} {plan.run_dir} at iteration {state.iteration}: "
        f"{runner.description}, {d} parameters, K = {config.iw_updates}, {world.size} ranks on "
        f"{world.n_nodes} node{'s' if world.n_nodes > 1 else ''}"
    )
    noise = NoiseTable(world, config.seed, size, with_norms=config.weight_kernel == "precomputed")
    es = EvolutionStrategies(config, world, runner, noise, state)
    code = FINISHED
    while not limit_reached(config, state):
        # The one safe point of an iteration: all ranks agree to go on or to stop.
        if world.any(config.max_wall_time is not None and keeper.elapsed >= config.max_wall_time):
            code = STOPPED_EARLY
            break
        report = es.iterate()
        keeper.tick()
        report.iteration["wall_time"] = state.wall_time
        with es.phases("io"):
            keeper.keep(report)
    keeper.close()
    runner.close()
    if world.is_root and config.display != "none":
        print(_summary(plan.run_dir, state, keeper.last, code), flush=True)
    return code


def _check_fit(state: "State", runner: "EpisodeRunner") -> None:
    d = runner.network.n_parameters
    if state.theta.size != d or state.obs.mean.size != runner.network.sizes[0]:
        raise ConfigError(
            "--resume",
            f"the checkpoint has {state.theta.size} parameters, but the environment's policy has {d}",
        )


def _summary(run_dir: Path, state: "State", last: "Report | None", code: int) -> str:
    """Two lines: what the run reached, and how to look at it."""
    from iwes_mpi.console import clock

    verb = "Finished" if code == FINISHED else "Stopped early, with a checkpoint"
    reached = f", evaluation median {last.iteration['eval_return_median']:.1f}" if last else ""
    python = sys.executable if " " not in sys.executable else "python"
    python = os.path.relpath(python) if python.startswith(os.getcwd() + os.sep) else "python"
    return (
        f"{verb}: {state.iteration} iterations, {state.env_steps} environment steps "
        f"in {clock(state.wall_time)}{reached}.\n"
        f"Results are in {run_dir}; see them with: {python} -m iwes_mpi.evaluate {run_dir}"
    )


if __name__ == "__main__":
    run_program("iwes_mpi.train", build_parser, train)
