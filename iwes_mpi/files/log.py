"""The HDF5 log of a run: its one writer, on rank 0.

Each table is a group of one-dimensional columns. A row is written in two steps: every other column first, then
``iteration``, the one column whose values tell that the row is complete; so a reader of a file that is being
written, or whose writer was killed, sees whole rows only.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.columns import POPULATION, TABLES, Column, IterationRow, Rows, Tables, UpdateRow
from iwes_mpi.files.disk import sync

FORMAT = "iwes-mpi/1"
LOG = "log.h5"
_ROWS_PER_CHUNK = 512


class LogWriter:
    """Appends rows to a log. Only rank 0 has one.

    Parameters
    ----------
    path : Path
        The log. An existing one is replaced.
    attrs : dict
        Root attributes.
    tables : dict
        Rows to begin with: arrays (rows,) by table and column; columns that are missing are left blank.
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
                rows = 0 if tables is None else tables[table]["iteration"].size
                for name, column in columns.items():
                    start = column.blanks(rows) if tables is None else tables[table].get(name, column.blanks(rows))
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

    def append(self, rows: Rows, population: Sequence[NDArray[Any]] = ()) -> None:
        """Write one iteration; as `extend`."""
        self.extend([(rows, population)])

    def extend(self, iterations: Sequence[tuple[Rows, Sequence[NDArray[Any]]]]) -> None:
        """Write iterations, each its rows and the columns of its population.

        Updates and populations come first, so that they are there when the iterations' rows are.
        """
        with self._writing():
            for rows, population in iterations:
                for dataset, values in zip(self._population, population, strict=False):
                    row = rows.iteration.iteration
                    dataset.resize((row + 1, max(dataset.shape[1], values.shape[0]), 2))
                    dataset[row, : values.shape[0]] = values
            updates = [update for rows, _ in iterations for update in rows.updates]
            if updates:
                self._extend("updates", updates)
            self._extend("iterations", [rows.iteration for rows, _ in iterations])

    def _extend(self, table: str, rows: Sequence[IterationRow | UpdateRow]) -> None:
        columns = self._columns[table]
        for name, dataset in columns.items():
            size = dataset.shape[0]
            dataset.resize((size + len(rows),))
            if name != "iteration":
                dataset[size:] = np.array([getattr(row, name) for row in rows], dtype=dataset.dtype)
        self._file.flush()
        columns["iteration"][-len(rows) :] = [row.iteration for row in rows]
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
