"""Where compiled functions are kept between runs, so that a node compiles each once.

Numba's own cache has three habits that hurt here. It treats a function's cached code as current as long as the file
that defines it is unchanged, although code from other files was compiled into it; two processes that save different
signatures of one function at the same time may leave an index that names the other's code; and a directory that
cannot be written, or fills up, is an error. So the directory's name holds a digest of everything that compiled code
is made from, saving is done by one process at a time, and whatever is wrong with the cache only costs the time to
compile again.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core.caching import FunctionCache

from iwes_mpi.version import __version__

_COMPILES = re.compile(rb"^(from|import) (numba|iwes_mpi\.compiled\.jit)\b", re.MULTILINE)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PATIENCE = 60.0  # s to wait for another process that compiles, or for a file system whose locks do not work


def key() -> str:
    """A digest of what compiled code is made from: our sources that compile, versions, and the kind of CPU."""
    digest = hashlib.blake2b(digest_size=8)
    facts = (__version__, sys.version, numba.__version__, np.__version__, llvmlite.binding.get_host_cpu_name())
    digest.update(repr(facts).encode())
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        if _COMPILES.search(source):
            digest.update(str(path.relative_to(package)).encode() + source)
    return digest.hexdigest()


def find_directory(chosen: str) -> Path | None:
    """The directory for this version of the program on this kind of CPU, made if need be.

    Cached code is executed. So a directory counts only if nobody else can write into it, or put another in its place.

    Parameters
    ----------
    chosen : str
        What the user set ``NUMBA_CACHE_DIR`` to. If that is empty, cannot be written or is open to others, the cache
        lies in the node's folder for temporary files (``TMPDIR``, else ``/tmp``), in a subfolder of our own.

    Returns
    -------
    Path or None
        None if there is none that counts: then every process compiles for itself.
    """
    private = Path(tempfile.gettempdir()) / f"iwes_mpi-{os.getuid()}"
    for base in ([Path(chosen)] if chosen else []) + [private]:
        try:
            for folder in (*reversed(base.parents), base):
                folder.mkdir(mode=0o700, exist_ok=True)
            directory = base.resolve() / f"iwes_mpi-{key()}"  # whoever owns a link on the way can change it later
            if not _stays(directory):
                continue
            directory.mkdir(mode=0o700, exist_ok=True)
            if not _is_mine_alone(directory):
                continue
            tempfile.TemporaryFile(dir=directory).close()
        except OSError:
            continue
        return directory
    return None


def _is_mine_alone(directory: Path) -> bool:
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & _OTHERS_WRITE


def _stays(directory: Path) -> bool:
    """Whether only root and we can rename what leads to `directory`, an absolute path without links.

    In a sticky folder, such as ``/tmp``, others can write but not rename what is ours.
    """
    folders = [folder.stat() for folder in directory.parents]
    open_to_others = (found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX for found in folders)
    return folders[0].st_uid in (0, os.getuid()) and not any(open_to_others)


@contextlib.contextmanager
def exclusive(directory: Path | None, name: str) -> Iterator[None]:
    """Hold the lock `name` of a cache directory: one process of this node, or of all that share its file locks.

    It ends with the process that holds it, however that ends. Where locks do not work it is as if there were none.
    """
    with contextlib.ExitStack() as stack:
        if directory is not None:
            with contextlib.suppress(OSError):
                file = stack.enter_context(open(directory / f".{name}.lock", "w"))
                deadline = time.monotonic() + _PATIENCE
                while time.monotonic() < deadline:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(0.01)
        yield


class Turn:
    """Compiling in turn with other processes: from the first function that is not in the cache on, one at a time.

    Who finds everything in the cache waits for nobody. Within ``with``, on the main thread.

    Parameters
    ----------
    directory : Path or None
        The cache directory; None if there is none, and then there are no turns.
    """

    _mine: "Turn | None" = None

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Turn":
        Turn._mine = self
        return self

    def __exit__(self, *_: object) -> None:
        Turn._mine = None
        self._held.close()

    @staticmethod
    def wait() -> bool:
        """Wait until it is this process's turn, if it takes turns and has not waited yet; returns whether it did."""
        mine = Turn._mine
        if mine is None:
            return False
        Turn._mine = None
        mine._held.enter_context(exclusive(mine._directory, "compile"))
        return True


class OnceOnly(FunctionCache):
    """Numba's cache of one function, in a directory of ours; each entry is written once, and no fault is an error.

    Parameters
    ----------
    function : callable
    directory : Path
    """

    def __init__(self, function: Callable[..., Any], directory: Path):
        self._directory = directory
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(directory)
        try:
            super().__init__(function)
        finally:
            numba.config.CACHE_DIR = before

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for a signature; None if it is not there or cannot be read, even once it is our turn."""
        found = self._load(sig, target_context)
        if found is None and Turn.wait():  # meanwhile somebody else may have left it
            found = self._load(sig, target_context)
        return found

    def _load(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file can raise anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, unless another process has done so since this one looked for it."""
        with contextlib.suppress(OSError), exclusive(self._directory, "save"):
            if not self._has(self._index_key(sig, data.codegen)):
                super().save_overload(sig, data)

    def _has(self, entry: Any) -> bool:
        try:
            return self._cache_file.load(entry) is not None
        except Exception:  # as above; then it is written anew
            self._cache_file.flush()
            return False
