"""Start a program on all ranks; an exception on any of them ends them all."""

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NoReturn

from iwes_mpi.mpi.faults import Neighbor
from iwes_mpi.mpi.world import LauncherMismatch, World


def first_of_launch(environment: Mapping[str, str]) -> bool:
    """Whether this process is the launcher's first, by the launcher's own account."""
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    return next((environment[name] for name in ranks if name in environment), "0") == "0"


def report_and_abort(world: World, error: BaseException) -> NoReturn:
    """End the whole job with code 1 for an exception on this rank.

    Of a node's ranks only the first prints its traceback, should the same befall several.
    """
    try:
        if world.last_words.be_first():
            text = "".join(traceback.format_exception(error))
            print(f"iwes_mpi: rank {world.rank} of {world.size} failed:\n{text}", file=sys.stderr, flush=True)
        else:
            time.sleep(Neighbor.PATIENCE)  # while the first prints
    except Exception:
        pass  # a broken pipe, say: what matters is that the job ends
    finally:
        world.abort(1)


def launch(main: Callable[[World], int]) -> NoReturn:
    """Run `main` on every rank and end the process with the exit code it returns.

    An exception that leaves `main` on any rank, SystemExit and KeyboardInterrupt included, prints its traceback
    and ends the whole job with code 1: the other ranks would otherwise wait for this one for ever. Of a node's ranks
    only the first prints, should the same befall several. A rank that dies without a word is noticed by its
    `Neighbor`.
    """
    try:
        world = World()
    except LauncherMismatch as error:
        if first_of_launch(os.environ):
            print(f"iwes_mpi: error: {error}", file=sys.stderr)
        sys.exit(2)

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report_and_abort(world, error)

    sys.excepthook = report
    faulthandler.enable()  # a crash in compiled code shows where Python was
    neighbor = Neighbor(world)
    try:
        code = main(world)
    except BaseException as error:
        report_and_abort(world, error)
    neighbor.leave()
    world.last_words.free()
    sys.exit(code)
