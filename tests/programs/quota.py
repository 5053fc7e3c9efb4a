"""Started under mpirun by test_faults.py: training whose files the kernel lets grow no further after three rows.

Arguments: the file of the run directory whose size then, and so many bytes more, is the most that a file may have; the
bytes; and the command line of iwes_mpi.train.
"""

import os
import resource
import runpy
import sys

from iwes_mpi.files.behind import WriteBehind

writing, room = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
append, calls = WriteBehind.append, []


def limited(log, *arguments):
    append(log, *arguments)
    log.tables()  # writes it at once
    calls.append(1)
    if len(calls) == 3:
        size = os.stat(log._log._path.with_name(writing)).st_size + room
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


WriteBehind.append = limited
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
