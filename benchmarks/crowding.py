"""What ranks that share cores lose: the same iterations on more ranks than cores, and on as many ranks as cores.

    python benchmarks/crowding.py [--ranks 8] [--cores 2] [--units 512] [--rounds 3]

Trains Ant-v5 with 512×512 units, so that each exact sum has 2.6 MB, and short episodes: on `--ranks` ranks and on
`--cores` ranks in turn, all on the first `--cores` cores, with the same pairs. Shown is how long an iteration takes on
the many ranks, as a multiple of the few ranks' time; the median over the rounds, each from the median iteration of its
two runs (the first of each does not count). The exit code is 1 if it is more than `LIMIT`.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from iwes_mpi import open_run

LIMIT = 2.0  # times the work
SETTINGS = shlex.split(
    "--env-id Ant-v5 --n-pairs 16 --min-env-steps 0 --n-eval 0 --iw-updates 2 --min-ess 0 --learning-rate 1e-5 "
    "--noise-table-size 5000000 --train-episode-steps 50 --display none --iterations 6"
)


def seconds(ranks: int, options: argparse.Namespace) -> float:
    """Seconds per iteration on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [
            mpirun,
            "-n",
            str(ranks),
            sys.executable,
            "-m",
            "iwes_mpi.train",
            *SETTINGS,
            "--run-dir",
            f"{folder}/run",
        ]
        command += ["--hidden-sizes", str(options.units), str(options.units)]
        variables = os.environ | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
        subprocess.run(command, env=variables, check=True, timeout=options.timeout, stdout=subprocess.DEVNULL)
        return float(open_run(f"{folder}/run").iterations["wall_time"].diff().median())


def main() -> int:
    """Print the figure; 1 if it is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, help="s of a run")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # the runs inherit it
    found = []
    for _ in range(options.rounds):
        many, few = seconds(options.ranks, options), seconds(options.cores, options)
        print(f"{options.ranks} ranks {many:.3f} s, {options.cores} ranks {few:.3f} s an iteration", flush=True)
        found.append(many / few)
    ratio = median(found)
    verdict = "PASS" if ratio <= LIMIT else "FAIL"
    print(
        f"{verdict}  {options.ranks} ranks on {options.cores} cores take {ratio:.2f} times as long as {options.cores} "
        f"(at most {LIMIT:g})"
    )
    return 0 if verdict == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
