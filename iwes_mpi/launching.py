"""What the MPI programs of the package share: exit codes, help, and refusing wrong input once for all ranks."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from iwes_mpi import mpi
from iwes_mpi.config import ConfigError

FINISHED, FAILED, BAD_INPUT, STORAGE_FAILED, STOPPED_EARLY = 0, 1, 2, 74, 75  # 74 and 75 as in sysexits.h

T = TypeVar("T")


class Refused(Exception):
    """Wrong input, known on every rank; the message names the setting."""


class StorageError(OSError):
    """The run directory cannot be written any more; the message names the file."""


def agree(world: mpi.World, function: Callable[[], T], on_root: bool = False) -> T | None:
    """Call `function` on every rank, or on rank 0 alone; what is wrong with the input anywhere is known everywhere.

    Returns
    -------
    object
        What `function` returned on this rank; None where it did not run.

    Raises
    ------
    Refused
        On every rank, if it raised ConfigError on any, with the message of the first such rank.
    """
    called = _attempt(world, function) if world.is_root or not on_root else None
    _refuse(world, called and called[1])
    return called and called[0]


def agree_in_order(
    world: mpi.World, function: Callable[[], T], order: Callable[[mpi.World, Callable[[], Any]], Any]
) -> T:
    """Call `function` on every rank as `order` has it, such as `rehearsal.in_turn`; else as `agree`."""
    result, problem = order(world, lambda: _attempt(world, function))
    _refuse(world, problem)
    return result


def _attempt(world: mpi.World, function: Callable[[], T]) -> tuple[T | None, str | None]:
    """What a function returned, and what it found wrong with the input."""
    try:
        return function(), None
    except ConfigError as error:
        # The other ranks see the same command line: what only they find wrong is wrong where they are.
        return None, str(error) if world.is_root else f"{error} (on rank {world.rank}, node {platform.node()})"


def _refuse(world: mpi.World, problem: str | None) -> None:
    """Raise Refused on every rank if there is a problem on any. Collective."""
    problem = world.first(problem)
    if problem is not None:
        raise Refused(problem)


Body = Callable[[mpi.World, list[str]], int]


def run_body(name: str, body: Body, world: mpi.World, argv: list[str]) -> int:
    """Call a program's body; wrong input is said once, by rank 0. Returns the exit code. Collective."""
    try:
        return body(world, argv)
    except Refused as error:
        if world.is_root:
            print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT


def run_program(name: str, build_parser: Callable[[], argparse.ArgumentParser], body: Body) -> NoReturn:
    """Run a program on all ranks of this job and end the process with its exit code.

    Parameters
    ----------
    name : str
        As it introduces its errors.
    build_parser : callable
        Gives the parser whose help ``--help`` prints, once.
    body : callable
        The program: takes the world and the command line, returns the exit code, raises `Refused` on wrong input.
    """
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        if mpi.first_of_launch(os.environ):
            build_parser().print_help()
        sys.exit(FINISHED)
    mpi.launch(lambda world: run_body(name, body, world, argv))
