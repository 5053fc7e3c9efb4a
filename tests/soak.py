"""Hurt one run for hours in every way we know, then compare it with a run that was left alone.

    python tests/soak.py --hours 2 [--other PYTHON] [--seed 1] [--report soak.md]

Sessions follow each other on random numbers of ranks, with random schedules, rollouts and places for the weights, and a
quarter of them under another MPI library if --other names the Python of a virtual environment that has it. In each,
something happens at a random moment: a rank, the launcher, or all that a node runs is killed, ranks are stopped for a
while, a signal asks for a checkpoint, or the disk fills up (as root, which may mount a small one). Beside it the log is
read all the time. Every digest that was ever read, and at the end the whole log, must be those of an uninterrupted run
on one rank. Prints a report in Markdown; ends with 1 if anything went wrong.

SIGUSR1 makes it rest after the session under way, and once more go on: for when the machine must be quiet. Rest does
not count as hours.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import launch
from same_bits import assert_same_bits

from iwes_mpi import open_run

# A run that takes a moment, and whose episodes run natively or through Gymnasium
SETTINGS = [
    *("--env-id", "InvertedPendulum-v5", "--hidden-sizes", "5", "--n-pairs", "13", "--min-env-steps", "0"),
    *("--n-eval", "3", "--eval-every", "1", "--iw-updates", "2", "--min-ess", "0", "--noise-table-size", "20000"),
    *("--learning-rate", "0.02", "--sigma", "0.1", "--max-episode-steps", "20", "--display", "none"),
]
STARTING = 300.0  # s within which a session must have written a checkpoint, on a crowded machine too
ENDING = 60.0  # s within which a fault must have ended it
DISK = "64m"


@dataclass
class Fault:
    """What was done to sessions, and what came of it."""

    codes: set[int] | None  # that the session may end with; None: any but 0 and 2
    times: int = 0
    to_end: list[float] = field(default_factory=list)  # s from the fault to the session's end
    to_next: list[float] = field(default_factory=list)  # s from the fault to the next checkpoint


@dataclass
class Seen:
    """What the reader beside the run has found."""

    reads: int = 0
    digests: dict[int, int] = field(default_factory=dict)  # by iteration
    problems: list[str] = field(default_factory=list)


class Reader(threading.Thread):
    """Reads the log all the time; a digest that was seen must never be another one."""

    def __init__(self, run_dir: Path, seen: Seen):
        super().__init__(daemon=True)
        self._run_dir, self._seen, self.over = run_dir, seen, threading.Event()

    def run(self) -> None:
        """Read until `over`."""
        while not self.over.wait(0.5):
            if not (self._run_dir / "log.h5").exists():
                continue
            try:
                table = open_run(self._run_dir).iterations
                self._seen.reads += 1
                for iteration, digest in zip(table["iteration"], table["theta_digest"], strict=True):
                    known = self._seen.digests.setdefault(int(iteration), int(digest))
                    if known != int(digest):
                        self._seen.problems.append(f"iteration {iteration}: digest {digest} after {known}")
            except Exception as error:
                self._seen.problems.append(f"the log did not read: {error!r}")


def rss(processes: list[int]) -> float:
    """Resident memory of the largest of these processes, MB."""
    largest = 0
    for pid in processes:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            largest = max(largest, int(next(line for line in lines if line.startswith("VmRSS")).split()[1]))
    return largest / 1024


class Soak:
    """The run that is hurt."""

    def __init__(self, folder: Path, small_disk: bool, rng: random.Random, other: str | None):
        self.run_dir, self._ballast, self._rng = folder / "run", folder / "ballast", rng
        self._pythons = [sys.executable] * 3 + [other or sys.executable]
        self.sessions = {"MPICH": 0, "Open MPI": 0}
        self.seen = Seen()
        self.memory: list[float] = []  # MB
        self._hurt_at: tuple[str, float] | None = None
        self.faults = {
            "a rank killed": Fault(None),
            "the launcher killed": Fault(None),
            "a node lost: all its processes killed": Fault(None),
            "ranks stopped for up to 5 s": Fault(set()),
            "SIGTERM to a rank": Fault({75}),
        }
        if small_disk:
            self.faults["the disk full"] = Fault({74})

    def rows(self) -> int:
        """Rows of the log that the reader has seen."""
        return len(self.seen.digests)

    def session(self) -> None:
        """Start the run where it is, hurt it at a random moment, and see it end."""
        choose = self._rng.choice
        flags = ["--schedule", choose(["dynamic", "static"]), "--rollouts", choose(["native", "gymnasium"])]
        flags += ["--weights-on", choose(["all", "root"]), "--iterations", "none"]
        run_dir = ["--run-dir", str(self.run_dir), "--resume", "auto"]
        python = choose(self._pythons)
        self.sessions[library(python)] += 1
        before, begin = self._progress(), time.monotonic()
        with launch.started(
            choose([1, 2, 3, 4]), "-m", "iwes_mpi.train", *SETTINGS, *flags, *run_dir, output=subprocess.DEVNULL,
            python=python,
        ) as process:  # fmt: skip
            while self._progress() == before and process.poll() is None:
                if time.monotonic() - begin > STARTING:
                    self.seen.problems.append(f"no checkpoint within {STARTING} s of a start")
                    return
                time.sleep(0.05)
            if self._hurt_at is not None:
                name, at = self._hurt_at
                self.faults[name].to_next.append(time.monotonic() - at)
            self._hurt_at = None
            time.sleep(self._rng.expovariate(1 / 5))
            self.memory.append(rss(launch.ranks_of(process.pid, python)))
            while process.poll() is None:
                self._hurt(process, launch.ranks_of(process.pid, python), choose(list(self.faults)))
        if process.returncode in (0, 2):
            self.seen.problems.append(f"a session ended with {process.returncode}")

    def _progress(self) -> float:
        """When the last checkpoint was written; 0 if there is none."""
        with contextlib.suppress(OSError):
            return (self.run_dir / "checkpoint.h5").stat().st_mtime
        return 0.0

    def _hurt(self, process: subprocess.Popen[str], ranks: list[int], name: str) -> None:
        """Do one thing to a session, and hold its end to what is promised."""
        fault = self.faults[name]
        if not ranks:
            process.wait(ENDING)
            return
        fault.times += 1
        begin = time.monotonic()
        if name == "a rank killed":
            launch.send([self._rng.choice(ranks)], signal.SIGKILL)
        elif name == "the launcher killed":
            launch.send([process.pid], signal.SIGKILL)
        elif name.startswith("a node lost"):
            launch.kill_tree(process.pid)
        elif name == "SIGTERM to a rank":
            launch.send([self._rng.choice(ranks)], signal.SIGTERM)
        elif name == "the disk full":
            with open(self._ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
        else:
            stopped = self._rng.sample(ranks, self._rng.randint(1, len(ranks)))
            launch.send(stopped, signal.SIGSTOP)
            time.sleep(self._rng.uniform(0, 5))
            launch.send(stopped, signal.SIGCONT)
            return  # the run goes on: something else may befall it
        try:
            process.wait(ENDING)
            while any(Path(f"/proc/{rank}/exe").exists() for rank in ranks):  # not the dead that nobody buries
                if time.monotonic() - begin > ENDING:
                    self.seen.problems.append(f"{name}: ranks were left {ENDING} s later")
                    launch.send(ranks, signal.SIGKILL)
                    break
                time.sleep(0.1)
        except subprocess.TimeoutExpired:
            self.seen.problems.append(f"{name}: the session had not ended {ENDING} s later")
            launch.kill_tree(process.pid)
            process.wait()
        self._ballast.unlink(missing_ok=True)
        fault.to_end.append(time.monotonic() - begin)
        self._hurt_at = name, begin
        if fault.codes is not None and process.returncode not in fault.codes:
            self.seen.problems.append(f"{name}: code {process.returncode}")


@contextlib.contextmanager
def place() -> Iterator[tuple[Path, bool]]:
    """A folder for the run, on a small disk of its own if this user may mount one."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", name]
        small = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        try:
            yield Path(name), small
        finally:
            if small:
                subprocess.run(["umount", "-l", name], check=True)


