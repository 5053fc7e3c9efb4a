"""Work queues: who runs which episode."""

import math
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World

RESERVE = 0.25  # of the work, the end of it, belongs to no node from the start
SERVES_FROM = 0.8  # of its node's own part, rank 0 runs no more episodes but hands out the reserve
FEWEST_RANKS = 32  # over several nodes; with fewer, doing without rank 0 costs more than the reserve gains

_ASK, _LEAVE = 0, 1  # what a node's rank tells rank 0


class WorkQueue:
    """Hands out the items of lists of work, under either schedule the same items over all ranks together.

    Once a stop is pending an iterator ends early.

    Under "static" each rank has a slice of its own. Under "dynamic" each node has a part of its own: of every
    ``world.size`` items in a row, as many as it has ranks. Its ranks take single items from a counter in the node's
    shared memory, by an atomic fetch-and-add that involves no other rank. With several nodes and many ranks the last
    quarter of the items is a reserve. A node that has done its own part asks rank 0 for some of it, for fewer the less
    there is left, so that all nodes finish together; see `_Reserve`. Nothing of this enters results.

    Creating one is collective. Each rank must exhaust every iterator it takes, and all ranks must have done so before
    one takes the next.

    Parameters
    ----------
    world : World
    schedule : "dynamic" or "static"
    stop : StopFlag
    capacity : int
        The most items that the reserve has room for.
    fewest_ranks : int or None
        From how many ranks on there is a reserve; by default `FEWEST_RANKS`.
    """

    def __init__(
        self,
        world: World,
        schedule: Literal["dynamic", "static"],
        stop: StopFlag,
        capacity: int = 0,
        fewest_ranks: int | None = None,
    ):
        self._world, self._stop = world, stop
        self._round = 0
        self._static = schedule == "static"
        self._reserve: _Reserve | None = None
        if not self._static:
            self._counters = _Counters(world, 2)
            if world.n_nodes > 1 and world.size >= (FEWEST_RANKS if fewest_ranks is None else fewest_ranks):
                self._reserve = _Reserve(world, stop, capacity)

    def items(self, *lengths: int) -> Iterator[tuple[int, int]]:
        """Items of several lists, the first list's first, as pairs (list, item)."""
        for item in self._slices(lengths) if self._static else self._items(sum(lengths)):
            which = 0
            while item >= lengths[which]:
                item -= lengths[which]
                which += 1
            yield which, item

    def _slices(self, lengths: tuple[int, ...]) -> Iterator[int]:
        """This rank's slice of each list, counted through all lists."""
        first = 0
        for length in lengths:
            for item in self._world.share(length):
                if self._stop.pending():
                    return
                yield first + item
            first += length

    def _items(self, total: int) -> Iterator[int]:
        """Items from the node's counter, then from the reserve."""
        world, reserve = self._world, self._reserve
        # Two counters in turn: nobody uses the other one now, since all have finished the last iterators.
        mine, other = self._round % 2, (self._round + 1) % 2
        self._round += 1
        if world.node.rank == 0:
            self._counters[other] = 0
        held_back = 0 if reserve is None else reserve.begin(total)
        own = world.node_turns(total - held_back)
        last_turn = math.inf
        if held_back and world.is_root:
            last_turn = SERVES_FROM * own if world.node.size > 1 else own  # the rest is for others of the node
        while not self._stop.pending() and self._counters[mine] < last_turn:
            turn = self._counters.add_one(mine)
            if turn < own:
                yield world.node_turn(turn)
                continue
            item = reserve.take(turn - own) if reserve is not None and held_back else None
            if item is None:
                break
            yield item
        if reserve is not None and held_back:
            if world.is_root:
                reserve.serve()
            else:
                reserve.leave()


class _Counters:
    """Integers that a node's ranks share. Creating some is collective on the node.

    Parameters
    ----------
    world : World
    n : int
        How many, all zero at first.
    """

    def __init__(self, world: World, n: int):
        self._window = world.node_window(8 * n if world.node.rank == 0 else 0)
        self._values: NDArray[np.int64] = np.asarray(self._window.Shared_query(0)[0]).view(np.int64)
        if world.node.rank == 0:
            self._values[:] = 0
        world.publish()
        self._one, self._before = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def __getitem__(self, which: int) -> int:
        return int(self._values[which])

    def __setitem__(self, which: int, value: int) -> None:
        self._values[which] = value

    def add_one(self, which: int) -> int:
        """Add one, by an atomic fetch-and-add that involves no other rank; returns the value before."""
        self._window.Fetch_and_op(self._one, self._before, 0, 8 * which, MPI.SUM)
        self._window.Flush(0)
        return int(self._before[0])


