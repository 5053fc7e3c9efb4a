"""Time per iteration and efficiency at 1 to 100,000 ranks: a discrete-event model of this program.

    python benchmarks/scaling.py RUN [--latency 2e-6] [--bandwidth 10e9] [--ranks-per-node 48] [--ranks 1 48 720 …]
                                     [--schedule dynamic] [--weights-on all] [--iw-updates 5] [--weak]
    python benchmarks/scaling.py --simulate     busy shares of 720 ranks under several schedules
    python benchmarks/scaling.py --simulate RUN     the same with the lengths of RUN's populations
    python benchmarks/scaling.py --check DIR    against the runs that benchmarks/scheduling.py --out DIR has kept

RUN is a run with ``--log-population``. What the model knows of it, and reckons with, is in benchmarks/model.py.

``--simulate`` shows the static schedule; a queue per node, of pairs and of episodes; and the dynamic schedule, whose
queues share a reserve, with the episodes as they come ("plain") and with second members by how long the first was, if
that tells anything, which is what this program does. Then what it does not do: one queue over all nodes, with the
episodes as they come, with second members by how short the first was; and longest first, as who knew all lengths
could. It fails if the dynamic schedule keeps ranks less busy than `BUSY`, whose last line is for pairs whose lengths
hang together as on Hopper, and otherwise as "early".

``--check`` replays the very episodes of sleeping runs at several numbers of ranks, but not of mirrored ones, with one
figure measured, the seconds per step of the run with the fewest ranks. It fails unless each run's rollouts and waiting
agree to `TOLERANCE`, and weights with updates, and communication, to `OTHERS` of the run's time per iteration. What the
weights of a pair and an update cost is from the run with the fewest ranks too. Messages are those of a machine whose
ranks are processes on one node; where ranks share cores they take turns, which no model here knows of, so `OTHERS` is
wide.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from model import Machine, grown, longest_first, of_run, predict, second_by_first, simulated

from iwes_mpi import open_run
from iwes_mpi.method.es import tendency

TOLERANCE, OTHERS = 0.08, 0.10
BUSY = {"mixed": 0.92, "early": 0.775, "mirrored": 0.80}  # least busy shares of 720 ranks


def simulate(run: str | None) -> bool:
    """Print the busy shares of 720 ranks in nodes of 48 with 10,080 episodes; whether they are as they should."""
    works = {kind: simulated(kind, 5040, 0) for kind in BUSY}
    if run is not None:
        logged = of_run(run)
        works = {
            f"row {row}": grown(replace(logged, lengths=logged.lengths[row : row + 1], n_eval=0), 5040 / logged.n_pairs)
            for row in range(len(logged.lengths))
        }
    heads = ("static", "pairs", "nodes", "plain", "dynamic", "one queue", "second by first", "longest first")
    print(f"{'episodes':8}  " + "  ".join(f"{head:>{max(7, len(head))}}" for head in heads))
    good = True
    for kind, work in works.items():
        shares = [work.busy_share(720, schedule, 48, 10) for schedule in ("static", "pairs", "nodes", "dynamic")]
        sign = tendency(work.lengths[0])
        shares.append(work.busy_share(720, "dynamic", 48, 10, seconds=sign) if sign else shares[-1])
        orders = [work.busy_share(720, "nodes", 720, 10, order) for order in (None, second_by_first, longest_first)]
        print(
            f"{kind:8}  "
            + "  ".join(
                f"{share:{max(7, len(head))}.3f}" for share, head in zip((*shares, *orders), heads, strict=True)
            )
        )
        good &= shares[-1] >= BUSY.get(kind, 0.0)
    return good


def check(folder: Path) -> bool:
    """Compare the model with the sleeping runs in a folder; whether all agree."""
    runs: list[tuple[int, str, Any, Path]] = sorted(
        (int(found[3]), found[1], found[2], path)
        for path in folder.iterdir()
        if (found := re.fullmatch(r"(mixed|early)-(dynamic|static)-(\d+)", path.name))
    )
    if not runs:
        sys.exit(f"{folder} holds no runs of benchmarks/scheduling.py")
    fewest = of_run(runs[0][3], "returns")
    good = True
    print(f"seconds per step: {fewest.step:.6f}, from the run with {runs[0][0]} ranks")
    print(
        f"{'ranks':>5}  {'episodes':8}  {'schedule':8}  {'measured s':>10}  {'model s':>8}  {'error':>6}"
        f"  {'weights':>8}  {'model':>8}  {'comm':>8}  {'model':>8}"
    )
    for ranks, kind, schedule, path in runs:
        workload = replace(of_run(path, "returns"), step=fewest.step, weights=fewest.weights, update=fewest.update)
        run = open_run(path)
        table = run.iterations
        measured = float((table["time_rollouts"] + table["time_idle"]).mean())
        whole = float(table.filter(like="time_").sum(axis=1).mean())
        machine = Machine(-(-ranks // int(run.attrs["nodes"])))
        predicted = predict(workload, machine, ranks, schedule, repeats=len(table) * 10)
        model = predicted.rollouts + predicted.idle
        error = model / measured - 1
        weights = float((table["time_weights"] + table["time_update"]).mean())
        comm = float(table["time_comm"].mean())
        good &= abs(error) <= TOLERANCE
        good &= abs(weights - predicted.weights - predicted.update) <= OTHERS * whole
        good &= abs(comm - predicted.comm) <= OTHERS * whole
        print(
            f"{ranks:5}  {kind:8}  {schedule:8}  {measured:10.2f}  {model:8.2f}  {error:+6.1%}"
            f"  {weights:8.4f}  {predicted.weights + predicted.update:8.4f}  {comm:8.4f}  {predicted.comm:8.4f}"
        )
    print(f"{'all' if good else 'NOT all'} within {TOLERANCE:.0%}, weights and comm within {OTHERS:.0%} of the whole")
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
    parser.add_argument(
        "--schedule", nargs="+", choices=["dynamic", "static", "nodes", "pairs"], default=["dynamic", "static"]
    )
    parser.add_argument("--weights-on", nargs="+", choices=["all", "node", "root"], default=["all", "node"])
    parser.add_argument("--iw-updates", type=int, nargs="+", metavar="K", default=[0, 5])
    parser.add_argument("--n-pairs", type=int, help="pairs per iteration [as in the run]")
    parser.add_argument("--weak", action="store_true", help="pairs grow with ranks: 7 per rank")
    options = parser.parse_args()
    if options.simulate:
        sys.exit(0 if simulate(options.run) else 1)
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


if __name__ == "__main__":
    main()
