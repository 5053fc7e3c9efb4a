"""Does it learn? Quickstart with several seeds, and IW-ES against ES at equal environment steps.

    mpirun is called for each run, on all cores:

        python benchmarks/learning.py quickstart --seeds 0 1 2 3 4 5 6 7 8 9
        python benchmarks/learning.py iwes --env-steps 10e6 --updates 0 2

Prints each run's evaluation medians along the way. Exits with 1 if IW-ES does not end above ES, or if quickstart does
not reach an evaluation median of 3,000 within ten seconds of training in the median over seeds. Seconds of training are
those after the first iteration: before it, code is compiled or loaded. Runs are kept in --out, and continued if they
are there already.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

import iwes_mpi

BIN = Path(sys.executable).parent
TARGET = 3000.0
SECONDS = 10.0  # of training to the target
LOW_RATE = [
    *("--env-id", "HalfCheetah-v5", "--hidden-sizes", "16", "16", "--n-pairs", "200", "--min-env-steps", "0"),
    *("--learning-rate", "5e-4", "--sigma", "0.02", "--n-eval", "10", "--noise-table-size", "25000000"),
]


def train(run_dir: Path, ranks: int, settings: list[str]) -> pd.DataFrame:
    """Train to the end, and return the iterations in which the policy was evaluated."""
    command = [BIN / "mpirun", "-n", str(ranks), sys.executable, "-m", "iwes_mpi.train", *settings]
    subprocess.run([*command, "--run-dir", run_dir, "--resume", "auto", "--display", "none"], check=True)
    return iwes_mpi.open_run(run_dir).iterations.dropna(subset=["eval_return_median"])


def show(name: str, rows: pd.DataFrame) -> None:
    """Print what a run reached after each sixth of its environment steps."""
    marks = rows.iloc[[round((len(rows) - 1) * k / 6) for k in range(7)]]
    steps = "  ".join(
        f"{s / 1e6:.2f}M: {m:.0f}" for s, m in zip(marks["env_steps"], marks["eval_return_median"], strict=True)
    )
    print(f"{name}  {steps}  ({rows['wall_time'].iloc[-1]:.0f} s)", flush=True)


def quickstart(arguments: argparse.Namespace) -> bool:
    """Whether the median seed's evaluation median reaches the target in time."""
    seconds = []
    for seed in arguments.seeds:
        run_dir = arguments.out / f"quickstart-{seed}"
        rows = train(run_dir, arguments.ranks, ["--preset", "quickstart", "--seed", str(seed)])
        show(f"quickstart seed {seed}", rows)
        above = rows[rows["eval_return_median"] >= TARGET]
        if above.empty:
            print(f"  never reached {TARGET:.0f}")
            seconds.append(math.inf)
        else:
            first, begin = above.iloc[0], iwes_mpi.open_run(run_dir).iterations["wall_time"].iloc[0]
            seconds.append(float(first["wall_time"] - begin))
            print(f"  {TARGET:.0f} after {first['env_steps'] / 1e6:.2f}M steps, {seconds[-1]:.1f} s of training")
    median = statistics.median(seconds)
    every = " ".join(f"{s:.1f}" for s in seconds)
    print(f"median of {len(seconds)} seeds: {median:.1f} s (at most {SECONDS:g}); all: {every}")
    return median <= SECONDS


def iwes(arguments: argparse.Namespace) -> bool:
    """Whether the most updates per population end above the fewest."""
    last = []
    for updates in sorted(arguments.updates):
        settings = [*LOW_RATE, "--iw-updates", str(updates), "--max-env-steps", str(int(arguments.env_steps))]
        run_dir = arguments.out / f"k{updates}"
        rows = train(run_dir, arguments.ranks, settings)
        show(f"K = {updates}", rows)
        ess = iwes_mpi.open_run(run_dir).updates.groupby("k")["ess"].mean()
        print("  mean ESS by k: " + "  ".join(f"{k}: {value:.3f}" for k, value in ess.items()))
        last.append(rows["eval_return_median"].iloc[-1])
    return bool(last[-1] > last[0])


def main() -> int:
    """Run the chosen experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("quickstart", "iwes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--env-steps", type=float, default=10e6)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 2], metavar="K")
    parser.add_argument("--ranks", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    arguments = parser.parse_args()
    passed = quickstart(arguments) if arguments.experiment == "quickstart" else iwes(arguments)
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
