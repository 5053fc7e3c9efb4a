"""Ranks that compute together: their slices of the work, and exact sums over them.

Collective methods must be called by all ranks of their group in the same order. Sums over samples are sums of
64-bit integers, so that the result depends neither on the number of ranks nor on the order of the reduction.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.ranks import split
from iwes_mpi.mpi.shared_sums import SharedSums


class Group:
    """Some ranks that compute together.

    Parameters
    ----------
    comm : MPI communicator
    """

    def __init__(self, comm: MPI.Intracomm):
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self._shared: SharedSums | None = None
        self._leaders: MPI.Intracomm | None = None

    def share_cores(self, shared: SharedSums, leaders: MPI.Intracomm | None = None) -> None:
        """From now on wait asleep and exchange through the memory of the node, since ranks share cores.

        Parameters
        ----------
        shared : SharedSums
            Of this rank's node, all of whose ranks belong to the group.
        leaders : MPI.Intracomm or None
            Of the first ranks of the nodes, if the group has several; each node's others give any communicator.
        """
        self._shared, self._leaders = shared, leaders

    def slice(self, n: int) -> range:
        """This rank's share of n items."""
        return split(n, self.size, self.rank)

    def sum_integers(self, values: NDArray[np.int64]) -> None:
        """Sum int64 arrays over the ranks, in place, exactly."""
        if self._shared is not None:
            self._shared.sum(values, self._leaders)
        else:
            self.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)

    def maximum(self, value: float) -> float:
        """The largest of the ranks' values."""
        return float(self._largest(np.float64(value)))

    def maximum_integer(self, value: int) -> int:
        """The largest of the ranks' integers."""
        return int(self._largest(np.int64(value)))

    def _largest(self, value: np.float64 | np.int64) -> Any:
        if self._shared is None:
            result = np.array([value])
            self.comm.Allreduce(MPI.IN_PLACE, result, MPI.MAX)
            return result[0]
        found = np.zeros(self.size, dtype=value.dtype)
        found[self.rank] = value
        self.sum_integers(found.view(np.int64))  # the sum of the bits of one number and of zeros
        return found.max()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.comm.allreduce(flag, MPI.LOR))

    def barrier(self) -> None:
        """Wait until all ranks of the group are here; asleep where ranks share cores."""
        if self._shared is None:
            self.comm.Barrier()
            return
        self._shared.barrier()
        if self._leaders is not None:
            if self._shared.rank == 0:
                self._rest(self._leaders)
            self._shared.barrier()

    def rest_until_all(self) -> None:
        """Wait for the others of the group asleep, so that they have the cores."""
        self._rest(self.comm)

    @staticmethod
    def _rest(comm: MPI.Intracomm) -> None:
        """A barrier that sleeps."""
        arrival, pause = comm.Ibarrier(), 2e-5
        while not arrival.Test():
            time.sleep(pause)
            pause = min(2e-3, 1.5 * pause)


def alone() -> Group:
    """The group of this rank only."""
    return Group(MPI.Intracomm(MPI.COMM_SELF))