class _Reserve:
    """Items at the end of the work that nodes get from rank 0 when they have done their own part.

    Rank 0 runs no episodes meanwhile, so that it answers at once. Were it in the midst of an episode, the answer would
    come an episode late, which is what is to be saved; so would an access to its memory, over a network that needs the
    owner's help for that.

    A node's ranks number what they want. What each number stands for is written into the node's shared memory by the
    rank that asked rank 0 for it: the one whose number is the first that nobody has asked for yet. An answer covers the
    numbers after it too. When a node's last rank has left, it says so, and rank 0 has nothing more to wait for; no
    message is left under way, also after a stop.

    Parameters
    ----------
    world : World
    stop : StopFlag
    capacity : int
    """

    def __init__(self, world: World, stop: StopFlag, capacity: int):
        self._world, self._stop, self._capacity = world, stop, capacity
        self._comm = world.comm.Dup()
        self._memory = world.node_array(2 * (capacity + 1), np.int64)  # two rounds, as in `WorkQueue._items`
        if world.node.rank == 0:
            self._memory[:] = 0
        world.publish()
        self._left = _Counters(world, 2)  # ranks of the node that have no more to ask
        self._round = self._mine = 0
        self._granted: NDArray[np.int64] = self._memory[:1]  # how many numbers of this round stand for something
        self._stands_for: NDArray[np.int64] = self._memory[1:1]  # one more than an item; 0 for none
        self._next = self._end = 0  # rank 0's: the items that are left

    def begin(self, total: int) -> int:
        """Start on new work; returns how many of the items, the last ones, are in the reserve."""
        self._mine, other = self._round % 2, (self._round + 1) % 2
        self._round += 1
        rounds = np.split(self._memory, 2)
        if self._world.node.rank == 0:
            rounds[other][:] = 0
            self._left[other] = 0
        self._granted, self._stands_for = rounds[self._mine][:1], rounds[self._mine][1:]
        held_back = min(int(RESERVE * total), self._capacity)
        self._next, self._end = total - held_back, total
        return held_back

    def take(self, number: int) -> int | None:
        """The item that one of the node's numbers stands for; None if there are no more, or a stop is pending."""
        pause = _Pause()
        while not self._stop.pending():
            self._world.sync()
            granted = int(self._granted[0])
            if number < granted:
                found = int(self._stands_for[number]) if number < self._stands_for.size else 0
                return found - 1 if found else None
            if number == granted:
                self._ask(number)
            else:
                pause()
        return None

    def _ask(self, number: int) -> None:
        """Get items from rank 0 for this number and some after it."""
        given = np.zeros(2, dtype=np.int64)  # first item, how many
        answer = self._comm.Irecv(given, 0)
        self._comm.Send(np.array([_ASK]), 0)
        pause = _Pause()
        while not answer.Test():
            pause()
        first, n = given.tolist()
        self._stands_for[number : number + n] = np.arange(first + 1, first + n + 1)
        self._world.sync()
        self._granted[0] = number + n if n else np.iinfo(np.int64).max
        self._world.sync()

    def leave(self) -> None:
        """This rank, which is not rank 0, will ask no more in this round."""
        others = self._world.node.size - (self._world.node_index == 0)  # than rank 0
        if self._left.add_one(self._mine) + 1 == others:
            self._comm.Send(np.array([_LEAVE]), 0)

    def serve(self) -> None:
        """As rank 0, answer until every node has left. After a stop nothing is given any more."""
        nodes, status, pause, wish = self._world.n_nodes, MPI.Status(), _Pause(), np.array([_ASK])
        asking = nodes if self._world.node.size > 1 else nodes - 1  # rank 0 alone on its node: nobody there asks
        while asking:
            if not self._comm.Iprobe(status=status):
                pause()
                continue
            pause = _Pause()
            self._comm.Recv(wish, status.source)
            if wish[0] == _LEAVE:
                asking -= 1
                continue
            left = 0 if self._stop.pending() else self._end - self._next
            n = min(left, max(1, left // (2 * nodes)))
            self._comm.Send(np.array([self._next, n]), status.source)
            self._next += n


class _Pause:
    """Sleeps, longer each time, up to half a millisecond: who waits must not take a core from who works."""

    def __init__(self) -> None:
        self._seconds = 2e-5

    def __call__(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(5e-4, 1.5 * self._seconds)
