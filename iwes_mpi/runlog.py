"""The HDF5 log of a run: one writer (rank 0), and the reader that everyone else uses.

Each table is a group of one-dimensional columns. A row is written in two steps: every other column first, then
``iteration``, the one column whose values tell that the row is complete; so a reader of a file that is being
written, or whose writer was killed, sees whole rows only.
"""

import ctypes
import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import Config, load_toml
from iwes_mpi.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from iwes_mpi.checkpoint import Checkpoint

T = TypeVar("T")

FORMAT = "iwes-mpi/1"
LOG = "log.h5"
CONFIG = "config.toml"


class LogError(ValueError):
    """A file that is not a readable log of this program."""


class Column(NamedTuple):
    """What a column holds."""

    dtype: str
    units: str
    long_name: str

    @property
    def blank(self) -> float:
        """What stands where nothing was written."""
        return {"f8": math.nan, "i8": -1}.get(self.dtype, 0)


_SECONDS = "in the iteration, mean over ranks"
ITERATIONS = {
    "iteration": Column("i8", "1", "iteration, from 0"),
    "env_steps": Column("i8", "steps", "environment steps of population episodes, cumulative"),
    "episodes": Column("i8", "episodes", "population episodes, cumulative"),
    "wall_time": Column("f8", "s", "wall-clock time, cumulative over restarts"),
    "return_mean": Column("f8", "return", "mean return of the population's valid episodes"),
    "return_std": Column("f8", "return", "standard deviation of the population's returns"),
    "return_median": Column("f8", "return", "median of the population's returns"),
    "return_min": Column("f8", "return", "smallest return of the population"),
    "return_max": Column("f8", "return", "largest return of the population"),
    "episode_length_mean": Column("f8", "steps", "mean length of the population's episodes"),
    "eval_return_median": Column("f8", "return", "median return of theta at the start of the iteration"),
    "eval_return_mean": Column("f8", "return", "mean return of theta at the start of the iteration"),
    "eval_return_std": Column("f8", "return", "standard deviation of the evaluation returns"),
    "eval_episodes": Column("i8", "episodes", "valid evaluation episodes"),
    "grad_norm": Column("f8", "1", "norm of the gradient estimate (sigma times eq. 3) at k = 0"),
    "update_norm": Column("f8", "1", "distance theta moved in the iteration"),
    "theta_norm": Column("f8", "1", "norm of theta after the iteration"),
    "sigma": Column("f8", "1", "standard deviation of the perturbations"),
    "updates": Column("i8", "updates", "optimiser updates made from this population"),
    "theta_digest": Column("u8", "1", "first 8 bytes of BLAKE2b over theta after the iteration"),
    "time_rollouts": Column("f8", "s", f"running episodes, {_SECONDS}"),
    "time_idle": Column("f8", "s", f"waiting for other ranks, {_SECONDS}"),
    "time_weights": Column("f8", "s", f"importance weights and gradient sums, {_SECONDS}"),
    "time_comm": Column("f8", "s", f"exchanging returns and gradients, {_SECONDS}"),
    "time_update": Column("f8", "s", f"optimiser steps, {_SECONDS}"),
    "time_io": Column("f8", "s", "log and checkpoint writing since the previous row, mean over ranks"),
    "invalid_episodes": Column("i8", "episodes", "episodes whose return or observations were not finite"),
    "ranks": Column("i8", "ranks", "MPI ranks that ran the iteration"),
}
UPDATES = {
    "iteration": Column("i8", "1", "iteration the update belongs to"),
    "k": Column("i8", "1", "0 for the plain ES update, then 1, 2 … for importance-weighted ones"),
    "ess": Column("f8", "1", "effective sample size as a share of the population, (Σc)²/(2n Σc²)"),
    "kl": Column("f8", "nats", "KL divergence of theta's search distribution from the population's, r²/2"),
    "mean_weight": Column("f8", "1", "mean importance weight, Σc/2n"),
    "max_weight": Column("f8", "1", "largest importance weight after clipping"),
    "clipped_share": Column("f8", "1", "share of the samples with weights at the clip or above"),
    "grad_norm": Column("f8", "1", "norm of the gradient estimate"),
    "update_norm": Column("f8", "1", "length of the optimiser's step"),
    "accepted": Column("u1", "1", "1 if the update was made, 0 if a stop rule or lost overlap prevented it"),
}
TABLES = {"iterations": ITERATIONS, "updates": UPDATES}
POPULATION = {
    "returns": Column("f8", "return", "return of each episode; NaN where there was none"),
    "lengths": Column("i8", "steps", "length of each episode; -1 where there was none"),
}
Tables = dict[str, dict[str, NDArray[Any]]]  # by table and column, arrays (rows,)
_ROWS_PER_CHUNK = 512


