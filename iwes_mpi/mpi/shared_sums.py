"""Sums through the memory that the ranks of a node share, for ranks that also share its cores: who waits, sleeps.

A rank that waits inside MPI spins, and takes the core from one that the others wait for. Exact sums come out the same
either way.
"""

import time

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI

_ROOM = 8 << 20  # bytes that all ranks of a node have for their numbers
_FEW = 1 << 16  # numbers of all ranks together that each adds up by itself, rather than a slice of them


class SharedSums:
    """A place where the ranks of a node meet and add up, asleep while they wait.

    Methods are collective on the node, and must be called by its ranks in the same order.

    Parameters
    ----------
    window : MPI.Win
        Of the node, open for access; the first rank gave `bytes_needed`, the others nothing.
    rank, size : int
        On the node.
    largest : int
        Ranks of the largest node, if sums over several are wanted: all must sum up pieces of the same length.
    """

    def __init__(self, window: MPI.Win, rank: int, size: int, largest: int):
        self._window, self.rank, self._size = window, rank, size
        memory = np.asarray(window.Shared_query(0)[0]).view(np.int64)
        rows, capacity = 2 * size + 1, _capacity(largest)
        self._arrived = memory[:1]  # at all barriers so far
        numbers = memory[_PAD : _PAD + rows * capacity].reshape(rows, capacity)
        self._parts, self._result = numbers[1:].reshape(2, size, capacity), numbers[0]  # the two parts take turns
        self._capacity, self._turn, self._passed = capacity, 0, 0
        if rank == 0:
            memory[:] = 0  # now, so that whoever asks how much memory is left gets to know
        self._one, self._before = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def barrier(self) -> None:
        """Wait until all ranks of the node are here; what they wrote to shared memory before can be read then."""
        self._passed += 1
        target = self._passed * self._size
        self._window.Sync()
        self._window.Fetch_and_op(self._one, self._before, 0, 0, MPI.SUM)
        self._window.Flush(0)
        pause = 2e-5
        while self._arrived[0] < target:
            time.sleep(pause)
            pause = min(1e-3, 1.5 * pause)
        self._window.Sync()

    def sum(self, values: NDArray[np.int64], between: MPI.Intracomm | None = None) -> None:
        """Sum int64 arrays (n,) over the ranks, in place, exactly.

        Parameters
        ----------
        values : int64 (n,)
        between : MPI.Intracomm or None
            Of the first ranks of all nodes, to sum over them too; each node's others give any communicator.
        """
        for start in range(0, values.size, self._capacity):
            self._sum(values[start : start + self._capacity], between)

    def _sum(self, values: NDArray[np.int64], between: MPI.Intracomm | None) -> None:
        n = values.size
        self._turn = 1 - self._turn
        parts = self._parts[self._turn]
        parts[self.rank, :n] = values
        self.barrier()
        if n * self._size <= _FEW and between is None:
            np.sum(parts[:, :n], axis=0, out=values)
            return  # nobody writes to these parts before all have come to the next barrier
        mine = slice(n * self.rank // self._size, n * (self.rank + 1) // self._size)
        np.sum(parts[:, mine], axis=0, out=self._result[mine])
        self.barrier()
        if between is not None:
            if self.rank == 0:
                between.Allreduce(MPI.IN_PLACE, self._result[:n], MPI.SUM)
            self.barrier()
        values[:] = self._result[:n]


_PAD = 16  # numbers before the parts: the counter of arrivals has a cache line of its own


def _capacity(largest: int) -> int:
    """Numbers of a rank that are summed at a time."""
    return max(512, _ROOM // 8 // (2 * largest + 1))


def bytes_needed(size: int, largest: int) -> int:
    """What a node with `size` ranks needs, if the largest node has `largest`."""
    return 8 * (_PAD + (2 * size + 1) * _capacity(largest))
