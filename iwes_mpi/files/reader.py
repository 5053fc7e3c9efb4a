"""Reading a log: being written, closed, or left by a writer that was killed."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.columns import POPULATION, TABLES, Column
from iwes_mpi.files.log import FORMAT
from iwes_mpi.files.untrusted import Contents, Untrusted, require_file
from iwes_mpi.settings.printable import one_line

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class LogError(ValueError):
    """A file that is not a readable log of this program; the message is one line, fit for a terminal."""

    def __init__(self, text: str):
        super().__init__(one_line(text))


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


def _read(path: Path, content: Callable[[Contents], T]) -> T:
    """What `content` takes from a log, whether it is being written, was closed, or its writer was killed.

    Nothing outside the file is read, whatever it holds (`untrusted`).

    Raises
    ------
    LogError
        If it cannot be read or is not a log of this format.
    """
    try:
        size = require_file(path)
        with _open_for_reading(path) as file:
            contents = Contents(file, size)
            found = contents.attributes(contents.root).get("format")
            if not isinstance(found, str) or not found.startswith("iwes-mpi/"):
                _ = h5py.h5a.exists(file.id, b"format") and file.attrs["format"]  # one that is damaged is not none
                size, whole = path.stat().st_size, file.id.get_filesize()
                if size < whole:  # what is missing might say that it is one
                    raise LogError(f"{path} cannot be read: it is cut short, {size} of {whole} bytes are there")
                raise LogError(f"{path} is not a log of iwes_mpi")
            if found != FORMAT:
                raise LogError(f"{path} has format {found}; this version of iwes_mpi reads {FORMAT}")
            return content(contents)
    except LogError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise LogError(f"{path} does not exist") from None
    except Untrusted as error:
        raise LogError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # HDF5 and h5py raise many kinds on damaged files
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # without quotes
        if isinstance(error, OSError) and error.strerror and error.filename:  # the file system's words
            text = error.strerror
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


def _columns(contents: Contents, table: str) -> dict[str, NDArray[Any]]:
    """The complete rows of a table, by column."""
    group = contents.group(contents.root, table)
    if group is None:
        raise Untrusted(f"it has no table {table}")
    there = set(contents.names(group))
    columns = TABLES[table]
    iteration = contents.array(group, "iteration", 1, columns["iteration"].dtype)
    incomplete = np.flatnonzero(iteration < 0)
    rows = int(incomplete[0]) if incomplete.size else iteration.size
    if table == "iterations" and not np.array_equal(iteration[:rows], np.arange(rows)):
        raise Untrusted("its iterations are not counted from 0")

    def column(name: str, kind: Column) -> NDArray[Any]:
        if name == "iteration":
            return iteration[:rows]
        if name not in there:
            contents.reserve(name, 8 * rows)
            return kind.blanks(rows)
        values = contents.array(group, name, 1, kind.dtype, rows)
        if values.size < rows:
            raise Untrusted(f"column {name} of {table} has {values.size} rows instead of {rows}")
        return values

    return {name: column(name, kind) for name, kind in columns.items()}


def read_table(path: Path, table: str) -> "pd.DataFrame":
    """The complete rows of a table of a log. Columns that it was written without are blank.

    Raises
    ------
    LogError
        If the log cannot be read.
    """

    import pandas as pd

    return pd.DataFrame(_read(path, lambda contents: _columns(contents, table)), copy=False)


def completed_iterations(path: Path) -> int:
    """How many iterations a log has, found without pandas, which takes longest to load. Raises LogError."""
    return len(_read(path, lambda contents: _columns(contents, "iterations"))["iteration"])


def read_attrs(path: Path) -> dict[str, Any]:
    """The root attributes of a log. Raises LogError if it cannot be read."""
    return _read(path, lambda contents: contents.attributes(contents.root))


def read_population(path: Path, rows: int) -> dict[str, NDArray[Any]] | None:
    """The first `rows` rows of the population columns, shape (rows, pairs, 2); None if it was not logged.

    Raises
    ------
    LogError
        If the log cannot be read.
    """

    def content(contents: Contents) -> dict[str, NDArray[Any]] | None:
        group = contents.group(contents.root, "population")
        if group is None:
            return None
        blank = empty_population(rows)
        for name, column in POPULATION.items():
            values = contents.array(group, name, 3, column.dtype, rows)
            if values.shape[2] != 2:
                raise Untrusted(f"{name} of population has {values.shape[2]} episodes in a pair")
            if len(values) < rows:  # iterations after the last one that was logged are left out
                contents.reserve(name, 16 * rows * values.shape[1])
                missing = np.full((rows - len(values), *values.shape[1:]), column.blank, column.dtype)
                values = np.concatenate([values, missing])
            blank[name] = values
        if blank["returns"].shape != blank["lengths"].shape:
            raise Untrusted("the columns of population differ in shape")
        return blank

    return _read(path, content)


def empty_population(rows: int) -> dict[str, NDArray[Any]]:
    """Population columns of `rows` iterations that were not logged."""
    return {name: np.full((rows, 0, 2), column.blank) for name, column in POPULATION.items()}
