"""Run under mpirun: give each command line of a JSON file to ``iwes_mpi.train``, and tell what every rank did."""

import contextlib
import io
import json
import sys

from iwes_mpi import mpi
from iwes_mpi.launching import run_body
from iwes_mpi.train import train


def main(world: mpi.World) -> int:
    told = []
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    for case in cases:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_body("iwes_mpi.train", train, world, case)
        told.append(world.comm.gather((code, out.getvalue(), err.getvalue())))
    if world.is_root:
        print(json.dumps(told))
    return 0


mpi.launch(main)
