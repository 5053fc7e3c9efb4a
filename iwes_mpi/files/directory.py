"""The run directory before a job begins: what it holds, whether a run may start or go on there, and who uses it."""

import dataclasses
import datetime
import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import NamedTuple

from iwes_mpi.files import checkpoint, log, record
from iwes_mpi.files.checkpoint import Checkpoint, CheckpointError
from iwes_mpi.settings.command_line import Request
from iwes_mpi.settings.config import Config, check_together
from iwes_mpi.settings.wrong_input import WrongInput

LOCK = "lock"


class Plan(NamedTuple):
    """What rank 0 found out before any work: where the run lives, its settings, and where it goes on."""

    config: Config
    run_dir: Path  # as it was named
    place: Path  # where it is, also once an environment has gone to another directory
    resumed: bool
    checkpoint: Checkpoint | None  # of a run being resumed
    notices: list[str]
    seen: tuple[object, ...]  # what the directory held, to notice another job's work in the meantime
    kept: bool = True  # False: the run leaves no files, and has no directory


def identity(run_dir: Path) -> tuple[object, ...]:
    """What tells whether the files that a plan rests on have changed."""
    found = []
    for name in (record.CONFIG, checkpoint.CURRENT, checkpoint.PREVIOUS):
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
    WrongInput
        If settings cannot be combined, a new run would overwrite another, a run to resume is not there or differs in a
        setting that changes results, or none of its checkpoints is intact.
    """
    config = request.config()
    run_dir = Path(config.run_dir or _default_run_dir(config))
    try:
        return _plan(request, config, run_dir)
    except OSError as error:  # a name that is too long, say
        raise WrongInput("run_dir", f"{run_dir}: {error.strerror}") from None


def _plan(request: Request, config: Config, run_dir: Path) -> Plan:
    """See `make_plan`."""
    seen, place = identity(run_dir), Path(os.path.abspath(run_dir))
    if not (run_dir / record.CONFIG).exists():
        if run_dir.exists() and not run_dir.is_dir():
            raise WrongInput("run_dir", f"{run_dir} is not a directory")
        if request.resume == "always":
            raise WrongInput("resume", f"there is no run in {run_dir} (no {record.CONFIG})")
        for name in (log.LOG, checkpoint.CURRENT, checkpoint.PREVIOUS):
            if (run_dir / name).exists():
                raise WrongInput("run_dir", f"{run_dir} holds a {name} but no {record.CONFIG}: not a whole run")
        check_together(config)
        return Plan(dataclasses.replace(config, run_dir=str(run_dir)), run_dir, place, False, None, [], seen)
    if request.resume == "never":
        raise WrongInput("run_dir", f"{run_dir} already holds a run; add `resume` to continue it")
    recorded = record.recorded_config(run_dir)
    config = dataclasses.replace(request.config(recorded), run_dir=str(run_dir))
    if changed := recorded.differences(config):
        name = changed[0]
        raise WrongInput(
            name,
            f"is {getattr(config, name)} but the run in {run_dir} was started with {getattr(recorded, name)}; "
            "a setting that changes results cannot change on `resume`",
        )
    check_together(config)
    notices: list[str] = []
    try:
        found: Checkpoint | None = checkpoint.load_newest(run_dir, notices.append)
    except FileNotFoundError:
        found = None  # killed before its first checkpoint
    except CheckpointError as error:
        raise WrongInput("resume", str(error)) from None
    if found is not None and (edited := found.config.differences(recorded)):
        raise WrongInput(
            f"{run_dir / record.CONFIG}",
            f"{edited[0]} is {getattr(recorded, edited[0])} there but {getattr(found.config, edited[0])} in the "
            "checkpoint: a setting that changes results cannot be edited into a run",
        )
    return Plan(config, run_dir, place, True, found, notices, seen)


def _default_run_dir(config: Config) -> str:
    name = config.env_id.replace(":", "-").replace("/", "-")
    return f"runs/{name}-seed{config.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


class DirectoryLock:
    """Keeps a second job out of a run directory.

    A POSIX record lock on the file ``lock``: the kernel, or the file server for the jobs of other hosts (NFS,
    Lustre and GPFS carry these locks), drops it when the process that holds it ends, however it ends.

    Raises
    ------
    WrongInput
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
            raise WrongInput("run_dir", f"{run_dir} is in use by {holder}") from None
        self._file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        self._file.write(f"process {os.getpid()} on {platform.node()}" + (f", Slurm job {job}" if job else "") + "\n")
        self._file.flush()

    def release(self) -> None:
        """Let others use the directory."""
        self._file.close()
