"""The world of ranks, its nodes, their shares of the work and their shared memory."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.group import Group, alone
from iwes_mpi.mpi.guard import end_process, wait_until_read
from iwes_mpi.mpi.last_words import LastWords
from iwes_mpi.mpi.memory import open_window
from iwes_mpi.mpi.process import MPI, library_version
from iwes_mpi.mpi.ranks import split
from iwes_mpi.mpi.shared_sums import SharedSums, bytes_needed

T = TypeVar("T")

# What launchers tell a process about how many of them they started, most specific first
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS")


class LauncherMismatch(RuntimeError):
    """The launcher belongs to another MPI than the one mpi4py uses: each process is alone in its own world."""


def check_launcher(size: int, environment: Mapping[str, str]) -> None:
    """Refuse a world of one process where the launcher says that it started several.

    Raises
    ------
    LauncherMismatch
        Naming the variable that tells.
    """
    if size > 1:
        return
    for variable in _SIZE_VARIABLES:
        started = environment.get(variable, "")
        if not started.isdigit():
            continue
        if int(started) > 1:
            raise LauncherMismatch(
                f"the launcher started {started} processes ({variable}), but each of them is rank 0 of 1: mpirun "
                f"or srun belongs to another MPI than mpi4py's ({library_version()}). Use the launcher of that MPI, "
                "or rebuild mpi4py against the launcher's (docs/clusters.md)"
            )
        return


class World(Group):
    """All ranks of the job, and how they lie on nodes (processes that share memory).

    Raises
    ------
    LauncherMismatch
        From `check_launcher`.
    """

    def __init__(self) -> None:
        super().__init__(MPI.Intracomm(MPI.COMM_WORLD))
        check_launcher(self.size, os.environ)
        self.node = Group(MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)))
        leader = self.node.comm.bcast(self.rank)
        leaders = self.comm.allgather(leader)
        nodes = sorted(set(leaders))
        self.n_nodes = len(nodes)
        self.node_index = nodes.index(leader)
        # Ranks in node order: a node's shares of the work lie side by side, however ranks were placed.
        self._first_position = sum(leaders.count(node) for node in nodes[: self.node_index])
        self._windows: list[MPI.Win] = []
        self.last_words = LastWords(self.node)
        if self.any(self.node.size > self._cores()):
            self._share_cores()

    def _cores(self) -> int:
        """How many cores the ranks of this rank's node may use, all together. Collective on the node."""
        if not hasattr(os, "sched_getaffinity"):
            return os.cpu_count() or 1
        return len(set().union(*self.node.comm.allgather(os.sched_getaffinity(0))))

    def _share_cores(self) -> None:
        """Have ranks that wait sleep, so as not to hold up those still at work. Collective."""
        rank, size, largest = self.node.rank, self.node.size, self.maximum_integer(self.node.size)
        window = self.node_window(bytes_needed(size, largest) if rank == 0 else 0)
        shared = SharedSums(window, rank, size, largest)
        self.publish()
        leaders = MPI.Intracomm(self.comm.Split(int(self.node.rank > 0), self.rank)) if self.n_nodes > 1 else None
        self.node.share_cores(shared)
        self.share_cores(shared, leaders)

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone reads and writes files and talks to people."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """This rank's static share of n work items, in node order."""
        return split(n, self.size, self._first_position + self.node.rank)

    def node_turns(self, n: int) -> int:
        """How many of n work items are this rank's node's: of every `size` in a row, as many as it has ranks."""
        rounds, rest = divmod(n, self.size)
        return rounds * self.node.size + min(max(rest - self._first_position, 0), self.node.size)

    def node_turn(self, turn: int) -> int:
        """The work item that is this rank's node's by the count of `node_turns`, from 0."""
        rounds, place = divmod(turn, self.node.size)
        return rounds * self.size + self._first_position + place

    def weights_group(self, where: Literal["all", "node", "root"]) -> Group | None:
        """The ranks that compute weights (``--weights-on``), or None on the others. Collective."""
        if where == "all":
            return self
        if where == "node":
            return self.node if self.node_index == 0 else None
        if where == "root":
            return alone() if self.is_root else None
        raise ValueError(f"weights are on all, node or root, not on {where!r}")

    def broadcast(self, values: NDArray[Any]) -> None:
        """Give every rank rank 0's array of 64-bit numbers, in place."""
        if self._shared is None:
            self.comm.Bcast(values, 0)
            return
        if not self.is_root:
            values[...] = 0
        self.sum_integers(values.view(np.int64))

    def from_root(self, value: T | None) -> T:
        """Rank 0's value on every rank, whatever it is; for start-up, not for the loop."""
        received: T = self.comm.bcast(value, 0)
        return received

    def first(self, value: T | None) -> T | None:
        """The value of the lowest rank that has one, on every rank; None if none has."""
        return next((found for found in self.comm.allgather(value) if found is not None), None)

    def minimum_integer(self, value: int) -> int:
        """The smallest of the ranks' integers."""
        return int(self.comm.allreduce(value, MPI.MIN))

    def node_array(self, size: int, dtype: Any) -> NDArray[Any]:
        """One array per node, in memory that all its ranks share. Collective.

        After writing, call `publish` before any other rank reads.
        """
        n_bytes = size * np.dtype(dtype).itemsize
        window = self.node_window(n_bytes if self.node.rank == 0 else 0)
        buffer, _ = window.Shared_query(0)
        return np.asarray(buffer)[:n_bytes].view(dtype)

    def node_window(self, n_bytes: int) -> MPI.Win:
        """A shared-memory window of the node to which this rank gives `n_bytes`, open for access. Collective."""
        window = open_window(self.node, n_bytes)
        self._windows.append(window)
        return window

    def publish(self) -> None:
        """Make what any rank of the node wrote to node arrays visible to the others. Collective on the node."""
        for window in self._windows:
            window.Sync()
        self.node.barrier()
        for window in self._windows:
            window.Sync()

    def sync(self) -> None:
        """See what other ranks of the node have written to node arrays, and let them see what this one has."""
        for window in self._windows:
            window.Sync()

    def close(self) -> None:
        """Release the nodes' shared memory. Collective; node arrays must not be used after it."""
        self._shared = self.node._shared = None
        for window in self._windows:
            window.Unlock_all()
            window.Free()
        self._windows.clear()

    def abort(self, code: int) -> NoReturn:
        """End every rank at once, whatever else fails."""
        try:
            self.last_words.claim()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # nobody reads any more, or a signal came in the midst of a print
                    stream.flush()
            wait_until_read()
            self.comm.Abort(code)
        finally:
            end_process(code)  # some MPI libraries return while the abort is under way
