"""Started under mpirun by test_scheduling.py: a training run whose waiting times are known.

Each rank records how long its episodes took; estimates and log rows, which only rank 0 makes here, take a known time
more. Rank 0 prints one line of JSON per iteration: the seconds each rank was busy with episodes.
"""

import json
import sys
import time

from iwes_mpi.method.es import EvolutionStrategies
from iwes_mpi.method.estimator import Estimator
from iwes_mpi.mpi.launch import launch
from iwes_mpi.rollouts.gym_runner import GymRunner
from iwes_mpi.train import train

estimate_takes, row_takes = map(float, sys.argv[1:3])
busy = 0.0


def around(kind, name, wrapper):
    original = getattr(kind, name)
    setattr(kind, name, lambda self, *arguments: wrapper(original, self, *arguments))


def timed(original, self, *arguments):
    global busy
    begin = time.perf_counter()
    result = original(self, *arguments)
    busy += time.perf_counter() - begin
    return result


def slow_estimate(original, self, *arguments):
    time.sleep(estimate_takes)
    return original(self, *arguments)


def main(world):
    def recorded(original, self, *arguments):
        global busy
        report = original(self, *arguments)
        all_busy = world.comm.gather(busy)
        busy = 0.0
        if world.is_root:
            print(json.dumps(all_busy), flush=True)
            time.sleep(row_takes)  # as a slow file system would
        return report

    around(GymRunner, "run", timed)
    around(Estimator, "add_up", slow_estimate)
    around(EvolutionStrategies, "iterate", recorded)
    return train(world, sys.argv[3:])


launch(main)
