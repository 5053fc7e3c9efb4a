"""The run directory on rank 0: what it holds, who may use it, and keeping in it what must survive."""

import dataclasses
import datetime
import errno
import fcntl
import math
import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iwes_mpi import checkpoint, runlog
from iwes_mpi.checkpoint import Checkpoint, CheckpointError
from iwes_mpi.config import Config, ConfigError, Request, flag
from iwes_mpi.console import Display, open_display
from iwes_mpi.launching import StorageError
from iwes_mpi.state import State

if TYPE_CHECKING:
    from iwes_mpi.es import Report

LOCK = "lock"
# Writing stops while there is still this much room, so that no file is left half-written by a full disk.
_SPARE_BYTES = 1 << 20
_USELESS_ESS, _UNUSED_IN_A_ROW = 0.1, 3  # when it is said that importance-weighted updates are of no use


class Plan(NamedTuple):
    """What rank 0 found out before any work: where the run lives, its settings, and where it goes on."""

    config: Config
    run_dir: Path
    resumed: bool
    checkpoint: Checkpoint | None  # of a run being resumed
    notices: list[str]
    seen: tuple[object, ...]  # what the directory held, to notice another job's work in the meantime


def _identity(run_dir: Path) -> tuple[object, ...]:
    """What tells whether the files that a plan rests on have changed."""
    found = []
    for name in (runlog.CONFIG, checkpoint.CURRENT, checkpoint.PREVIOUS):
        try:
            info = (run_dir / name).stat()
        except OSError:
            continue
        found.append((name, info.st_ino, info.st_mtime_ns, info.st_size))
    return tuple(found)


def make_plan(request: Request) -> Plan:
    """Settle the settings of a run with what its directory holds. Changes nothing.

    Raises
    ------
    ConfigError
        If a new run would overwrite another, a run to resume is not there or differs in a setting that changes
        results, or none of its checkpoints is intact.
    """
    config = request.config()
    run_dir = Path(config.run_dir or _default_run_dir(config))
    seen = _identity(run_dir)
    if not (run_dir / runlog.CONFIG).exists():
        if run_dir.exists() and not run_dir.is_dir():
            raise ConfigError("--run-dir", f"{run_dir} is not a directory")
        if request.resume == "always":
            raise ConfigError("--resume", f"there is no run in {run_dir} (no {runlog.CONFIG})")
        for name in (runlog.LOG, checkpoint.CURRENT, checkpoint.PREVIOUS):
            if (run_dir / name).exists():
                raise ConfigError("--run-dir", f"{run_dir} holds a {name} but no {runlog.CONFIG}: not a whole run")
        return Plan(dataclasses.replace(config, run_dir=str(run_dir)), run_dir, False, None, [], seen)
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
    try:
        found: Checkpoint | None = checkpoint.load_newest(run_dir, notices.append)
    except FileNotFoundError:
        found = None  # killed before its first checkpoint
    except CheckpointError as error:
        raise ConfigError("--resume", str(error)) from None
    if found is not None and (edited := found.config.differences(recorded)):
        raise ConfigError(
            f"{run_dir / runlog.CONFIG}",
            f"{edited[0]} is {getattr(recorded, edited[0])} there but {getattr(found.config, edited[0])} in the "
            "checkpoint: a setting that changes results cannot be edited into a run",
        )
    return Plan(config, run_dir, True, found, notices, seen)


def _default_run_dir(config: Config) -> str:
    name = config.env_id.replace(":", "-").replace("/", "-")
    return f"runs/{name}-seed{config.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


