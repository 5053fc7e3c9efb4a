"""Started under mpirun by test_faults.py: rank 1 fails, and cannot say so; the others go on for ever."""

import sys
import time

from iwes_mpi.mpi.launch import launch


class Broken:
    """Nobody reads this stream any more, or a signal came in the midst of a print."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise RuntimeError("reentrant call")


def main(world):
    if world.rank == 1:
        sys.stdout = sys.stderr = Broken()
        raise ArithmeticError
    while True:
        time.sleep(0.01)


launch(main)
