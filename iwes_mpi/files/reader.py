"""Reading a log: being written, closed, or left by a writer that was killed."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.columns import POPULATION, TABLES
from iwes_mpi.files.log import FORMAT

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class LogError(ValueError):
    """A file that is not a readable log of this program."""


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
    """The complete rows of a table of a log. Columns that it was written without are blank.

    Raises
    ------
    LogError
        If the log cannot be read.
    """

    def content(file: h5py.File) -> dict[str, NDArray[Any]]:
        group = file[table]
        rows = _complete_rows(group)
        return {
            name: group[name][:rows].astype(column.dtype) if name in group else column.blanks(rows)
            for name, column in TABLES[table].items()
        }

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


def empty_population(rows: int) -> dict[str, NDArray[Any]]:
    """Population columns of `rows` iterations that were not logged."""
    return {name: np.full((rows, 0, 2), column.blank) for name, column in POPULATION.items()}
