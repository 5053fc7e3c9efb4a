"""Started under mpirun by test_faults.py: training that does not look how much room is left before it writes.

As if another job filled the disk between the check and the write.
"""

import runpy

from iwes_mpi.files.keeper import Keeper

Keeper._require_room = lambda keeper: None
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
