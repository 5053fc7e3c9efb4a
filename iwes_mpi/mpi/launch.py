"""Start a program on all ranks; an exception on any of them ends them all."""

import atexit
import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NoReturn

from iwes_mpi.mpi.faults import Neighbor
from iwes_mpi.mpi.guard import Guard, end_children, end_process, exit_code, settle_recursion
from iwes_mpi.mpi.leftovers import remove_segments
from iwes_mpi.mpi.world import LauncherMismatch, World
from iwes_mpi.settings.printable import printable

_FINALIZE = 60.0  # s that MPI has to end once all ranks of the node are done: the launcher may be gone
_LINGER = 5.0  # s that Python has to end by itself then


def first_of_launch(environment: Mapping[str, str]) -> bool:
    """Whether this process is the launcher's first, by the launcher's own account."""
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    return next((environment[name] for name in ranks if name in environment), "0") == "0"


def report_and_abort(world: World, error: BaseException, stderr: int | None = None) -> NoReturn:
    """End the whole job with code 1 for an exception on this rank, and what child processes it has.

    Of a node's ranks only the first prints its traceback, should the same befall several: on standard error, or on
    the descriptor `stderr` if somebody has closed that.
    """
    try:
        if world.last_words.be_first():
            text = printable("".join(traceback.format_exception(error)))
            _say(f"iwes_mpi: rank {world.rank} of {world.size} failed:\n{text}", stderr)
        else:
            time.sleep(Neighbor.PATIENCE)  # while the first prints
    except Exception:
        pass  # a broken pipe, say: what matters is that the job ends
    finally:
        with contextlib.suppress(Exception):
            end_children()
        world.abort(1)


def launch(main: Callable[[World], int]) -> NoReturn:
    """Run `main` on every rank and end the process with the exit code it returns.

    An exception that leaves `main` on any rank, SystemExit and KeyboardInterrupt included, prints its traceback
    and ends the whole job with code 1: the other ranks would otherwise wait for this one for ever. Of a node's ranks
    only the first prints, should the same befall several. A rank that dies without a word is noticed by its
    `Neighbor`, and what an environment must not do to a rank's process by `Guard`. Nothing that an environment has
    started keeps a job that is done from ending.
    """
    try:
        world = World()
    except LauncherMismatch as error:
        if first_of_launch(os.environ):
            print(f"iwes_mpi: error: {error}", file=sys.stderr)
        sys.exit(2)
    if world.node.rank == 0:
        remove_segments()
    stderr = _kept_stderr()

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        settle_recursion()
        if not guard.is_rank:  # a child process, which an environment has forked, ends in its own way
            _end_forked(kind, error, trace)
        report_and_abort(world, error, stderr)

    guard = Guard(lambda error: report(type(error), error, None), world.last_words.claim)
    sys.excepthook = report
    faulthandler.enable()  # a crash in compiled code shows where Python was
    neighbor = Neighbor(world)
    atexit.register(end_children)  # first, so that it comes last
    try:
        code = main(world)
    except BaseException as error:
        report(type(error), error, error.__traceback__)
        raise
    settle_recursion()
    neighbor.leave()
    world.last_words.free()
    finalized = threading.Event()
    threading.Thread(target=_end_anyway, args=(code, finalized), daemon=True).start()
    guard.finalize()
    finalized.set()
    sys.exit(code)


def _kept_stderr() -> int | None:
    """Another descriptor of standard error, should somebody close the first; None if there is none."""
    with contextlib.suppress(OSError):
        return os.dup(2)
    return None


def _say(text: str, stderr: int | None) -> None:
    """Print on standard error, even if somebody has closed it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        if stderr is not None:
            os.write(stderr, f"{text}\n".encode("utf-8", "backslashreplace"))


def _end_forked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> NoReturn:
    """End a child process, with the code that it asks for, or with what went wrong in it."""
    code = 1
    try:
        if isinstance(error, SystemExit):
            code = exit_code(error)
        else:
            text = printable("".join(traceback.format_exception(kind, error, trace)))
            print(f"iwes_mpi: a process that an environment has forked failed:\n{text}", file=sys.stderr, flush=True)
    finally:
        end_process(code)


def _end_anyway(code: int, finalized: threading.Event) -> None:
    """End the process if it does not end: MPI waits for the launcher, Python for every thread that is no daemon."""
    if finalized.wait(_FINALIZE):
        time.sleep(_LINGER)
    end_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    end_process(code)