class DirectoryLock:
    """Keeps a second job out of a run directory.

    A POSIX record lock on the file ``lock``: the kernel, or the file server for the jobs of other hosts (NFS,
    Lustre and GPFS carry these locks), drops it when the process that holds it ends, however it ends.

    Raises
    ------
    ConfigError
        If another job holds it, naming that job.
    """

    def __init__(self, run_dir: Path):
        self._file = open(run_dir / LOCK, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - held open
        self.notice: str | None = None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                self.notice = f"{run_dir} cannot be locked ({error.strerror}): make sure that no other job uses it"
                return
            self._file.seek(0)
            holder = " ".join(self._file.read(200).split()) or "another job"
            self._file.close()
            raise ConfigError("--run-dir", f"{run_dir} is in use by {holder}") from None
        self._file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        self._file.write(f"process {os.getpid()} on {platform.node()}" + (f", Slurm job {job}" if job else "") + "\n")
        self._file.flush()

    def release(self) -> None:
        """Let others use the directory."""
        self._file.close()


class Keeper:
    """Keeps a run on rank 0: its log, its checkpoints, and the display of its progress.

    Parameters
    ----------
    plan : Plan
    config : Config
        Settled in full: what is recorded.
    state : State
        Where the run goes on; saved as it is at each checkpoint.
    provenance : dict
        Root attributes for the log of a new run.
    begin : float
        When this job began, by `time.monotonic`.

    Raises
    ------
    ConfigError
        If the directory is in use or cannot be written.
    """

    def __init__(self, plan: Plan, config: Config, state: State, provenance: dict[str, object], begin: float):
        self._config, self._state, self._run_dir, self._begin = config, state, plan.run_dir, begin
        self._wall_time_before = state.wall_time
        notices = list(plan.notices)
        try:
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(plan.run_dir)
            if _identity(plan.run_dir) != plan.seen:
                raise ConfigError("--run-dir", f"{plan.run_dir} was changed by another job just now; start again")
            self._require_room()
            runlog.write_config(plan.run_dir, config)  # first: what makes the directory a run that can be resumed
            if plan.checkpoint is not None:
                checkpoint.promote(plan.run_dir)
            self._attrs, self._log = self._open_log(plan, provenance, notices)
            if plan.checkpoint is None:
                checkpoint.save(plan.run_dir, self._checkpoint())
        except (OSError, RuntimeError) as error:
            raise ConfigError("--run-dir", self._describe(error, runlog.LOG)) from None
        self._saved_at = time.monotonic()
        self._saved_iteration = state.iteration
        self._display: Display = open_display(config, state)
        for notice in (*notices, self._lock.notice):
            if notice:
                self.note(f"warning: {notice}")
        self.last: Report | None = None
        self._unused, self._told = 0, False

    def _open_log(
        self, plan: Plan, provenance: dict[str, object], notices: list[str]
    ) -> tuple[dict[str, object], runlog.LogWriter]:
        """A log cut back to the checkpoint: its rows come from the checkpoint, the population from the old log."""
        path, rows = plan.run_dir / runlog.LOG, self._state.iteration
        population = None
        if plan.checkpoint is not None:
            try:
                population = runlog.read_population(path, rows)
            except runlog.LogError as error:
                notices.append(f"{error}; it is rebuilt from the checkpoint")
        if self._config.log_population and population is None:
            population = runlog.empty_population(rows)
        attrs = provenance | (plan.checkpoint.attrs if plan.checkpoint else {}) | {"config": self._config.to_json()}
        tables = plan.checkpoint.tables if plan.checkpoint else None
        return attrs, runlog.LogWriter(path, attrs, tables, population)

    def _describe(self, error: BaseException, writing: str) -> str:
        """An error of the file system as one clause that names the file: the one being written, if it does not."""
        name = getattr(error, "filename", None) or self._run_dir / writing
        said = (getattr(error, "strerror", None) or str(error)).split()
        # HDF5 tells of its own functions, addresses and buffers, and somewhere among them what the system said.
        system = re.search(r"error message = '([^']*)'", " ".join(said))
        return f"{name}: {system[1] if system else ' '.join(said)}"

    def _require_room(self) -> None:
        """Refuse to write into a nearly full file system: HDF5 would leave a damaged file. Raises OSError."""
        needed = _SPARE_BYTES + 6 * self._state.theta.nbytes
        if shutil.disk_usage(self._run_dir).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run_dir))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self._state, self._config, self._attrs, self._log.tables())

    @property
    def elapsed(self) -> float:
        """Seconds since this job began."""
        return time.monotonic() - self._begin

    def note(self, text: str) -> None:
        """Show a line."""
        self._display.note(text)

    def keep(self, report: "Report") -> None:
        """Log an iteration, show it, and write a checkpoint if one is due.

        Raises
        ------
        StorageError
            If the run directory cannot be written. What it holds stays intact.
        """
        self._state.wall_time = report.iteration["wall_time"] = self._wall_time_before + self.elapsed
        self.last = report
        try:
            self._require_room()
            population = (report.population.returns, report.population.lengths) if self._config.log_population else ()
            self._log.append(report.iteration, report.updates, population)
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, runlog.LOG)) from error
        every = self._config.checkpoint_every
        due = every and self._state.iteration % every == 0
        if due or time.monotonic() - self._saved_at >= 60 * self._config.checkpoint_minutes:
            self.save()
        self._display.update(report)
        self._notice_unused(report)

    def _notice_unused(self, report: "Report") -> None:
        """Say once if populations are of no use for the importance-weighted updates made from them."""
        config = self._config
        smallest = min((row["ess"] for row in report.updates), default=1.0)
        self._unused = self._unused + 1 if config.iw_updates > 0 and smallest < _USELESS_ESS else 0
        if self._unused == _UNUSED_IN_A_ROW and not self._told:
            self._told = True
            ratio = config.learning_rate * math.sqrt(self._state.theta.size) / config.sigma
            self.note(
                f"warning: theta moves so far from its population that less than a tenth of it still counts (ESS), for "
                f"{self._unused} iterations now. learning_rate·√d/sigma is {ratio:.2g}, the paper's 0.5: lower "
                f"--learning-rate or --iw-updates, or set --min-ess"
            )

    def save(self) -> None:
        """Write a checkpoint, after the log rows that lead up to it are on disk; nothing if it is there already.

        Raises
        ------
        StorageError
            As `keep`.
        """
        if self._saved_iteration == self._state.iteration:
            return
        writing = runlog.LOG
        try:
            self._require_room()
            self._log.sync()
            current = self._checkpoint()
            writing = checkpoint.CURRENT
            checkpoint.save(self._run_dir, current)
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, writing)) from error
        self._saved_at, self._saved_iteration = time.monotonic(), self._state.iteration

    def close(self) -> None:
        """Close log and display, and let others use the directory.

        Raises
        ------
        StorageError
            As `keep`.
        """
        self._display.close()
        try:
            self._log.close()
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, runlog.LOG)) from error
        self._lock.release()
