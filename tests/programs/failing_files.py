"""Started under mpirun by test_faults.py: training whose file system fails at the second write of a kind.

Arguments: "save" (checkpoints) or "append" (log rows); the error number; "stopped" to ask the run to stop after each
row, or "going"; and the command line of iwes_mpi.train.
"""

import os
import runpy
import signal
import sys

from iwes_mpi.files import checkpoint
from iwes_mpi.files.behind import WriteBehind

kind, number, stopped = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stopped"
del sys.argv[1:4]


def failing(original):
    """A function that raises when it is called again."""
    calls = []

    def function(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(number, os.strerror(number), "the file")
        return original(*arguments)

    return function


if kind == "save":
    checkpoint.save = failing(checkpoint.save)
else:
    WriteBehind.append = failing(WriteBehind.append)
append = WriteBehind.append


def stopping(*arguments):
    append(*arguments)
    if stopped:
        os.kill(os.getpid(), signal.SIGTERM)


WriteBehind.append = stopping
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
