"""Ranks that compute together: their slices of the work, and exact sums over them.

Collective methods must be called by all ranks of their group in the same order. Sums over samples are sums of
64-bit integers, so that the result depends neither on the number of ranks nor on the order of the reduction.
"""

import time

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.ranks import split


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

    def slice(self, n: int) -> range:
        """This rank's share of n items."""
        return split(n, self.size, self.rank)

    def sum_integers(self, values: NDArray[np.int64]) -> None:
        """Sum int64 arrays over the ranks, in place, exactly."""
        self.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)

    def maximum(self, value: float) -> float:
        """The largest of the ranks' values."""
        return float(self.comm.allreduce(value, MPI.MAX))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.comm.allreduce(flag, MPI.LOR))

    def barrier(self) -> None:
        """Wait until all ranks of the group are here."""
        self.comm.Barrier()

    def rest_until_all(self) -> None:
        """Wait for the others of the group asleep, so that they have the cores."""
        arrival, pause = self.comm.Ibarrier(), 2e-5
        while not arrival.Test():
            time.sleep(pause)
            pause = min(2e-3, 1.5 * pause)


def alone() -> Group:
    """The group of this rank only."""
    return Group(MPI.Intracomm(MPI.COMM_SELF))
