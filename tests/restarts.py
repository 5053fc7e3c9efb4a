"""How long a fault holds a run up, when ``iwes_mpi.supervise`` starts it again.

    python tests/restarts.py [--rounds 5] [--ranks 2]

One run is hurt again and again, at random moments: a rank is killed, has a segmentation fault, or gets no more memory
(the kernel's out-of-memory killer ends it; this needs root and control groups of version 1, and is left out elsewhere),
or the launcher is killed. Shown, as a table in Markdown, is how long after the fault ranks run again, and the first
iteration is complete that was not before it. At the end all digests must be those of a run on one rank that nobody
disturbed; the exit code is 1 if one differs.
"""

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import launch

from iwes_mpi import open_run

SETTINGS = shlex.split(
    "--env-id HalfCheetah-v5 --n-pairs 16 --train-episode-steps 200 --min-env-steps 0 --noise-table-size 10000000 "
    "--checkpoint-every 1 --display none"
)
GROUPS = Path("/sys/fs/cgroup/memory")


def kill(rank: int, launcher: int) -> None:
    """End a rank from outside."""
    os.kill(rank, signal.SIGKILL)


def segfault(rank: int, launcher: int) -> None:
    """End a rank as an access to memory that is not its own does."""
    os.kill(rank, signal.SIGSEGV)


def kill_launcher(rank: int, launcher: int) -> None:
    """End mpirun; its ranks have to notice."""
    os.kill(launcher, signal.SIGKILL)


def no_memory(rank: int, launcher: int) -> None:
    """Let a rank have no page of memory more than it has."""
    group = GROUPS / f"iwes-restarts-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("65536")
    (group / "cgroup.procs").write_text(str(rank))


FAULTS: dict[str, Callable[[int, int], None]] = {
    "a rank is killed": kill,
    "a rank has a segmentation fault": segfault,
    "a rank gets no more memory": no_memory,
    "the launcher is killed": kill_launcher,
}


def rows(run_dir: Path) -> int:
    """Complete iterations; 0 while the log is being replaced."""
    with contextlib.suppress(Exception):
        return len(open_run(run_dir).iterations)
    return 0


def wait_for(what: Callable[[], object], limit: float = 120.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit:g} s")
        time.sleep(0.02)


def ended(process: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def launcher_of(rank: int, supervisor: int) -> int:
    """The child of the supervisor that a rank is under."""
    process = rank
    while True:
        parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        if parent == supervisor:
            return process
        process = parent


def held_up(supervisor: int, run_dir: Path, fault: Callable[[int, int], None]) -> tuple[float, float]:
    """Seconds from a fault to new ranks, and to the next iteration."""
    start = rows(run_dir)
    wait_for(lambda: rows(run_dir) > start + 3)
    time.sleep(random.uniform(0, 1))
    before = launch.ranks_of(supervisor)
    rank = before[-1]
    launcher = launcher_of(rank, supervisor)
    fault(rank, launcher)
    wait_for(lambda: ended(rank) or ended(launcher))  # lack of memory may show a moment later
    begin, complete = time.monotonic(), rows(run_dir)
    wait_for(lambda: set(launch.ranks_of(supervisor)) - set(before))
    again = time.monotonic() - begin
    wait_for(lambda: rows(run_dir) > complete)
    return again, time.monotonic() - begin


@contextlib.contextmanager
def supervised(ranks: int, run_dir: Path) -> Iterator[int]:
    """A run that is started again when it breaks; gives the process that does so."""
    command = [sys.executable, "-m", "iwes_mpi.supervise", "--"]
    command += launch.command(ranks, "-m", "iwes_mpi.train", *SETTINGS, "--run-dir", str(run_dir))
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=launch.environment(), stdout=quiet, stderr=quiet) as process:
        try:
            wait_for(lambda: rows(run_dir))
            yield process.pid
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            launch.kill_tree(process.pid)


def main() -> int:
    """Print the table; 1 if a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each fault")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    faults = [*FAULTS] * options.rounds
    if os.geteuid() or not (GROUPS / "memory.limit_in_bytes").exists():
        print("left out: a rank that gets no more memory", file=sys.stderr)
        faults = [name for name in faults if FAULTS[name] is not no_memory]
    random.shuffle(faults)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_dir, alone = Path(folder) / "run", Path(folder) / "alone"
        with supervised(options.ranks, run_dir) as supervisor:
            for name in faults:
                found.setdefault(name, []).append(held_up(supervisor, run_dir, FAULTS[name]))
                print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.1f} s", file=sys.stderr, flush=True)
        digests = open_run(run_dir).iterations["theta_digest"].to_list()
        arguments = [*SETTINGS, "--iterations", str(len(digests)), "--run-dir", str(alone)]
        whole = launch.train(1, *arguments, timeout=3600)
        assert whole.code == 0, whole.err
        same = digests == open_run(alone).iterations["theta_digest"].to_list()
    for group in GROUPS.glob(f"iwes-restarts-{os.getpid()}"):
        group.rmdir()
    print("| fault | ranks started again after [s] | next iteration after [s] |\n| --- | --- | --- |")
    for name in filter(found.get, FAULTS):
        columns = (f"{median(column):.1f} (at most {max(column):.1f})" for column in zip(*found[name], strict=True))
        print(f"| {name} | {' | '.join(columns)} |")
    print(f"{len(digests)} iterations, {len(faults)} faults: {'the same bits' if same else 'OTHER BITS'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
