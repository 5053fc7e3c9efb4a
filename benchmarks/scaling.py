"""Time per iteration and efficiency at 1 to 100,000 ranks: a discrete-event model of this program.

    python benchmarks/scaling.py RUN [--latency 2e-6] [--bandwidth 10e9] [--ranks-per-node 48] [--ranks 1 48 720 …]
                                     [--schedule dynamic] [--weights-on all] [--iw-updates 5] [--weak]
    python benchmarks/scaling.py --simulate     busy shares of 720 ranks: static slices, queues of pairs, of episodes
    python benchmarks/scaling.py --check DIR    against the runs that benchmarks/scheduling.py --out DIR has kept

RUN is a run with ``--log-population``. What the model knows of it, and reckons with, is in benchmarks/model.py.

``--check`` replays the very episodes of sleeping runs at several numbers of ranks with one figure measured, the
seconds per step of the run with the fewest ranks, and fails unless each run's rollouts and waiting agree to 10 %.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from model import Machine, grown, of_run, predict, simulated

from iwes_mpi import open_run

TOLERANCE = 0.10


def simulate() -> None:
    """Print the busy shares of 720 ranks in nodes of 48 with 10,080 episodes."""
    print(f"{'episodes':8}  {'static slices':>13}  {'queue of pairs':>14}  {'queue of episodes':>17}")
    for kind in ("mixed", "early"):
        work = simulated(kind, 5040, 0)
        shares = [work.busy_share(720, schedule, 48, repeats=10) for schedule in ("static", "pairs", "dynamic")]
        print(f"{kind:8}  {shares[0]:13.2f}  {shares[1]:14.2f}  {shares[2]:17.2f}")


def check(folder: Path) -> bool:
    """Compare the model with the sleeping runs in a folder; whether all agree."""
    runs: list[tuple[int, str, Any, Path]] = sorted(
        (int(found[3]), found[1], found[2], path)
        for path in folder.iterdir()
        if (found := re.fullmatch(r"(mixed|early)-(dynamic|static)-(\d+)", path.name))
    )
    if not runs:
        sys.exit(f"{folder} holds no runs of benchmarks/scheduling.py")
    step = of_run(runs[0][3], "returns").step
    good = True
    print(f"seconds per step: {step:.6f}, from the run with {runs[0][0]} ranks")
    print(
        f"{'ranks':>5}  {'episodes':8}  {'schedule':8}  {'measured s':>10}  {'model s':>8}  {'error':>6}  {'comm':>7}"
    )
    for ranks, kind, schedule, path in runs:
        workload = replace(of_run(path, "returns"), step=step)
        table = open_run(path).iterations
        measured = float((table["time_rollouts"] + table["time_idle"]).mean())
        predicted = predict(workload, Machine(ranks), ranks, schedule, repeats=len(table) * 10)
        model = predicted.rollouts + predicted.idle
        error = model / measured - 1
        good &= abs(error) <= TOLERANCE
        comm = float(table["time_comm"].mean()) / measured
        print(f"{ranks:5}  {kind:8}  {schedule:8}  {measured:10.2f}  {model:8.2f}  {error:+6.1%}  {comm:7.1%}")
    print("all within 10 %" if good else "NOT all within 10 %")
    return good


def main() -> None:
    """Print predictions, the simulation, or the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="directory of a run with --log-population")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--check", type=Path, metavar="DIR")
    parser.add_argument("--lengths", choices=["lengths", "returns"], default="lengths")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 48, 96, 720, 2880, 10_000, 30_000, 100_000])
    parser.add_argument("--ranks-per-node", type=int, default=48)
    parser.add_argument("--latency", type=float, default=2e-6, help="s per message [2e-6]")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="bytes/s of a node [10e9]")
    parser.add_argument("--schedule", nargs="+", choices=["dynamic", "static", "pairs"], default=["dynamic", "static"])
    parser.add_argument("--weights-on", nargs="+", choices=["all", "node", "root"], default=["all", "node"])
    parser.add_argument("--iw-updates", type=int, nargs="+", metavar="K", default=[0, 5])
    parser.add_argument("--n-pairs", type=int, help="pairs per iteration [as in the run]")
    parser.add_argument("--weak", action="store_true", help="pairs grow with ranks: 7 per rank")
    options = parser.parse_args()
    if options.simulate:
        return simulate()
    if options.check is not None:
        sys.exit(0 if check(options.check) else 1)
    if options.run is None:
        parser.error("a run directory, --simulate or --check is needed")
    machine = Machine(options.ranks_per_node, options.latency, options.bandwidth)
    base = of_run(options.run, options.lengths)
    print("seconds per iteration, mean over ranks")
    head = ("ranks", "schedule", "weights", "K", "time", "rollouts", "idle", "weights", "comm", "update", "efficiency")
    print("{:>7} {:>8} {:>7} {:>2} {:>10} {:>10} {:>8} {:>9} {:>8} {:>8} {:>10}".format(*head))
    for iw_updates in options.iw_updates:
        for weights_on in options.weights_on:
            for schedule in options.schedule:
                for ranks in options.ranks:
                    n_pairs = 7 * ranks if options.weak else options.n_pairs or base.n_pairs
                    work = base if n_pairs == base.n_pairs else grown(base, n_pairs / base.n_pairs)
                    p = predict(work, machine, ranks, schedule, weights_on, iw_updates, repeats=3)
                    print(
                        f"{ranks:7} {schedule:>8} {weights_on:>7} {iw_updates:2} {p.time:10.4f} {p.rollouts:10.4f} "
                        f"{p.idle:8.4f} {p.weights:9.5f} {p.comm:8.5f} {p.update:8.5f} {p.efficiency:10.1%}",
                        flush=True,
                    )
    return None


if __name__ == "__main__":
    main()
