"""Stands for iwes_mpi.train in a job of test_slurm.py: a failure."""

import sys

sys.exit(9)