def versions(mpi_library: str) -> dict[str, str]:
    """Versions of all that a result depends on."""
    packages = ("numpy", "numba", "gymnasium", "mujoco", "mpi4py", "h5py")
    return {
        "python": platform.python_version(),
        "iwes_mpi": __version__,
        **{name: metadata.version(name) for name in packages},
        "mpi": mpi_library,
    }


def _git_commit() -> str:
    """The commit of the program's own checkout, marked if it has changes; empty if it is not a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = git("rev-parse", "HEAD")
    return commit + ("-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else "")


def provenance(config: Config, mpi_library: str, ranks: int, nodes: int) -> dict[str, Any]:
    """The root attributes of a new log: what the run is, and what made it."""
    return {
        "format": FORMAT,
        "config": config.to_json(),
        "seed": np.uint64(config.seed),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "iwes_mpi.train", *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "versions": json.dumps(versions(mpi_library)),
        "host": platform.node(),
        "ranks": ranks,
        "nodes": nodes,
    }


class LogWriter:
    """Appends rows to a log. Only rank 0 has one.

    Parameters
    ----------
    path : Path
        The log. An existing one is replaced.
    attrs : dict
        Root attributes.
    tables : dict
        Rows to begin with: arrays (rows,) by table and column.
    population : dict or None
        Arrays to begin ``/population`` with, by column; None to leave the group out.

    Notes
    -----
    The new file is built beside the old one and renamed over it, then opened for single-writer-multiple-reader
    access, so that at every instant there is a log that reads.

    After a write that failed, on a full disk say, the file stays as it is then: as if the process had been killed.
    Only `close` may be called then, to no effect.
    """

    def __init__(
        self,
        path: Path,
        attrs: dict[str, Any],
        tables: Tables | None = None,
        population: dict[str, NDArray[Any]] | None = None,
    ):
        draft = path.with_name(path.name + ".new")
        file = h5py.File(draft, "w", libver="latest", locking=False)
        created: list[h5py.Dataset] = []
        with _abandoned_on_error(file, created):
            file.attrs.update(attrs)
            for table, columns in TABLES.items():
                for name, column in columns.items():
                    start = np.zeros(0) if tables is None else tables[table][name]
                    created.append(_create(file, f"{table}/{name}", column, start.shape))
                    if start.size:
                        created[-1][...] = start.astype(column.dtype)
            if population is not None:
                for name, column in POPULATION.items():
                    start = population[name]
                    created.append(_create(file, f"population/{name}", column, start.shape))
                    if start.size:
                        created[-1][...] = start.astype(column.dtype)
            file.flush()
            file.close()
        self._file = h5py.File(draft, "r+", libver="latest", locking=False)
        self._columns = {t: {n: self._file[t][n] for n in columns} for t, columns in TABLES.items()}
        self._population = [self._file["population"][n] for n in POPULATION] if population is not None else []
        self._failed = False
        with self._writing():
            self._file.swmr_mode = True  # before the file is seen under its name: it can be read from then on
            sync(draft)
            os.replace(draft, path)
            sync(path.parent)
        self._path = path

    def append(
        self,
        iteration: dict[str, float],
        updates: list[dict[str, float]],
        population: tuple[NDArray[Any], ...],
    ) -> None:
        """Write one iteration: its updates and population first, so that they are there when its row is."""
        with self._writing():
            for dataset, values in zip(self._population, population, strict=False):
                row = int(iteration["iteration"])
                dataset.resize((row + 1, max(dataset.shape[1], values.shape[0]), 2))
                dataset[row, : values.shape[0]] = values
            if updates:
                self._extend("updates", updates)
            self._extend("iterations", [iteration])

    def _extend(self, table: str, rows: list[dict[str, float]]) -> None:
        columns = self._columns[table]
        for name, dataset in columns.items():
            size = dataset.shape[0]
            dataset.resize((size + len(rows),))
            if name != "iteration":
                dataset[size:] = np.array([row[name] for row in rows], dtype=dataset.dtype)
        self._file.flush()
        columns["iteration"][-len(rows) :] = [row["iteration"] for row in rows]
        self._file.flush()

    def sync(self) -> None:
        """Return only when all rows are on disk."""
        with self._writing():
            self._file.flush()
            sync(self._path)

    def tables(self) -> Tables:
        """All rows, by table and column."""
        return {
            table: {name: column[:] for name, column in columns.items()} for table, columns in self._columns.items()
        }

    def close(self) -> None:
        """Close the file."""
        if not self._failed:
            with self._writing():
                self._file.flush()
                self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """In the block the file is written; an error is its last."""
        columns = [dataset for table in self._columns.values() for dataset in table.values()]
        try:
            with _abandoned_on_error(self._file, columns + self._population):
                yield
        except BaseException:
            self._failed = True
            raise


@contextmanager
def _abandoned_on_error(file: h5py.File, datasets: Iterable[h5py.Dataset]) -> Iterator[None]:
    """Should the block raise, HDF5 never touches the file again; `datasets` are those that are open then.

    Whenever HDF5 closes a file or dataset, and when it is unloaded, it tries again to write what it could not write,
    and crashes if it cannot. So these objects live to the end of the process, and that comes before HDF5's own end.
    """
    try:
        yield
    except BaseException:
        for thing in (file, *datasets):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing.id))
        libc = ctypes.CDLL(None)
        with suppress(AttributeError):  # another library than GNU's
            libc.on_exit(libc._exit, None)  # with the exit code; after Python's end, and MPI's
        raise


def sync(path: Path) -> None:
    """fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(file: h5py.File, name: str, column: Column, shape: tuple[int, ...]) -> h5py.Dataset:
    """A column that can grow, of blanks so far."""
    if name.startswith("population/"):
        options: dict[str, Any] = {"maxshape": (None, None, 2), "chunks": (1, 1024, 2)}
    else:
        options = {"maxshape": (None,), "chunks": (_ROWS_PER_CHUNK,)}
    dataset = file.create_dataset(name, shape, column.dtype, fillvalue=column.blank, **options)
    dataset.attrs["units"] = column.units
    dataset.attrs["long_name"] = column.long_name
    return dataset


