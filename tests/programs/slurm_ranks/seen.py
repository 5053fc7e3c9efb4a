"""Stands for iwes_mpi.train in a job of test_slurm.py: says what a rank's environment is, and uses the cache."""

import os
import pathlib

cache = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
cache.mkdir(parents=True, exist_ok=True)
print("SEEN", cache, os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"], flush=True)
