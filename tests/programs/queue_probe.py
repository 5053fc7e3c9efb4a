"""Started under mpirun by test_scheduling.py: who gets which items of work; one line of JSON from rank 0.

Arguments: the schedule, from how many ranks on there is a reserve, what happens on the last rank in its third round
("nothing", "stop" or "fail"), and the lengths of the lists of each round, as JSON. Before them, a sign other than 0 has
the last list's items be members of pairs, ordered by it; the first member of pair p lasts 1 + 37p mod 101.
"""

import json
import os
import random
import signal
import sys
import time

import numpy as np

from iwes_mpi.mpi.launch import launch
from iwes_mpi.mpi.queue import Seconds, WorkQueue
from iwes_mpi.mpi.stop import StopFlag


def main(world):
    schedule, fewest, event, *rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(json.loads, sys.argv[4:])
    stop = StopFlag(world, None)
    queue = WorkQueue(world, schedule, stop, 200, fewest)
    rng = random.Random(world.rank)
    taken = []
    for number, lengths in enumerate(rounds):
        mine = []
        sign, *lengths = lengths
        members = np.zeros((lengths[-1] // 2, 2), dtype=np.int64)
        for which, item in queue.items(*lengths, seconds=Seconds(members, sign) if sign else None):
            mine.append((time.monotonic(), which, item))
            if which == len(lengths) - 1 and sign:
                members.flat[item] = 1 + 37 * (item // 2) % 101
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
