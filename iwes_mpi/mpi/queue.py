"""Work queues: who runs which episode."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World


class WorkQueue:
    """Hands out the items of lists of work, under either schedule the same items over all ranks together.

    Once a stop is pending an iterator ends early.

    Nodes always take static slices. Under "dynamic" the ranks of a node take single items from a counter in the
    node's shared memory, by an atomic fetch-and-add that involves no other rank; under "static" each rank has a
    slice of its own. Creating one is collective. Each rank must exhaust every iterator it takes, and all ranks must
    have done so before one takes the next: the counter goes on from where they left it.

    Parameters
    ----------
    world : World
    schedule : "dynamic" or "static"
    stop : StopFlag
    """

    def __init__(self, world: World, schedule: Literal["dynamic", "static"], stop: StopFlag):
        self._world, self._stop = world, stop
        self._counter: MPI.Win | None = None
        if schedule == "dynamic":
            self._counter = world.node_window(8 if world.node.rank == 0 else 0)
            if world.node.rank == 0:
                np.asarray(self._counter.Shared_query(0)[0]).view(np.int64)[:] = 0
            world.publish()
        self.begun = 0.0  # the share of the items in hand that this rank's node, or the rank, had begun before its last
        self._taken = 0  # what the counter stands at once all ranks of the node have exhausted their iterators

    def items(self, *lengths: int) -> Iterator[tuple[int, int]]:
        """Items of several lists, the first list's first, as pairs (list, item)."""
        world = self._world
        if self._counter is None:
            shares = [world.share(length) for length in lengths]
            begun, total = 0, sum(map(len, shares))
            for which, share in enumerate(shares):
                for item in share:
                    if self._stop.pending():
                        return
                    self.begun = begun / total
                    begun += 1
                    yield which, item
            return
        mine = [world.node_share(length) for length in lengths]
        total = sum(map(len, mine))
        base = self._taken
        self._taken += total + world.node.size  # each rank learns that the work is done from one number too many
        one, position = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        while not self._stop.pending():
            self._counter.Fetch_and_op(one, position, 0, 0, MPI.SUM)
            self._counter.Flush(0)
            offset = int(position[0]) - base
            if offset >= total:
                return
            self.begun = offset / total
            for which, share in enumerate(mine):
                if offset < len(share):
                    yield which, share[offset]
                    break
                offset -= len(share)
