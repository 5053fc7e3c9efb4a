"""Started under mpirun by test_scheduling.py: a training run whose nodes share a reserve of work, on few ranks.

In every other iteration second members are ordered.
"""

import itertools
import sys

from iwes_mpi.method import es
from iwes_mpi.mpi import queue
from iwes_mpi.mpi.launch import launch
from iwes_mpi.train import train

queue.FEWEST_RANKS = 2
signs = itertools.cycle([-1, 0, 1])
es.tendency = lambda lengths: next(signs)
launch(lambda world: train(world, sys.argv[1:]))
