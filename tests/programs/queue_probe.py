"""Started under mpirun by test_scheduling.py: who gets which items of work; one line of JSON from rank 0."""

import json
import random
import sys
import time

from iwes_mpi.mpi.launch import launch
from iwes_mpi.mpi.queue import WorkQueue
from iwes_mpi.mpi.stop import StopFlag


def main(world):
    schedule, *rounds = sys.argv[1], *map(json.loads, sys.argv[2:])
    queue = WorkQueue(world, schedule, StopFlag(world, None))
    rng = random.Random(world.rank)
    taken = []
    for lengths in rounds:
        mine = []
        for item in queue.items(*lengths):
            mine.append(item)
            time.sleep(0.003 * rng.random())
        taken.append(mine)
        world.barrier()
    found = world.comm.gather((world.node_index, taken))
    if world.is_root:
        print(json.dumps(found))
    return 0


launch(main)