def library(python: str) -> str:
    """The name of the MPI library of a virtual environment, known by its Python."""
    return "Open MPI" if launch.is_open_mpi(Path(python).parent) else "MPICH"


class Rest:
    """Whether SIGUSR1 has asked for rest, and how long it has taken so far."""

    def __init__(self) -> None:
        self._asked, self.seconds = False, 0.0
        signal.signal(signal.SIGUSR1, self._turn)

    def _turn(self, *_: object) -> None:
        self._asked = not self._asked

    def take(self) -> None:
        """Rest as long as that is asked for."""
        begin = time.monotonic()
        while self._asked:
            time.sleep(0.5)
        self.seconds += time.monotonic() - begin


def report(soak: Soak, hours: float, compared: int) -> str:
    """What happened, in Markdown."""
    under = ", ".join(f"{count} under {name}" for name, count in soak.sessions.items() if count)
    lines = [
        f"{hours:.2f} hours, {sum(soak.sessions.values())} sessions on 1 to 4 ranks ({under}), {compared} iterations",
        f"compared row by row, {soak.seen.reads} reads beside the run. Seconds are medians, and in parentheses the",
        "largest.",
        "",
        "| what was done | times | s to the end | s to the next checkpoint, restart included |",
        "| --- | --- | --- | --- |",
    ]

    def both(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({max(values):.1f})" if values else ""

    lines += [
        f"| {name} | {fault.times} | {both(fault.to_end)} | {both(fault.to_next)} |"
        for name, fault in soak.faults.items()
    ]
    third = max(1, len(soak.memory) // 3)
    if soak.memory:
        first, last = statistics.median(soak.memory[:third]), statistics.median(soak.memory[-third:])
        lines += ["", f"Memory of the largest rank: {first:.0f} MB at first, {last:.0f} MB at last (a third each)."]
    lines += ["", *(f"* {problem}" for problem in soak.seen.problems or ["Nothing went wrong."])]
    return "\n".join(lines)


def main() -> int:
    """Run the soak that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="how long to hurt the run [default 2]")
    parser.add_argument("--seed", type=int, default=1, help="of what happens when [default 1]")
    parser.add_argument(
        "--other", metavar="PYTHON", help="the Python of a virtual environment with another MPI library"
    )
    parser.add_argument("--report", type=Path, help="write the report to this file as well")
    options = parser.parse_args()
    begin = time.monotonic()
    with place() as (folder, small), tempfile.TemporaryDirectory(prefix="soak-reference-") as reference:
        soak, rest = Soak(folder, small, random.Random(options.seed), options.other), Rest()
        reader, said = Reader(soak.run_dir, soak.seen), 0
        reader.start()
        while time.monotonic() - begin - rest.seconds < 3600 * options.hours and len(soak.seen.problems) < 20:
            soak.session()
            under = ", ".join(f"{count} {name}" for name, count in soak.sessions.items())
            problems = soak.seen.problems[said:]
            print(f"{under} sessions, {soak.rows()} iterations", *problems, sep="\n  ", file=sys.stderr)
            said += len(problems)
            rest.take()
        hours = (time.monotonic() - begin - rest.seconds) / 3600
        limit = open_run(soak.run_dir).checkpoint.state.iteration + 1
        limits = ["--iterations", str(limit), "--run-dir"]
        resumed = launch.train(2, "--resume", *limits, str(soak.run_dir), timeout=600)
        whole = launch.train(1, *SETTINGS, *limits, f"{reference}/run", timeout=3600 * max(1.0, options.hours))
        reader.over.set()
        reader.join()
        if (resumed.code, whole.code) != (0, 0):
            soak.seen.problems.append(f"the ends of the runs: {resumed} {whole}")
        try:
            assert_same_bits(soak.run_dir, Path(reference) / "run")
        except AssertionError as error:
            soak.seen.problems.append(f"the logs differ: {error}")
        table = open_run(Path(reference) / "run").iterations
        for iteration, digest in zip(table["iteration"], table["theta_digest"], strict=True):
            if soak.seen.digests.get(int(iteration), int(digest)) != int(digest):
                soak.seen.problems.append(f"iteration {iteration}: a digest that was read is not the reference's")
        text = report(soak, hours, len(table))
    print(text)
    if options.report is not None:
        options.report.write_text(text + "\n")
    return 1 if soak.seen.problems else 0


if __name__ == "__main__":
    sys.exit(main())
