"""Run the program under the MPI of this virtual environment, with hard time limits."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from iwes_mpi.supervise import descendants

BIN = Path(sys.executable).parent
TESTS = Path(__file__).resolve().parent
PROGRAMS = TESTS / "programs"
ROOT = TESTS.parent

# A run that takes a moment: not divisible by any number of ranks, extra blocks of pairs, every kind of exchange.
SMALL = [
    *("--env-id", "environments:Drift-v0", "--hidden-sizes", "5", "--n-pairs", "13", "--min-env-steps", "1200"),
    *("--n-eval", "3", "--eval-every", "1", "--iw-updates", "2", "--min-ess", "0", "--obs-stat-probability", "0.3"),
    *("--noise-table-size", "20000"),
    *("--learning-rate", "0.02", "--sigma", "0.1", "--iterations", "4"),
]


@cache
def is_open_mpi(folder: Path = BIN) -> bool:
    """Whether the MPI of a virtual environment, by default this one, is Open MPI."""
    return (folder / "prterun").exists()


def command(ranks: int, *arguments: str, launcher: str = "mpirun", python: str = sys.executable) -> list[str]:
    """The launcher beside `python`, with more ranks than cores allowed, then that Python with `arguments`."""
    folder = Path(python).parent
    options = ["--oversubscribe"] if is_open_mpi(folder) else []
    return [str(folder / launcher), *options, "-n", str(ranks), python, *arguments]


def python_path(*folders: Path) -> str:
    """A PYTHONPATH with this checkout's package, the test environments and these folders, which come first."""
    return os.pathsep.join(map(str, (*folders, ROOT, TESTS)))


def environment(**extra: str) -> dict[str, str]:
    """The environment of a run: this checkout's package and the test environments importable."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return dict(os.environ) | {"PYTHONPATH": python_path()} | root | extra


@dataclass
class Outcome:
    """How a run ended."""

    code: int
    out: str
    err: str


@contextmanager
def started(
    ranks: int,
    *arguments: str,
    output: int = subprocess.PIPE,
    launcher: str = "mpirun",
    python: str = sys.executable,
    **extra: str,
) -> Iterator[subprocess.Popen[str]]:
    """``mpirun -n ranks python arguments`` in the background; killed at the end if it is still running."""
    process = subprocess.Popen(
        command(ranks, *arguments, launcher=launcher, python=python), env=environment(**extra), stdout=output,
        stderr=output, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(ranks: int, *arguments: str, timeout: float = 120, **extra: str) -> Outcome:
    """Run ``mpirun -n ranks python arguments``; a run beyond the limit is killed, and fails the test."""
    with started(ranks, *arguments, **extra) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            out, err = process.communicate()
            raise AssertionError(f"still running after {timeout} s: {arguments}\n{out}\n{err}") from None
        return Outcome(process.returncode, out, err)


def train(ranks: int, *arguments: str, timeout: float = 120, **extra: str) -> Outcome:
    """Run ``iwes_mpi.train`` under mpirun."""
    return run(ranks, "-m", "iwes_mpi.train", *arguments, timeout=timeout, **extra)


def program(ranks: int, name: str, *arguments: str, timeout: float = 120, **extra: str) -> Outcome:
    """Run a program of tests/programs under mpirun."""
    return run(ranks, str(PROGRAMS / name), *arguments, timeout=timeout, **extra)


def plain(name: str, *arguments: str, timeout: float = 120, given: str | None = None, **extra: str) -> Outcome:
    """Run a program of tests/programs without MPI, with `given` on its standard input."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / name), *arguments], env=environment(**extra), input=given,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def ranks_of(pid: int, python: str = sys.executable) -> list[int]:
    """The processes of `python` below the launcher `pid`: the ranks."""
    found = []
    for process in descendants(pid):
        try:
            arguments = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"iwes_mpi.train" in arguments and arguments[0] == python.encode():
            found.append(process)
    return found


def send(processes: list[int], number: int) -> None:
    """Send a signal to processes that may be gone already."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def kill_tree(pid: int) -> None:
    """Kill a launcher and everything below it."""
    send([*descendants(pid), pid], signal.SIGKILL)
