"""Stands for iwes_mpi.train in a job of test_slurm.py: ranks end one after another, with the code of a stop."""

import os
import sys
import time

time.sleep(9 * int(os.environ["SLURM_PROCID"]))
print("LEFT", flush=True)
sys.exit(75)
