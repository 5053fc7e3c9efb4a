"""Started under mpirun by test_startup.py: training that leaves a list of the modules each rank had at its end.

Arguments: the folder for the lists, RANK.txt each, and the command line of iwes_mpi.train.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path

rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
file = Path(sys.argv.pop(1)) / f"{rank}.txt"
atexit.register(lambda: file.write_text("\n".join(sys.modules)))
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
