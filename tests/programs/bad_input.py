"""Started under mpirun by test_bad_input.py: give iwes_mpi.train command lines, and tell what every rank did.

Argument: a JSON file with a list of them.
"""

import contextlib
import io
import json
import sys

from iwes_mpi.mpi.launch import launch
from iwes_mpi.mpi.program import run_body
from iwes_mpi.mpi.world import World
from iwes_mpi.settings.command_line import build_parser
from iwes_mpi.train import train


def main(world: World) -> int:
    told = []
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    for case in cases:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_body("iwes_mpi.train", build_parser, train, world, case)
        told.append(world.comm.gather((code, out.getvalue(), err.getvalue())))
    if world.is_root:
        print(json.dumps(told))
    return 0


launch(main)
