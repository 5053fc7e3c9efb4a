"""What the MPI programs of the package share: exit codes, help, and refusing wrong input once for all ranks."""

import os
import platform
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from iwes_mpi.mpi.launch import first_of_launch, launch
from iwes_mpi.mpi.world import World
from iwes_mpi.settings.printable import printable
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.version import __version__

FINISHED, FAILED, BAD_INPUT, STORAGE_FAILED, STOPPED_EARLY = 0, 1, 2, 74, 75  # 74 and 75 as in sysexits.h

T = TypeVar("T")


class Refused(Exception):
    """Wrong input, known on every rank."""

    def __init__(self, error: WrongInput):
        super().__init__(str(error))
        self.error = error


def agree(world: World, function: Callable[[], T], on_root: bool = False) -> T | None:
    """Call `function` on every rank, or on rank 0 alone; what is wrong with the input anywhere is known everywhere.

    Returns
    -------
    object
        What `function` returned on this rank; None where it did not run.

    Raises
    ------
    Refused
        On every rank, if it raised WrongInput on any, with the error of the first such rank.
    """
    called = _attempt(world, function) if world.is_root or not on_root else None
    _refuse(world, called and called[1])
    return called and called[0]


def agree_in_order(world: World, function: Callable[[], T], order: Callable[[World, Callable[[], Any]], Any]) -> T:
    """Call `function` on every rank as `order` has it, such as `turns.in_turn`; else as `agree`."""
    result, problem = order(world, lambda: _attempt(world, function))
    _refuse(world, problem)
    return result  # type: ignore[no-any-return]  # `order` hands on what it calls


def _attempt(world: World, function: Callable[[], T]) -> tuple[T | None, WrongInput | None]:
    """What a function returned, and what it found wrong with the input."""
    try:
        return function(), None
    except WrongInput as error:
        if world.is_root:
            return None, WrongInput(*error.args)  # without its traceback's objects
        # The other ranks see the same command line: what only they find wrong is wrong where they are.
        where = f"(on rank {world.rank}, node {platform.node()})"
        return None, WrongInput(error.setting, f"{error.problem} {where}", error.source, error.detail)


def _refuse(world: World, problem: WrongInput | None) -> None:
    """Raise Refused on every rank if there is a problem on any. Collective."""
    problem = world.first(problem)
    if problem is not None:
        raise Refused(problem)


class Parser(Protocol):
    """The command line of a program, as far as this module needs it."""

    def print_help(self) -> None:
        """Print the help."""
        ...

    def describe(self, error: WrongInput) -> str:
        """An error in the words of the command line."""
        ...


Body = Callable[[World, list[str]], int]


def run_body(name: str, build_parser: Callable[[], Parser], body: Body, world: World, argv: list[str]) -> int:
    """Call a program's body; wrong input is said once, by rank 0. Returns the exit code. Collective."""
    try:
        return body(world, argv)
    except Refused as refused:
        if world.is_root:
            lines = [
                f"{name}: error: {build_parser().describe(refused.error)}",
                printable(refused.error.detail.rstrip()),
            ]
            print("\n".join(filter(None, lines)), file=sys.stderr, flush=True)
        return BAD_INPUT


def run_program(name: str, build_parser: Callable[[], Parser], body: Body) -> NoReturn:
    """Run a program on all ranks of this job and end the process with its exit code.

    Parameters
    ----------
    name : str
        As it introduces its errors.
    build_parser : callable
        Gives the parser whose help ``--help`` prints, once; as ``--version`` does the version.
    body : callable
        The program: takes the world and the command line, returns the exit code, raises `Refused` on wrong input.
    """
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        if first_of_launch(os.environ):
            build_parser().print_help()
        sys.exit(FINISHED)
    if "--version" in argv:
        if first_of_launch(os.environ):
            print(f"iwes_mpi {__version__}")
        sys.exit(FINISHED)
    launch(lambda world: run_body(name, build_parser, body, world, argv))
