"""How long ranks wait for each other under either schedule, in real MPI, with episodes that sleep instead of compute.

    python benchmarks/scheduling.py [--ranks 48] [--nodes 4] [--kinds mixed early] [--unit 0.0015] [--out DIR]

Each rank is a process of its own that runs `iwes_mpi.train` as it is; only the environment is a stand-in, whose one
step sleeps ``unit`` seconds per step of the episode it stands for and returns the number of steps. So 48 ranks run
truly side by side on two cores, as if on ``--nodes`` nodes (MPICH can pretend that). Episodes are "mixed" (40 % last
1,000 steps, the others are exponential around 200, as halfway through learning) or "early" (all exponential around 200,
at most 1,000), 14 per rank and 30 to evaluate. Or they are "mirrored": as early, but the shorter a pair's first member,
the longer the second one, as on Hopper. The first iteration does not know that, and does not count.

Shown is the idle share, ``time_idle`` over the sum of all phases in the run's log; the same over rollouts and waiting
alone, since exchanges between many ranks on two cores take turns; and the share that perfect clocks would give: the
same episodes handed out by `model.spans`. With more ranks than cores, a rank that polls for messages takes the core
of one that would wake up; so `World.barrier` waits asleep then, MPI is told to give its core away at every poll of
other exchanges, and an episode sleeps long against the scheduler's time slices. ``--out`` keeps the runs, for
``scaling.py --check``. The exit code is 1 if the dynamic schedule is idle for more than `ALLOWED`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED = {"mixed": 0.10, "early": 0.21, "mirrored": 0.21}  # idle shares under the dynamic schedule

EPISODES_PER_RANK, EVALUATIONS = 14, 30


def settings(run_dir: Path, ranks: int, kind: str, schedule: str, unit: float, iterations: int) -> list[str]:
    """The command line of one run."""
    return [
        *("--env-id", "sleeper:Sleeper-v0", "--env-kwargs", f'{{"kind": "{kind}", "unit": {unit}}}'),
        *("--n-pairs", str(EPISODES_PER_RANK * ranks // 2), "--min-env-steps", "0", "--n-eval", str(EVALUATIONS)),
        *("--eval-every", "1"),
        *("--iterations", str(iterations), "--schedule", schedule, "--run-dir", str(run_dir), "--display", "none"),
        *("--noise-table-size", "1000000", "--log-population", "--hidden-sizes", "--action-noise", "0"),
        *(("--common-random-numbers", "--learning-rate", "1e-9") if kind == "mirrored" else ()),
    ]


def run(
    ranks: int, nodes: int, kinds: list[str], schedules: list[str], unit: float, iterations: int, out: Path
) -> None:
    """Run all cases one after the other in one job of `ranks` ranks: OUT/KIND-SCHEDULE-RANKS each."""
    variables = os.environ | {
        "MPIR_CVAR_NUM_CLIQUES": str(nodes),
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    mpirun = Path(sys.executable).parent / "mpirun"
    cases = [
        argument
        for kind in kinds
        for schedule in schedules
        for argument in (*settings(out / f"{kind}-{schedule}-{ranks}", ranks, kind, schedule, unit, iterations), "--")
    ]
    subprocess.run([mpirun, "-n", str(ranks), sys.executable, __file__, "--as-rank", *cases], env=variables, check=True)


def _as_rank(arguments: list[str]) -> None:
    """What each rank does: the training runs whose command lines are given, each ended by ``--``."""
    from iwes_mpi.mpi.launch import launch
    from iwes_mpi.mpi.world import World
    from iwes_mpi.train import train

    def main(world: World) -> int:
        case: list[str] = []
        for argument in arguments:
            if argument == "--":
                if code := train(world, case):
                    return code
                case = []
            else:
                case.append(argument)
        return 0

    launch(main)


def idle_shares(run_dir: Path) -> tuple[float, float]:
    """The idle share of all phases' time, and of rollouts and waiting alone; medians over a run's iterations."""
    from iwes_mpi import open_run

    table = open_run(run_dir).iterations[int("mirrored" in run_dir.name) :]
    idle = table["time_idle"]
    shares = idle / table.filter(like="time_").sum(axis=1), idle / (idle + table["time_rollouts"])
    return float(shares[0].median()), float(shares[1].median())


def main() -> int:
    """Run the cases and print the idle shares; 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[48])
    parser.add_argument("--nodes", type=int, default=4, help="into so many the machine is made to look split [4]")
    parser.add_argument("--kinds", nargs="+", default=[*ALLOWED], choices=[*ALLOWED])
    parser.add_argument("--schedules", nargs="+", default=["dynamic", "static"], choices=["dynamic", "static"])
    parser.add_argument("--unit", type=float, default=0.0015, help="seconds of sleep per step [0.0015]")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the runs in this directory")
    options = parser.parse_args()
    from model import of_run

    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        shares = f"{'idle share':>10}  {'of rollouts':>11}  {'perfect clocks':>14}"
        print(f"{'ranks':>5}  {'episodes':8}  {'schedule':8}  {shares}")
        for ranks in options.ranks:
            nodes = min(options.nodes, ranks)
            run(ranks, nodes, options.kinds, options.schedules, options.unit, options.iterations, out)
            for kind in options.kinds:
                for schedule in options.schedules:
                    run_dir = out / f"{kind}-{schedule}-{ranks}"
                    of_all, of_rollouts = idle_shares(run_dir)
                    seconds = -int(kind == "mirrored")
                    ideal = 1 - of_run(run_dir, "returns").busy_share(
                        ranks, schedule, -(-ranks // nodes), seconds=seconds
                    )
                    figures = f"{of_all:10.3f}  {of_rollouts:11.3f}  {ideal:14.3f}"
                    print(f"{ranks:5}  {kind:8}  {schedule:8}  {figures}", flush=True)
                    failed |= schedule == "dynamic" and of_all > ALLOWED[kind]
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        _as_rank(sys.argv[2:])
    sys.exit(main())
