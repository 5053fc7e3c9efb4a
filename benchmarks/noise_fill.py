"""How long the noise table takes to fill: all ranks together against one rank filling its share alone.

    python benchmarks/noise_fill.py [--ranks 1 2] [--size 250000000] [--rounds 5]

In each round rank 0 first fills 1/ranks of the table while the others sleep, then all ranks fill the whole, each time
into fresh shared memory, so that the kernel's first touch of every page is part of it. What sharing costs, contention
for memory and for the page tables, is the ratio of the two; 1.12 is allowed. Beside the wall clock stands the CPU
time, user and system, of the slowest rank: on a machine with other work only that is sound, and it decides the exit
code: 1 where more is taken than is allowed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

ALLOWED = 1.12


def fill(world: Any, size: int, everyone: bool) -> tuple[float, float]:
    """Fill a table of `size` numbers by all ranks of the node, or by its first; (wall, CPU) s of the slowest."""
    from iwes_mpi.method.noise import NoiseTable
    from iwes_mpi.mpi.group import alone

    table = NoiseTable.__new__(NoiseTable)
    table.values = world.node_array(size, "f4")
    world.node.rest_until_all()
    wall, cpu = time.perf_counter(), time.process_time()
    if everyone:
        table._fill(world, 0)
    elif world.is_root:
        table._fill(SimpleNamespace(node=alone()), 0)  # type: ignore[arg-type]
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    world.node.rest_until_all()
    del table
    world.close()
    return world.maximum(seconds[0]), world.maximum(seconds[1])


def _as_rank(size: int, rounds: int) -> None:
    from iwes_mpi.mpi.launch import launch
    from iwes_mpi.mpi.world import World

    def main(world: World) -> int:
        share = size // world.size
        fill(world, 1 << 20, True)
        pairs = [(fill(world, share, False), fill(world, size, True)) for _ in range(rounds)]
        if world.is_root:
            print(f"{world.size:5}  {share:11,}", end="")
            ratios = []
            for which in (0, 1):
                one, all_ = (median(pair[side][which] for pair in pairs) for side in (0, 1))
                ratios.append(median(pair[1][which] / pair[0][which] for pair in pairs))
                print(f"  {one:9.2f}  {all_:9.2f}  {ratios[-1]:5.2f}", end="")
            print(f"  {1e9 * median(pair[0][1] for pair in pairs) / share:7.2f}", flush=True)
            return int(ratios[1] > ALLOWED)
        return 0

    launch(main)


def main() -> int:
    """Print a line per number of ranks; 1 if one of them takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=250_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{'ranks':>5}  {'share':>11}  {'wall one':>9}  {'wall all':>9}  ratio  {'CPU one':>9}  {'CPU all':>9}  ratio",
        end="",
    )
    print("  ns each   (s; the slowest rank)", flush=True)
    failed = 0
    for ranks in options.ranks:
        mpirun = Path(sys.executable).parent / "mpirun"
        arguments = ["--as-rank", str(options.size), str(options.rounds)]
        command = [mpirun, "-n", str(ranks), sys.executable, __file__, *arguments]
        failed |= subprocess.run(command, env=os.environ, check=False).returncode
    return min(failed, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        _as_rank(int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main())
