"""Started under mpirun by test_faults.py: training whose log cannot be begun, since no file may have 200 kB."""

import resource
import runpy

from iwes_mpi.files.log import LogWriter

begin = LogWriter.__init__


def limited(log, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    begin(log, *arguments)


LogWriter.__init__ = limited
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
