"""``python -m iwes_mpi.supervise -- mpirun -n 8 python -m iwes_mpi.train …``: start a run again whenever it breaks.

It needs no MPI, and knows of the run what its directory tells. Under Slurm, jobs/train.sbatch does the same by the
same rule, and keeps the same count in the same file.
"""

import contextlib
import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.wrong_input import WrongInput

FINAL = {0, 2, 74, 75}  # finished, wrong input, nowhere to write, stopped on request: starting again would not help
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
RESTARTS = 3  # without one more completed iteration, as MAX_STALLS of jobs/train.sbatch
_GRACE = 5.0  # s in which ranks end by themselves, once their launcher has ended or was asked to
_LOG = "log.h5"
_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class Stalls:
    """Counts restarts in a row without one more completed iteration, in ``RUN_DIR/stalls`` as jobs/train.sbatch does.

    The file holds two numbers: the iterations completed at the last restart, and the count. One that is damaged counts
    for none; where it cannot be written, the count is in memory alone.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / "stalls"
        self._before, self._count = 0, 0
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"(\d{1,15}) (\d{1,15})\n?", self._path.read_text("latin-1"), re.ASCII)
            if found:
                self._before, self._count = int(found[1]), int(found[2])

    def count(self, completed: int) -> int:
        """Count a restart after so many completed iterations; returns how many in a row were without a further one."""
        self._count = 0 if completed > self._before else self._count + 1
        self._before = completed
        draft = self._path.with_name("stalls.new")
        with contextlib.suppress(OSError):
            draft.write_text(f"{completed} {self._count}\n")
            os.replace(draft, self._path)
        return self._count

    def forget(self) -> None:
        """Begin anew the next time."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def completed(run_dir: Path) -> int:
    """Completed iterations of a run; 0 if there is no log that reads.

    Another process looks, so that a damaged log or a file server that does not answer cannot end or hold up this one.
    """
    if not (run_dir / _LOG).exists():
        return 0
    look = "import pathlib, sys; from iwes_mpi.files.reader import completed_iterations as count; "
    look += "print(count(pathlib.Path(sys.argv[1])))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", look, str(run_dir / _LOG)], capture_output=True, text=True, timeout=60, check=True
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


# -- the command -------------------------------------------------------------------------------------------------


def run_dir_of(command: Sequence[str]) -> Path:
    """The run directory that a command names. Raises WrongInput if it names none."""
    found = None
    for i, word in enumerate(command):
        if word == "--run-dir" and i + 1 < len(command):
            found = command[i + 1]
        elif word.startswith("--run-dir="):
            found = word.partition("=")[2]
    if not found:
        raise WrongInput("--run-dir", "must be in the command, which is to be continued in that directory")
    return Path(found)


def resuming(command: Sequence[str]) -> list[str]:
    """The command with ``--resume auto`` in place of any other ``--resume``: a run may break before it has begun."""
    words, kept = list(command), []
    while words:
        word = words.pop(0)
        if word == "--resume":
            if words and words[0] in ("always", "auto"):
                words.pop(0)
        elif not word.startswith("--resume="):
            kept.append(word)
    return [*kept, "--resume", "auto"]


def described(code: int) -> str:
    """An exit code, with the signal that it stands for: its number and 128, or its number alone with some launchers."""
    number = code - 128 if code > 128 else code
    crashes = {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV}
    known = number in set(signal.Signals) if code > 128 else number in crashes
    return f"code {code} ({signal.Signals(number).name})" if known else f"code {code}"


# -- processes ---------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """The living processes started by `pid`, and by those, and so on; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text("latin-1").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue = [child for process in queue for child in children.get(process, [])]
        found += queue
    return found


def end_what_is_left() -> None:
    """Return when nothing of the last run is left: a launcher that was killed may leave ranks, which hold the lock."""
    deadline = time.monotonic() + _GRACE
    while left := descendants(os.getpid()):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # bury the dead
            pass


