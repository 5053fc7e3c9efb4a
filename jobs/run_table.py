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
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
NOT_FLAGS = ("figure", "run_dir")


def flags(row: dict[str, str]) -> list[str]:
    """A row's settings on the command line of iwes_mpi.train."""
    return [
        part for name, value in row.items() if name not in NOT_FLAGS for part in (f"--{name.replace('_', '-')}", value)
    ]


def launch(mpirun: str) -> list[str]:
    """The start of a run's command line, such that runs at a time share this machine's cores."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    # Open MPI would bind the first ranks of every run to the same cores
    return [mpirun, "--bind-to", "none"] if "Open MPI" in version else [mpirun]


def main() -> int:
    """Run every chosen row; 0 if all came to their end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a table such as jobs/scaled.tsv")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time [default 1]")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks of each run [default 1]")
    parser.add_argument("--figure", nargs="*", metavar="NAME", help="only the rows of these figures [default all]")
    arguments, further = parser.parse_known_args()
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        parser.error("there is no mpirun on the path")
    with arguments.table.open(newline="", encoding="utf-8") as file:
        rows = [
            r for r in csv.DictReader(file, delimiter="\t") if not arguments.figure or r["figure"] in arguments.figure
        ]
    launcher = launch(mpirun)
    environment = dict(os.environ) | dict.fromkeys(THREADS, "1")

    def run(row: dict[str, str]) -> int:
        command = [*launcher, "-n", str(arguments.ranks), sys.executable, "-m", "iwes_mpi.train"]
        command += [*flags(row), *further]
        command += ["--run-dir", row["run_dir"], "--resume", "auto", "--display", "none"]
        start = time.monotonic()
        code = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
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
