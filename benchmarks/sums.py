"""Exact sums by MPI's own Allreduce and within nodes first, side by side.

    mpirun -n 2 python benchmarks/sums.py [--sizes 896 11848 352264] [--rounds 30]
    MPIR_CVAR_NUM_CLIQUES=2 mpirun -n 4 python benchmarks/sums.py     as if on two nodes, under MPICH

Within nodes first means that the ranks of a node add up slices in the memory that they share, and their first ranks
sum over the nodes: what `World` has ranks do that share cores. Each round times one sum of each kind, in turn, from a
barrier on; shown are medians of the slowest rank's times, and their ratio. Both must give the same sums: if they do
not, the exit code is 1.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.shared_sums import SharedSums, bytes_needed
from iwes_mpi.mpi.world import World


def seconds(world: World, add: Callable[[NDArray[np.int64]], object], values: NDArray[np.int64]) -> float:
    """What one sum in place takes the slowest rank."""
    world.comm.Barrier()
    begin = time.perf_counter()
    add(values)
    return float(world.comm.allreduce(time.perf_counter() - begin, MPI.MAX))


def main() -> int:
    """Print a line for each size; 1 if the two kinds of sums differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[896, 11_848, 352_264], help="numbers of 64 bits")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    world = World()
    rank, size = world.node.rank, world.node.size
    largest = world.maximum_integer(size)
    shared = SharedSums(world.node_window(bytes_needed(size, largest) if rank == 0 else 0), rank, size, largest)
    world.publish()
    leaders = MPI.Intracomm(world.comm.Split(int(rank > 0), world.rank)) if world.n_nodes > 1 else None
    if world.is_root:
        print(
            f"{world.size} ranks on {world.n_nodes} nodes; {'numbers':>9}  {'flat [ms]':>10}  {'nodes first [ms]':>16}"
        )
    same = True
    for n in options.sizes:
        mine = np.random.default_rng((n, world.rank)).integers(-(2**40), 2**40, n)
        flat, first = mine.copy(), mine.copy()
        world.comm.Allreduce(MPI.IN_PLACE, flat, MPI.SUM)
        shared.sum(first, leaders)
        same &= bool(world.comm.allreduce(np.array_equal(flat, first), MPI.LAND))
        times = np.array([
            (
                seconds(world, lambda values: world.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM), mine.copy()),
                seconds(world, lambda values: shared.sum(values, leaders), mine.copy()),
            )
            for _ in range(options.rounds)
        ])  # fmt: skip
        if world.is_root:
            one, two = 1e3 * np.median(times, axis=0)
            print(f"{n:35,}  {one:10.3f}  {two:16.3f}  {two / one:6.2f} times", flush=True)
    if world.is_root and not same:
        print("FAIL  the two kinds of sums differ")
    world.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
