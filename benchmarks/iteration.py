"""Share of an iteration that goes into importance weights and updates, from a real run's own log.

    python benchmarks/iteration.py [--ranks 2] [--pairs-per-rank 7] [--preset paper-ant-512] [--iw-updates 5]

Trains the paper's Ant with 512 hidden units for a few iterations under mpirun, with K = 5 (six updates from each
population) and as few pairs per rank as the paper had: 5,000 on 720 cores are 7. Fewer pairs make the updates, whose
cost does not depend on them, the larger share. The times are the columns ``time_*`` of the log, means over the ranks;
the first iteration is left out. What ``wall_time`` says beyond them was spent in no phase.

Two shares are shown, medians over the iterations: of weights and updates alone, and of these with communication and
what is in no phase; both of the time without waiting for other ranks (idle), which on a shared machine is mostly
other programs' doing and would flatter the figures. Exits with 1 if they exceed `ALONE` and `WITH_COMM`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from iwes_mpi import open_run
from iwes_mpi.method.phases import Phase

ALONE, WITH_COMM = 0.015, 0.03
PHASES = tuple(Phase)


def train(options: argparse.Namespace, run_dir: str) -> None:
    """Run the training program; its exit code must be 0."""
    launcher = Path(sys.executable).with_name("mpirun")
    arguments = {
        "--preset": options.preset,
        "--n-pairs": options.ranks * options.pairs_per_rank,
        "--iw-updates": options.iw_updates,
        "--n-eval": 0,
        "--iterations": options.iterations + 1,
        "--noise-table-size": options.table_size,
        "--run-dir": run_dir,
        "--display": "none",
    }
    command = [str(launcher) if launcher.exists() else "mpirun", "-n", str(options.ranks)]
    command += [sys.executable, "-m", "iwes_mpi.train", *(str(x) for pair in arguments.items() for x in pair)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, timeout=options.timeout)


def main() -> int:
    """Run, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs-per-rank", type=int, default=7)
    parser.add_argument("--preset", default="paper-ant-512")
    parser.add_argument("--iw-updates", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=8, help="that count, after a first one that does not")
    parser.add_argument("--table-size", type=int, default=250_000_000)
    parser.add_argument("--timeout", type=float, default=900, help="s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        train(options, f"{directory}/run")
        run = open_run(f"{directory}/run")
        iterations, updates = run.iterations.iloc[1:], run.updates
        wall = run.iterations["wall_time"].diff().iloc[1:]
    made = iterations["updates"].to_numpy()
    if (made != options.iw_updates + 1).any():
        print(f"FAIL  iterations made {made.tolist()} updates, not {options.iw_updates + 1}: nothing to measure")
        return 1
    times = iterations[[f"time_{name}" for name in PHASES]].rename(columns=lambda name: name.removeprefix("time_"))
    times["none"] = (wall - times.sum(axis=1)).clip(lower=0.0)
    total = times.sum(axis=1)
    steps = iterations["episode_length_mean"] * 2 * options.pairs_per_rank
    print(f"\n{len(times)} iterations of {steps.median():.0f} environment steps per rank and {made[0]} updates")
    print(f"  {'':12}{'s, median':>12}{'share':>10}")
    for name in times.columns:
        print(f"  {name:12}{times[name].median():12.4f}{(times[name] / total).median():10.2%}")
    mine = times["weights"] + times["update"]
    kl = updates["kl"].iloc[-1]
    print(
        f"  one update takes {1e3 * mine.median() / made[0]:.1f} ms; KL of the last one from the population: {kl:.1f}"
    )
    work = total - times["idle"]
    alone, all_in = (mine / work).median(), ((mine + times["comm"] + times["none"]) / work).median()
    verdicts = [
        (alone <= ALONE, f"weights and updates take {alone:.2%} of an iteration's work (at most {ALONE:.1%})"),
        (all_in <= WITH_COMM, f"with communication and what is in no phase {all_in:.2%} (at most {WITH_COMM:.1%})"),
    ]
    print()
    for passed, text in verdicts:
        print(f"{'PASS' if passed else 'FAIL'}  {text}")
    return 0 if all(passed for passed, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
