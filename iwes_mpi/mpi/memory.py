"""Memory that the ranks of a node share."""

from iwes_mpi.mpi.group import Group
from iwes_mpi.mpi.process import MPI


def open_window(node: Group, n_bytes: int) -> MPI.Win:
    """A shared-memory window to which this rank gives `n_bytes`, open for access. Collective on the node."""
    window = MPI.Win.Allocate_shared(n_bytes, 1, comm=node.comm)
    window.Lock_all()
    return window
