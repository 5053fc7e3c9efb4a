"""Started under mpirun by test_bad_input.py: a process as a launcher of another MPI would start it.

Argument: the rank that the launcher says it has, of three; its own MPI knows of no other process.
"""

import os
import sys

for name in list(os.environ):
    if name.startswith(("PMI", "OMPI", "PRTE", "HYDRA", "MPI_", "MPIR")):
        del os.environ[name]
os.environ.update(PMI_SIZE="3", PMI_RANK=sys.argv[1])

from iwes_mpi.mpi.world import check_launcher  # noqa: E402 - MPI starts here, in this environment

check_launcher(1, os.environ)
