"""Started under mpirun by test_scheduling.py: who gets which items of work; one line of JSON from rank 0.

Arguments: the schedule, from how many ranks on there is a reserve, what happens on the last rank in its third round
("nothing", "stop" or "fail"), and the lengths of the lists of each round, as JSON.
"""

import json
import os
import random
import signal
import sys
import time

from iwes_mpi.mpi.launch import launch
from iwes_mpi.mpi.queue import WorkQueue
from iwes_mpi.mpi.stop import StopFlag


def main(world):
    schedule, fewest, event, *rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(json.loads, sys.argv[4:])
    stop = StopFlag(world, None)
    queue = WorkQueue(world, schedule, stop, 100, fewest)
    rng = random.Random(world.rank)
    taken = []
    for number, lengths in enumerate(rounds):
        mine = []
        for item in queue.items(*lengths):
            mine.append(item)
            time.sleep(0.003 * rng.random())
            if number == 2 and world.rank == world.size - 1 and event != "nothing":
                if event == "fail":
                    raise RuntimeError("this rank fails")
                os.kill(os.getpid(), signal.SIGTERM)
        taken.append(mine)
        world.barrier()
    stop.drain()
    found = world.comm.gather((world.node_index, taken))
    if world.is_root:
        print(json.dumps(found))
    return 0


launch(main)
