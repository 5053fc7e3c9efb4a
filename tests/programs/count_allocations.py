"""Started by test_native_rollouts.py with NUMBA_NRT_STATS=1: what native episodes allocate, as Numba counts it.

Standard input: the cases, settings as JSON. Prints, for every case, of a short and of a longer episode, its length and
the allocations during it.
"""

import json
import sys
import warnings

import numpy as np
from numba.core.runtime import rtsys

from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.settings.config import Config

warnings.simplefilter("ignore")
found = []
for case in json.load(sys.stdin):
    runner = open_runner(Config(hidden_sizes=(20, 7), rollouts="native", **case))
    theta = np.zeros(runner.network.n_parameters, dtype=np.float32)
    normalizer = np.ones((2, int(runner.network.sizes[0])))
    row = []
    runner.rehearse(EpisodeTask(theta, normalizer, generator(7, Stream.POPULATION_EPISODE), 0.3, True))
    for cap in (10, 100):
        rng = generator(7, Stream.POPULATION_EPISODE)
        task = EpisodeTask(theta, normalizer, rng, 0.3, True, cap=cap)
        before = rtsys.get_allocation_stats()
        length = runner.run(task).length
        after = rtsys.get_allocation_stats()
        row.append((length, after.alloc - before.alloc, after.mi_alloc - before.mi_alloc))
    found.append(row)
    runner.close()
json.dump(found, sys.stdout)
