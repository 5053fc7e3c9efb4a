"""HDF5 files as anybody may have made them: nothing outside a file is read, and nothing larger than it can hold.

A link may lead to another file, a dataset may keep its data elsewhere, and a file of a kilobyte may declare terabytes.
`Contents` opens only what lies in the file itself and gives out arrays only as long as they fit.
"""

import contextlib
import os
import resource
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

# Bytes that the arrays read from a file may take beyond the file's size: of compressed columns, and of rows that were
# declared but never written.
ROOM = 24 << 20
_LONGEST_ATTRIBUTE = 1 << 20  # bytes
_LAYOUTS = (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED)  # all but virtual ones
_DEFLATE = h5py.h5z.FILTER_DEFLATE
_FILTERS = (_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


class Untrusted(ValueError):
    """What a file holds is not what such a file may hold."""


def require_file(path: Path) -> int:
    """The size of a regular file, in bytes: to open a pipe or a device might take for ever.

    Raises
    ------
    OSError
        If it cannot be looked at.
    Untrusted
        If it is something else.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise Untrusted("a directory is not a file" if stat.S_ISDIR(info.st_mode) else "a pipe or device is not a file")
    return info.st_size


def read_bytes(path: Path, at_most: int) -> bytes:
    """All of a regular file. Raises as `require_file`, and Untrusted if it is larger than `at_most` bytes."""
    require_file(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise Untrusted(f"it is larger than {at_most} bytes")
    return content


class Contents:
    """What an open file holds, within limits.

    Parameters
    ----------
    file : h5py.File
    size : int
        Of the file, in bytes: together, arrays may take `ROOM` more.

    Raises
    ------
    Untrusted
        Its methods do, naming what is wrong.
    """

    def __init__(self, file: h5py.File, size: int):
        self.root = file["/"]
        self._size, self._left = size, size + ROOM

    def names(self, group: h5py.Group) -> list[str]:
        """The names of what lies in a group."""
        return list(group)

    def attributes(self, group: h5py.Group) -> dict[str, Any]:
        """The attributes that are single numbers or texts; others are left out."""
        found = {}
        for index in range(h5py.h5a.get_num_attrs(group.id)):
            attribute = h5py.h5a.open(group.id, index=index)
            kind, space = attribute.get_type(), attribute.get_space()
            single = space.get_simple_extent_type() == h5py.h5s.SCALAR
            plain = kind.get_class() in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT)
            if single and plain and kind.get_size() <= min(_LONGEST_ATTRIBUTE, self._size):
                name = attribute.name.decode("utf-8", "replace")
                with _little_memory(64 << 20):
                    value = group.attrs[name]
                found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return found

    def group(self, parent: h5py.Group, name: str) -> h5py.Group | None:
        """A group in another one; None if there is none of this name."""
        if not parent.id.links.exists(name.encode()):
            return None
        member = self._member(parent, name)
        if not isinstance(member, h5py.h5g.GroupID):
            raise Untrusted(f"{name} is not a group")
        return h5py.Group(member)

    def array(
        self, parent: h5py.Group, name: str, n_dims: int, dtype: DTypeLike | None = None, rows: int | None = None
    ) -> NDArray[Any]:
        """The numbers of a dataset.

        Parameters
        ----------
        parent : h5py.Group
        name : str
        n_dims : int
            How many dimensions it must have.
        dtype : dtype or None
            What it is given out as; it must be of this kind. None: as it is.
        rows : int or None
            How many rows to read, if it has as many. None: all.
        """
        member = self._member(parent, name)
        if not isinstance(member, h5py.h5d.DatasetID):
            raise Untrusted(f"{name} is not an array")
        made = member.get_create_plist()
        if made.get_layout() not in _LAYOUTS or made.get_external_count():
            raise Untrusted(f"{name} keeps its data in another file")
        if member.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            raise Untrusted(f"{name} is empty")
        shape, kind = member.shape, _number(member, name)
        wanted = kind if dtype is None else np.dtype(dtype)
        if len(shape) != n_dims:
            raise Untrusted(f"{name} has {len(shape)} dimensions instead of {n_dims}")
        if not np.can_cast(kind, wanted, "same_kind"):
            raise Untrusted(f"{name} is of type {kind} instead of {wanted}")
        chunk = made.get_chunk() if made.get_layout() == h5py.h5d.CHUNKED else ()
        part = shape if rows is None or not shape else (min(rows, shape[0]), *shape[1:])
        item = max(kind.itemsize, wanted.itemsize)
        self.reserve(name, max(0, _product(chunk) - _product(part)) * item)
        self.reserve(name, _product(part) * item)
        _check_filters(member, made, name, _product(chunk) * kind.itemsize, self._size)
        values = np.empty(part, wanted)
        if values.size:
            start = (0,) * n_dims
            stored = member.get_space()
            if n_dims:
                stored.select_hyperslab(start, part)
            member.read(h5py.h5s.create_simple(part) if n_dims else h5py.h5s.create(h5py.h5s.SCALAR), stored, values)
        return values

    def reserve(self, name: str, n_bytes: int) -> None:
        """Take so many bytes out of what arrays may take."""
        if n_bytes > self._left:
            raise Untrusted(f"{name} declares {n_bytes} bytes, more than the file can hold")
        self._left -= n_bytes

    def _member(self, parent: h5py.Group, name: str) -> Any:
        """What has a name in a group of this very file. Raises KeyError if nothing has."""
        spelled = name.encode("utf-8", "surrogateescape")
        if not parent.id.links.exists(spelled):  # h5py's `in` would follow a link
            raise KeyError(f"{name} is not there")
        if parent.id.links.get_info(spelled).type != h5py.h5l.TYPE_HARD:
            raise Untrusted(f"{name} is a link to elsewhere")
        return h5py.h5o.open(parent.id, spelled)


_LIMITING = threading.RLock()


@contextlib.contextmanager
def _little_memory(n_bytes: int) -> Iterator[None]:
    """Let this process have so much more memory and no more, for a moment.

    A text of any length says how long it is, and HDF5 takes that much memory before it finds that it is shorter.
    """
    with _LIMITING:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        except OSError:  # not Linux
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = [limit for limit in (soft, hard, used + n_bytes) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(ceiling), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _number(member: h5py.h5d.DatasetID, name: str) -> "np.dtype[Any]":
    """The type of a dataset of numbers."""
    try:
        kind: np.dtype[Any] = member.dtype
    except (TypeError, ValueError):
        kind = np.dtype("V")
    if kind.kind not in "iufb":
        raise Untrusted(f"{name} does not hold numbers")
    return kind


def _product(lengths: tuple[int, ...]) -> int:
    result = 1
    for length in lengths:
        result *= int(length)
    return result


def _check_filters(member: h5py.h5d.DatasetID, made: h5py.h5p.PropDCID, name: str, chunk_bytes: int, size: int) -> None:
    """Refuse compressed chunks that become larger than they say: HDF5 inflates whatever there is."""
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if not filters:
        return
    if len(set(filters)) < len(filters) or not set(filters) <= set(_FILTERS):
        raise Untrusted(f"{name} is compressed in a way that is not used for such files")
    if _DEFLATE not in filters:
        return
    for index in range(member.get_num_chunks()):
        info = member.get_chunk_info(index)
        if info.size > size:
            raise Untrusted(f"{name} declares a chunk that is larger than the file")
        if info.filter_mask >> filters.index(_DEFLATE) & 1:
            continue  # stored as it is
        _, stored = member.read_direct_chunk(info.chunk_offset)
        inflate = zlib.decompressobj()
        if len(inflate.decompress(stored, chunk_bytes + 1)) > chunk_bytes:
            raise Untrusted(f"{name} is larger than it declares")