# A reader that meets a checksum that does not match tries again, since the writer may be at it; HDF5's default of 100
# ever longer pauses makes it hang for minutes on a damaged file.
_READ_ATTEMPTS = 12
_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # how an HDF5 file begins; its version is the next byte


def _open_for_reading(path: Path) -> h5py.File:
    """The file in single-writer-multiple-reader mode, whether or not there is a writer."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_file_locking(False, True)
    # h5py does not wrap this function of the library it is linked with.
    set_attempts = getattr(ctypes.CDLL(h5py.h5p.__file__), "H5Pset_metadata_read_attempts", None)
    if set_attempts is not None:
        set_attempts.argtypes = (ctypes.c_int64, ctypes.c_uint)
        set_attempts(access.id, _READ_ATTEMPTS)
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


def _read(path: Path, content: Callable[[h5py.File], T]) -> T:
    """What `content` takes from a log, whether it is being written, was closed, or its writer was killed.

    Raises
    ------
    LogError
        If it cannot be read or is not a log of this format.
    """
    if not path.exists():
        raise LogError(f"{path} does not exist")
    try:
        with _open_for_reading(path) as file:
            found = None
            if "format" in file.attrs:  # to get() one that is damaged would be one that is not there
                found = file.attrs["format"]
            if not isinstance(found, str) or not found.startswith("iwes-mpi/"):
                size, whole = path.stat().st_size, file.id.get_filesize()
                if size < whole:  # what is missing might say that it is one
                    raise LogError(f"{path} cannot be read: it is cut short, {size} of {whole} bytes are there")
                raise LogError(f"{path} is not a log of iwes_mpi")
            if found != FORMAT:
                raise LogError(f"{path} has format {found}; this version of iwes_mpi reads {FORMAT}")
            return content(file)
    except LogError:
        raise
    except Exception as error:  # HDF5 and h5py raise many kinds on damaged files
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # without quotes
        text, damage = " ".join(text.split()), _suspected_damage(path, error)
        raise LogError(f"{path} cannot be read: {f'it is {damage} ({text})' if damage else text}") from None


def _suspected_damage(path: Path, error: Exception) -> str:
    """What an HDF5 file is if reading it gave `error`; empty if that does not tell."""
    if not isinstance(error, (KeyError, OSError, RuntimeError)) or getattr(error, "errno", None) is not None:
        return ""  # the file system's fault, say
    try:
        with path.open("rb") as file:
            head = file.read(9).ljust(9, b"\0")
        if not head.startswith(_SIGNATURE) or head[8] > 3:  # later versions are for a later HDF5
            return ""
        return "damaged, cut short or just being written" if is_being_written(path) else "damaged or cut short"
    except OSError:
        return ""


def is_being_written(log: Path) -> bool:
    """Whether a writer has a log open, or was killed while it had: HDF5 marks the file, byte 11 of its superblock.

    It does so in superblocks of version 3 only, those of files that can be read while they are written.
    """
    with open(log, "rb") as file:
        start = file.read(12)
    return len(start) == 12 and start.startswith(_SIGNATURE + b"\x03") and bool(start[11] & 1)


def _complete_rows(group: h5py.Group) -> int:
    iteration = group["iteration"][:]
    incomplete = np.flatnonzero(iteration < 0)
    return int(incomplete[0]) if incomplete.size else iteration.size


def read_table(path: Path, table: str) -> "pd.DataFrame":
    """The complete rows of a table of a log.

    Raises
    ------
    LogError
        If the log cannot be read.
    """

    def content(file: h5py.File) -> dict[str, NDArray[Any]]:
        rows = _complete_rows(file[table])
        return {name: file[table][name][:rows].astype(column.dtype) for name, column in TABLES[table].items()}

    import pandas as pd

    return pd.DataFrame(_read(path, content))


def read_attrs(path: Path) -> dict[str, Any]:
    """The root attributes of a log. Raises LogError if it cannot be read."""
    return _read(path, lambda file: dict(file.attrs))


def read_population(path: Path, rows: int) -> dict[str, NDArray[Any]] | None:
    """The first `rows` rows of the population columns, shape (rows, pairs, 2); None if it was not logged.

    Raises
    ------
    LogError
        If the log cannot be read.
    """

    def content(file: h5py.File) -> dict[str, NDArray[Any]] | None:
        if "population" not in file:
            return None
        found = {name: file["population"][name][:rows] for name in POPULATION}
        blank = empty_population(rows)
        for name, values in found.items():  # iterations after the last one that was logged are left out
            missing = np.full((rows - len(values), *values.shape[1:]), POPULATION[name].blank)
            blank[name] = np.concatenate([values, missing])
        return blank

    return _read(path, content)


class Run:
    """What a run directory tells: settings, tables and policy, of a finished, running or killed run.

    Everything is read when it is first asked for, and kept; open the run again for news.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Root attributes of the log: provenance of the run."""
        return read_attrs(self.path / LOG)

    @cached_property
    def config(self) -> Config:
        """The run's settings."""
        try:
            return Config.from_json(self.attrs["config"])
        except (KeyError, ValueError, TypeError) as error:
            raise LogError(f"{self.path / LOG} has no valid configuration: {error}") from None

    @cached_property
    def iterations(self) -> "pd.DataFrame":
        """One row per iteration (`ITERATIONS`)."""
        return read_table(self.path / LOG, "iterations")

    @cached_property
    def updates(self) -> "pd.DataFrame":
        """One row per optimiser update (`UPDATES`), of the iterations in `iterations`."""
        complete = len(self.iterations)
        updates = read_table(self.path / LOG, "updates")
        return updates[updates["iteration"] < complete]

    @cached_property
    def population(self) -> dict[str, NDArray[Any]] | None:
        """Arrays ``returns`` and ``lengths`` (iterations, n_pairs, 2), or None if the run did not log them."""
        return read_population(self.path / LOG, len(self.iterations))

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The newest checkpoint that is intact. Raises CheckpointError if there is none."""
        from iwes_mpi.checkpoint import load_newest

        return load_newest(self.path)

    @property
    def theta(self) -> NDArray[np.float64]:
        """The policy's parameters (d,) in the newest checkpoint."""
        return self.checkpoint.state.theta

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the run in a directory for reading; the run may be going on.

    Raises
    ------
    LogError
        If there is no readable log in it.
    """
    run = Run(path)
    _ = run.attrs
    return run


def empty_population(rows: int) -> dict[str, NDArray[Any]]:
    """Population columns of `rows` iterations that were not logged."""
    return {name: np.full((rows, 0, 2), column.blank) for name, column in POPULATION.items()}


def write_config(run_dir: Path, config: Config) -> None:
    """Write a run's config.toml, all at once."""
    draft = run_dir / (CONFIG + ".new")
    draft.write_text("# Every setting of this run, defaults included.\n\n" + config.to_toml(), "utf-8")
    sync(draft)
    os.replace(draft, run_dir / CONFIG)
    sync(run_dir)


def recorded_config(run_dir: Path) -> Config:
    """The settings in a run directory's config.toml.

    Raises
    ------
    ConfigError
        If it cannot be read or is not valid.
    """
    return Config.from_dict(load_toml(run_dir / CONFIG), str(run_dir / CONFIG))
