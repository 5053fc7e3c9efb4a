"""Carry out the runs of a table on this machine: python jobs/run_table.py jobs/scaled.tsv --parallel 2.

Each row is one run by mpirun with its own directory; a run that is there already is continued, a finished one is left
as it is. Ctrl-C writes checkpoints: the same command goes on from them. On a cluster, jobs/table.sbatch does this.

A table's columns are separated by tabs. run_dir is needed; figure, if there is one, is a name for a group of rows;
every other column is a setting. Paths in a table are relative to the repository, wherever you are.
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
    """A row's settings on the command line of iwes_mpi.train; `true` and `false` become --setting and --no-setting."""
    found = []
    for name, value in row.items():
        if name not in NOT_FLAGS:
            flag = name.replace("_", "-")
            found += {"true": [f"--{flag}"], "false": [f"--no-{flag}"]}.get(value, [f"--{flag}", value])
    return found


def read(table: Path) -> list[dict[str, str]]:
    """The rows of a table of runs, by column.

    Raises
    ------
    ValueError
        If it cannot be read, lacks the column run_dir, or a row is not whole; naming what is wrong.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            names, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if "run_dir" not in names:
        raise ValueError(f"{table} has no column run_dir, only {', '.join(filter(None, names)) or 'nothing'}")
    if not rows:
        raise ValueError(f"{table} has no rows")
    for n, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"{table}: row {n} has more values than there are columns ({len(names)})")
        if missing := [name for name in names if row[name] is None]:
            raise ValueError(f"{table}: row {n} has no {missing[0]}")
    return rows


def choose(
    rows: list[dict[str, str]], table: Path, figures: list[str] | None, names: list[str] | None
) -> list[dict[str, str]]:
    """Those of a table's rows that belong to some figures, or whose runs have some names; by default all.

    Raises
    ------
    ValueError
        If there are none of a figure, or none of a name.
    """
    if figures and "figure" not in rows[0]:
        raise ValueError(f"--figure: {table} has no column figure")
    known = dict.fromkeys(row.get("figure", "") for row in rows)
    for figure in figures or ():
        if figure not in known:
            raise ValueError(f"--figure: {table} has no {figure}, only {', '.join(known)}")
    chosen = [row for row in rows if not figures or row["figure"] in figures]
    called = [{row["run_dir"], Path(row["run_dir"]).name} for row in chosen]
    for name in names or ():
        if not any(name in names for names in called):
            raise ValueError(f"--run: {table} has no run {name}")
    return [row for row, mine in zip(chosen, called, strict=True) if not names or mine & set(names)]


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
    parser.add_argument("--run", nargs="*", metavar="NAME", help="only these runs, by run_dir or its last part")
    arguments, further = parser.parse_known_args()
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        parser.error("there is no mpirun on the path")
    try:
        for name, value in (("parallel", arguments.parallel), ("ranks", arguments.ranks)):
            if value < 1:
                raise ValueError(f"--{name}: must be at least 1, got {value}")
        rows = choose(read(arguments.table), arguments.table, arguments.figure, arguments.run)
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
