"""Keeping a run while it goes on, on rank 0: its log and its checkpoints, so that nothing recorded is ever lost."""

import errno
import os
import re
import shutil
import time
from typing import Any

from iwes_mpi.files import checkpoint, log, reader, record
from iwes_mpi.files.behind import WriteBehind
from iwes_mpi.files.checkpoint import Checkpoint
from iwes_mpi.files.columns import Rows, population_of, rows_of
from iwes_mpi.files.directory import DirectoryLock, Plan, identity
from iwes_mpi.files.pace import Pace
from iwes_mpi.files.provenance import other_cpu, other_versions
from iwes_mpi.method.report import Report
from iwes_mpi.method.state import State
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

# Writing stops while there is still this much room, so that no file is left half-written by a full disk.
_SPARE_BYTES = 1 << 20


class StorageError(OSError):
    """The run directory cannot be written any more; the message names the file."""


class Keeper:
    """Keeps a run on rank 0: its log and its checkpoints.

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
    WrongInput
        If the directory is in use or cannot be written.
    """

    def __init__(self, plan: Plan, config: Config, state: State, provenance: dict[str, Any], begin: float):
        self._config, self._state, self._run_dir, self._begin = config, state, plan.place, begin
        self._wall_time_before = state.wall_time
        notices = list(plan.notices)
        try:
            plan.place.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(plan.place)
            if identity(plan.place) != plan.seen:
                raise WrongInput("run_dir", f"{plan.place} was changed by another job just now; start again")
            self._require_room()
            record.write_config(plan.place, config)  # first: what makes the directory a run that can be resumed
            if plan.checkpoint is not None:
                checkpoint.promote(plan.place)
            self._attrs, self._log = self._open_log(plan, provenance, notices)
            if plan.checkpoint is None:
                checkpoint.save(plan.place, self._checkpoint())
        except (OSError, RuntimeError) as error:
            raise WrongInput("run_dir", self._describe(error, log.LOG)) from None
        self._pace = Pace(config.checkpoint_every, 60 * config.checkpoint_minutes, time.monotonic())
        self._saved_iteration = state.iteration
        self.notices = [notice for notice in (*notices, self._lock.notice) if notice]  # of what was passed over

    def _open_log(
        self, plan: Plan, provenance: dict[str, Any], notices: list[str]
    ) -> tuple[dict[str, Any], WriteBehind]:
        """A log cut back to the checkpoint: its rows come from the checkpoint, the population from the old log."""
        path, rows = plan.place / log.LOG, self._state.iteration
        population = None
        if plan.checkpoint is not None:
            try:
                population = reader.read_population(path, rows)
            except reader.LogError as error:
                notices.append(f"{error}; it is rebuilt from the checkpoint")
        if self._config.log_population and population is None:
            population = reader.empty_population(rows)
        attrs = provenance | (plan.checkpoint.attrs if plan.checkpoint else {}) | {"config": self._config.to_json()}
        tables = plan.checkpoint.tables if plan.checkpoint else None
        if plan.checkpoint is not None:
            notices.extend(filter(None, (other_cpu(plan.checkpoint.attrs), other_versions(plan.checkpoint.attrs))))
        return attrs, WriteBehind(log.LogWriter(path, attrs, tables, population), self._require_room)

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

    def keep(self, report: Report) -> Rows:
        """Log an iteration, and write a checkpoint if one is due; returns the rows that are logged, within a second.

        Raises
        ------
        StorageError
            If the run directory cannot be written, or a second ago could not be. What it holds stays intact.
        """
        self._state.wall_time = report.wall_time = self._wall_time_before + self.elapsed
        rows = rows_of(report)
        try:
            self._log.append(rows, population_of(report) if self._config.log_population else ())
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, log.LOG)) from error
        if self._pace.due(self._state.iteration, time.monotonic()):
            self.save()
        return rows

    def save(self) -> None:
        """Write a checkpoint, after the log rows that lead up to it are on disk; nothing if it is there already.

        Raises
        ------
        StorageError
            As `keep`.
        """
        if self._saved_iteration == self._state.iteration:
            return
        writing, begin = log.LOG, time.monotonic()
        try:
            self._require_room()
            self._log.sync()
            current = self._checkpoint()
            writing = checkpoint.CURRENT
            checkpoint.save(self._run_dir, current)
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, writing)) from error
        self._pace.wrote(begin, time.monotonic())
        self._saved_iteration = self._state.iteration

    def close(self) -> None:
        """Close the log, and let others use the directory.

        Raises
        ------
        StorageError
            As `keep`.
        """
        try:
            self._log.close()
        except (OSError, RuntimeError) as error:
            raise StorageError(self._describe(error, log.LOG)) from error
        finally:
            self._lock.release()
