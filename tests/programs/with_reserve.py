"""Started under mpirun by test_scheduling.py: a training run whose nodes share a reserve of work, on few ranks."""

import sys

from iwes_mpi.mpi import queue
from iwes_mpi.mpi.launch import launch
from iwes_mpi.train import train

queue.FEWEST_RANKS = 2
launch(lambda world: train(world, sys.argv[1:]))
