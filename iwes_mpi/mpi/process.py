"""What a process settles before MPI and NumPy start: one thread each, and how MPI is used. Import it first."""

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
for _variable in THREAD_VARIABLES:  # before NumPy loads: the ranks are the parallelism
    os.environ.setdefault(_variable, "1")
# Windows live in node memory only; Open MPI's UCX component for remote ones complains without such a network.
os.environ.setdefault("OMPI_MCA_osc", "^ucx")
# UCX, beneath MPI, would take SIGHUP for itself from MPI's start on, and then tell everything it does.
os.environ.setdefault("UCX_DEBUG_SIGNO", "0")

import mpi4py  # noqa: E402

mpi4py.rc.thread_level = "serialized"

from mpi4py import MPI  # noqa: E402

__all__ = ["MPI", "THREAD_VARIABLES", "library_version"]


def library_version() -> str:
    """Name and version of the MPI library, in one line."""
    return MPI.Get_library_version().strip("\0").splitlines()[0].strip()[:80]