class Supervisor:
    """Runs a command until it ends in a way that starting it again would not change.

    Parameters
    ----------
    command : sequence of str
    restarts : int
        So many in a row may bring no further iteration.
    patience : float
        Seconds without news in the log after which the run is ended and started again; infinite for never.

    Raises
    ------
    WrongInput
        If the command names no run directory.
    """

    def __init__(self, command: Sequence[str], restarts: int, patience: float):
        self._command, self._restarts, self._patience = list(command), restarts, patience
        self._run_dir = run_dir_of(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: signal.Signals | None = None  # to stop

    def run(self) -> int:
        """Run the command as often as needed; returns the exit code of the last time."""
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._pass_on)
        if sys.platform == "linux":  # ranks whose launcher dies become children of this process
            ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)
        stalls, command, restart = Stalls(self._run_dir), self._command, 0
        while True:
            if self._asked is not None:
                return 128 + self._asked
            code, why = self._once(command)
            end_what_is_left()
            if code == 0:
                stalls.forget()
            if code in FINAL or self._asked is not None:
                return code
            iterations = completed(self._run_dir)
            why = f"{why} after {iterations} completed iterations"
            if stalls.count(iterations) > self._restarts:
                stalls.forget()
                self._say(f"{why}; no further one after {self._restarts} restarts (--restarts), not started again")
                return code
            restart += 1
            self._say(f"{why}; restart {restart}")
            command = resuming(self._command)

    def _once(self, command: list[str]) -> tuple[int, str]:
        """Run a command to its end; returns its exit code, and in words how it ended."""
        try:
            # Not in this process's group: the terminal's Ctrl-C would reach it twice.
            self._process = process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise WrongInput("command", f"{command[0]} cannot be run: {error.strerror}") from None
        if self._asked is not None:  # while it was started
            process.send_signal(self._asked)
        hung = self._wait(process)
        self._process = None
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        if not hung:
            return code, f"ended with {described(code)}"
        return 128 + signal.SIGKILL, f"no news in the log for {self._patience / 60:g} min (--patience), ended"

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end of a process; returns whether it was ended here, for want of news."""
        if math.isinf(self._patience):
            process.wait()
            return False
        news, since = self._stamp(), time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, self._patience / 4))
                return False
            if (now := self._stamp()) != news:
                news, since = now, time.monotonic()
            if time.monotonic() - since > self._patience:
                break
        process.terminate()  # so that a launcher can end ranks on other hosts too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        process.kill()
        process.wait()
        return True

    def _stamp(self) -> tuple[int, int] | None:
        """What changes whenever the log does."""
        try:
            found = os.stat(self._run_dir / _LOG)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: it asks the run to stop."""
        self._asked = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(number)

    @staticmethod
    def _say(text: str) -> None:
        print(f"iwes_mpi.supervise: {text}", file=sys.stderr, flush=True)


# -- the program -------------------------------------------------------------------------------------------------


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.supervise``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.supervise",
        usage="python -m iwes_mpi.supervise [--restarts N] [--patience X] -- COMMAND --run-dir RUN ...",
        description="Run a command, such as mpirun -n 8 python -m iwes_mpi.train --run-dir RUN, and start it again at "
        "once with --resume auto whenever it is killed, crashes or fails. Signals are passed on. It ends with the "
        "command's last exit code: after 0, 2, 74 and 75, after a signal that asked it to stop, and when restarts "
        "bring no further iteration.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--restarts", type=int, default=RESTARTS, metavar="N",
        help=f"give up after so many restarts in a row without one more completed iteration [default {RESTARTS}]",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, default=math.inf, metavar="X",
        help="end the run and start it again when its log has had no news for so many minutes [min; default never]",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Supervise the command of a command line; returns the exit code. Raises WrongInput if it is wrong."""
    before, _, command = _parted(argv)
    options = build_parser().parse_args(before)
    if options.restarts < 0:
        raise WrongInput("restarts", f"must be at least 0, got {options.restarts}")
    if not options.patience > 0:
        raise WrongInput("patience", f"must be more than 0, got {options.patience}")
    if not command:
        raise WrongInput("command", "is missing; it follows --, as in: -- mpirun -n 8 python -m iwes_mpi.train ...")
    return Supervisor(command, options.restarts, 60 * options.patience).run()


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What stands before and after the first ``--``."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place : place + 1], words[place + 1 :]


def run() -> NoReturn:
    """Supervise what the command line says, and end the process with the exit code."""
    run_without_mpi("iwes_mpi.supervise", build_parser, main)


if __name__ == "__main__":
    run()
