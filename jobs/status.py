"""How far the runs of a table, or of some run directories, are.

    python jobs/status.py jobs/paper.tsv          every run of the table (any table with a column run_dir)
    python jobs/status.py runs/iwes-*             run directories

=========  ===================================================================================================
done       a limit of its recorded configuration (iterations or max_env_steps) is reached
running    a Slurm job is on it; where Slurm does not answer: its log grew lately
waiting    its job is queued, or it was never started
failed     its last job failed, or its log does not read
stalled    unfinished, but nothing moves: no job (canceled, or stopped for good), or a job without a new row for
           --stall-minutes
=========  ===================================================================================================

The job of a run is known from slurm.log, which jobs/train.sbatch keeps in the run directory. A queued array element
that has not started yet belongs to the table named like the job: element n of job "paper" is row n of paper.tsv.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout, where it is not installed

from run_table import read

import iwes_mpi
from iwes_mpi.files.untrusted import Untrusted, read_bytes
from iwes_mpi.settings.printable import one_line

ROOT = Path(__file__).resolve().parent.parent
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
ENDED = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}
BROKEN = {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


@dataclass(frozen=True)
class Queue:
    """What Slurm knows: states of jobs by job id, and by (job name, array element)."""

    by_id: dict[str, str]
    by_element: dict[tuple[str, str], str]
    answers: bool


@dataclass(frozen=True)
class Row:
    """One run, as printed."""

    state: str
    iterations: int | None
    env_steps: int | None
    eval_median: float | None  # the last one
    age: float | None  # s since the log last grew
    run_dir: str
    note: str


def _ask(*command: str) -> str | None:
    """Output of a command, or None where it is missing, fails or does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def ask_slurm(job_ids: list[str]) -> Queue:
    """States of this user's queued and running jobs (squeue) and of the given ended ones (sacct)."""
    by_id: dict[str, str] = {}
    by_element: dict[tuple[str, str], str] = {}
    queue = _ask("squeue", "--me", "-h", "-r", "-o", "%A|%j|%K|%T")
    for line in (queue or "").splitlines():
        job, name, element, state = line.rsplit("|", 3) if line.count("|") == 3 else (line, "", "", "")
        by_id[job] = state
        by_element[name, element] = state
    ended = [job for job in job_ids if job not in by_id]
    if ended:
        # JobIDRaw is the id that the job itself sees, also for array elements.
        accounts = _ask("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State", "-j", ",".join(ended))
        for line in (accounts or "").splitlines():
            job, _, state = line.partition("|")
            by_id[job] = state.split()[0] if state else ""  # "CANCELLED by 1000"
    return Queue(by_id, by_element, queue is not None)


def events(run_dir: Path) -> list[list[str]]:
    """The lines of slurm.log: time, job id, event, what."""
    try:
        lines = read_bytes(run_dir / "slurm.log", 1 << 24).decode("utf-8", "replace").splitlines()
    except (OSError, Untrusted):  # not there, or nothing that the batch script has written
        return []
    return [fields for line in lines if len(fields := line.split("\t")) == 4]


def inspect(run_dir: Path, element: tuple[str, str] | None, queue: Queue, stall: float) -> Row:
    """The state of one run."""
    history = events(run_dir)
    job = history[-1][1] if history else None
    code = history[-1][3] if history and history[-1][2] == "exit" else None
    slurm = queue.by_id.get(job or "", "")
    if slurm in ("", *ENDED) and element in queue.by_element:  # submitted again: not started yet
        slurm = queue.by_element[element]
    at_work = slurm != "" and slurm not in ENDED and slurm not in QUEUED
    note = f"job {job} {slurm}".strip() if job else slurm

    iterations = env_steps = eval_median = age = None
    done, damage = False, ""
    if (run_dir / "log.h5").exists():
        try:
            run = iwes_mpi.open_run(run_dir)
            rows, done = run.iterations, run.finished
        except Exception as error:  # whatever it is, the other runs are still to be shown
            damage = " ".join(str(error).split())
        else:
            age = time.time() - (run_dir / "log.h5").stat().st_mtime
            iterations, env_steps = len(rows), run.env_steps
            medians = rows["eval_return_median"].dropna()
            eval_median = float(medians.iloc[-1]) if len(medians) else None

    fresh = age is not None and age < stall
    if damage:
        state, note = "failed", damage
    elif done:
        state = "done"
    elif slurm in QUEUED:
        state = "waiting"
    elif at_work:
        # Before its first row there is nothing to be old.
        state = "stalled" if age is not None and not fresh else "running"
    elif slurm in BROKEN or code not in (None, "0", "75"):
        state, note = "failed", f"{note}, exit code {code}" if code else note
    elif not queue.answers and fresh and code is None:
        state = "running"
    elif iterations is None and not history:
        state = "waiting"
    else:
        state, note = "stalled", f"{note}, no job is on it".strip(", ")
    shown = str(run_dir.relative_to(ROOT)) if run_dir.is_relative_to(ROOT) else str(run_dir)
    return Row(state, iterations, env_steps, eval_median, age, shown, note)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits, two digits at least: 95 s, 12 min, 30 h, 5 d."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def report(rows: list[Row]) -> str:
    """The printed table with a line of totals. What comes from files is made fit for a terminal."""
    table = [("state", "iterations", "env steps", "eval median", "last row", "run", "")]
    for row in rows:
        table.append(
            (
                row.state,
                "-" if row.iterations is None else f"{row.iterations}",
                "-" if row.env_steps is None else f"{row.env_steps:,}",
                "-" if row.eval_median is None else f"{row.eval_median:.2f}",
                "-" if row.age is None else f"{duration(max(row.age, 0))} ago",
                one_line(row.run_dir),
                one_line(row.note),
            )
        )
    widths = [max(len(line[i]) for line in table) for i in range(6)]
    left = (0, 5)
    lines = [
        "  ".join(
            [
                text.ljust(w) if i in left else text.rjust(w)
                for i, (text, w) in enumerate(zip(line, widths, strict=False))
            ]
            + [line[6]]
        ).rstrip()
        for line in table
    ]
    counts = Counter(row.state for row in rows)
    states = ("done", "running", "waiting", "failed", "stalled")
    total = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return "\n".join([*lines, f"{len(rows)} runs: {total}"])


def main() -> None:
    """Parse the command line, look at every run, print."""
    summary, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="TABLE|RUN", help="tables (.tsv) or run directories")
    parser.add_argument(
        "--stall-minutes", type=float, default=60, help="a run without a new row for so long is stalled"
    )
    arguments = parser.parse_args()

    found: list[tuple[Path, tuple[str, str] | None]] = []
    for name in arguments.runs:
        path = Path(name)
        if not path.is_file():
            found.append((path, None))
            continue
        try:
            table = read(path)
        except ValueError as error:
            parser.error(str(error))
        # As run_table.py and the batch scripts have it: relative to the repository.
        found += [(ROOT / row["run_dir"], (path.stem, str(n))) for n, row in enumerate(table, start=1)]

    queue = ask_slurm([history[-1][1] for run_dir, _ in found if (history := events(run_dir))])
    print(report([inspect(run_dir, element, queue, 60 * arguments.stall_minutes) for run_dir, element in found]))


if __name__ == "__main__":
    main()
