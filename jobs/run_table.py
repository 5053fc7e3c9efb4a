"""Carry out the runs of a table on this machine: python jobs/run_table.py jobs/scaled.tsv --parallel 2.

Each row is one run by mpirun with its own directory; a run that is there already is continued, a finished one is left
as it is. Ctrl-C writes checkpoints: the same command goes on from them. On a cluster, jobs/paper.sbatch does this.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_FLAGS = ("figure", "run_dir")


def flags(row: dict[str, str]) -> list[str]:
    """A row's settings on the command line of iwes_mpi.train."""
    return [
        part for name, value in row.items() if name not in NOT_FLAGS for part in (f"--{name.replace('_', '-')}", value)
    ]


def choose(table: Path, figures: list[str] | None) -> list[dict[str, str]]:
    """The rows of a table that belong to these figures; by default all.

    Raises
    ------
    ValueError
        If the table cannot be read or is none of runs, or has no rows of a figure.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows or any(None in row or None in row.values() or not set(NOT_FLAGS) <= row.keys() for row in rows):
        raise ValueError(f"{table} is not a table of runs, like jobs/scaled.tsv")
    known = dict.fromkeys(row["figure"] for row in rows)
    for name in figures or ():
        if name not in known:
            raise ValueError(f"--figure: {table} has no {name}, only {', '.join(known)}")
    return [row for row in rows if not figures or row["figure"] in figures]


def launch(mpirun: str) -> list[str]:
    """The start of a run's command line, such that runs at a time share this machine's cores."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    # Open MPI would bind the first ranks of every run to the same cores
    return [mpirun, "--bind-to", "none"] if "Open MPI" in version else [mpirun]


def main() -> int:
    """Run every chosen row; 0 if all came to their end, 2 if the command line is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a table such as jobs/scaled.tsv")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time [default 1]")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks of each run [default 1]")
    parser.add_argument("--figure", nargs="*", metavar="NAME", help="only the rows of these figures [default all]")
    arguments, further = parser.parse_known_args()
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        parser.error("there is no mpirun on the path")
    try:
        for name, value in (("parallel", arguments.parallel), ("ranks", arguments.ranks)):
            if value < 1:
                raise ValueError(f"--{name}: must be at least 1, got {value}")
        rows = choose(arguments.table, arguments.figure)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    launcher = launch(mpirun)

    def run(row: dict[str, str]) -> int:
        command = [*launcher, "-n", str(arguments.ranks), sys.executable, "-m", "iwes_mpi.train"]
        command += [*flags(row), *further]
        command += ["--run-dir", row["run_dir"], "--resume", "auto", "--display", "none"]
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{row['run_dir']}: exit code {code} after {time.monotonic() - start:.0f} s", flush=True)
        return code

    with ThreadPoolExecutor(arguments.parallel) as pool:
        try:
            codes = list(pool.map(run, rows))
        except KeyboardInterrupt:  # the runs got the signal too
            pool.shutdown(cancel_futures=True)
            return 75
    print(f"{len(codes)} runs, {codes.count(0)} finished")
    return 0 if not any(codes) else 1


if __name__ == "__main__":
    sys.exit(main())
