"""Which rank of a node tells why the job ends."""

import numpy as np

from iwes_mpi.mpi.group import Group
from iwes_mpi.mpi.memory import open_window
from iwes_mpi.mpi.process import MPI


class LastWords:
    """Who of a node tells why the job ends: one rank, so that a fault that all have at once is one report, not 48.

    Creating one is collective on the node.

    Parameters
    ----------
    node : Group
    """

    def __init__(self, node: Group):
        self._window: MPI.Win | None = open_window(node, 8 if node.rank == 0 else 0)
        self._claims = np.asarray(self._window.Shared_query(0)[0]).view(np.int64)
        if node.rank == 0:
            self._claims[:] = 0
        self._window.Sync()
        node.barrier()
        self._window.Sync()

    def be_first(self) -> bool:
        """Whether no rank of the node has claimed them; they are this one's then. For the main thread."""
        if self._window is None:
            return True
        one, before = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._window.Fetch_and_op(one, before, 0, 0, MPI.SUM)
        self._window.Flush(0)
        return bool(before[0] == 0)

    def claim(self) -> bool:
        """As `be_first`, without MPI: for any thread, but two ranks may do so in the same moment."""
        if self._window is None:
            return True
        first = bool(self._claims[0] == 0)
        self._claims[0] = 1
        return first

    def free(self) -> None:
        """Release the shared memory. Collective on the node."""
        window, self._window = self._window, None
        if window is not None:
            window.Unlock_all()
            window.Free()
