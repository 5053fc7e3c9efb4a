"""Work queues: who runs which episode."""

import math
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World

RESERVE = 0.25  # of the work, the end of it, belongs to no node from the start
SERVES_FROM = 0.8  # of its node's own part, rank 0 runs no more episodes but hands out the reserve
FEWEST_RANKS = 32  # over several nodes; with fewer, doing without rank 0 costs more than the reserve gains

_ASK, _LEAVE = 0, 1  # what a node's rank tells rank 0


class Seconds(NamedTuple):
    """In which order the second members of pairs are begun, which is by how long the first members were.

    An episode that is begun last and lasts long leaves all ranks waiting but one.
    """

    lengths: NDArray[np.int64]  # (n_pairs, 2); whoever runs a first member enters its length before the next item
    sign: int  # 1 if long first members have long second ones, so that these are begun first; -1 the other way round


class WorkQueue:
    """Hands out the items of lists of work, under either schedule the same items over all ranks together.

    Once a stop is pending an iterator ends early.

    Under "static" each rank has a slice of its own. Under "dynamic" each node has a part of its own: of every
    ``world.size`` items in a row, as many as it has ranks. Its ranks take single items from a counter in the node's
    shared memory, by an atomic fetch-and-add that involves no other rank. With several nodes and many ranks the last
    quarter of the items is a reserve. A node that has done its own part asks rank 0 for some of it, for fewer the less
    there is left, so that all nodes finish together; see `_Reserve`. Where second members are to be begun in an order,
    they are the reserve, also on a single node. Nothing of this enters results.

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
            if (
                world.size >= (FEWEST_RANKS if fewest_ranks is None else fewest_ranks)
                or 1 == world.n_nodes < world.size
            ):
                self._reserve = _Reserve(world, stop, capacity)

    def items(self, *lengths: int, seconds: Seconds | None = None) -> Iterator[tuple[int, int]]:
        """Items of several lists, the first list's first, as pairs (list, item).

        With `seconds` the last list's items are members of pairs, both of each pair in a row. Under the dynamic
        schedule first members then come before second ones, and these in that order as far as lengths are known.
        """
        if seconds is not None and self._reserve is not None:
            yield from self._members(sum(lengths[:-1]), seconds, self._reserve, lengths)
            return
        for item in self._slices(lengths) if self._static else self._items(sum(lengths), None):
            yield _place(item, lengths)

    def _members(
        self, before: int, seconds: Seconds, reserve: "_Reserve", lengths: tuple[int, ...]
    ) -> Iterator[tuple[int, int]]:
        """Items of all lists, where after the first `before` all first members are counted, then all second ones."""
        n_pairs = len(seconds.lengths)
        for item in self._items(before + 2 * n_pairs, seconds):
            if item < before:
                yield _place(item, lengths)
                continue
            second, pair = divmod(item - before, n_pairs)
            yield len(lengths) - 1, 2 * pair + second
            if not second:
                reserve.learn(pair, int(seconds.lengths[pair, 0]))

    def _slices(self, lengths: tuple[int, ...]) -> Iterator[int]:
        """This rank's slice of each list, counted through all lists."""
        first = 0
        for length in lengths:
            for item in self._world.share(length):
                if self._stop.pending():
                    return
                yield first + item
            first += length

    def _items(self, total: int, seconds: Seconds | None) -> Iterator[int]:
        """Items from the node's counter, then from the reserve."""
        world, reserve = self._world, self._reserve
        # Two counters in turn: nobody uses the other one now, since all have finished the last iterators.
        mine, other = self._round % 2, (self._round + 1) % 2
        self._round += 1
        if world.node.rank == 0:
            self._counters[other] = 0
        held_back = 0 if reserve is None else reserve.begin(total, seconds)
        own = world.node_turns(total - held_back)
        last_turn = math.inf
        if held_back and world.is_root and world.n_nodes > 1:
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
        if reserve is not None and held_back and world.n_nodes > 1:
            if world.is_root:
                reserve.serve()
            else:
                reserve.leave()


def _place(item: int, lengths: tuple[int, ...]) -> tuple[int, int]:
    """The list, and the item in it, of an item that is counted through all lists."""
    which = 0
    while item >= lengths[which]:
        item -= lengths[which]
        which += 1
    return which, item


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
    owner's help for that. A single node asks nobody: what is left is in its own memory.

    A node's ranks number what they want. What each number stands for is written into the node's shared memory by the
    rank that asked for it: the one whose number is the first that nobody has asked for yet. An answer covers the
    numbers after it too. When a node's last rank has left, it says so, and rank 0 has nothing more to wait for; no
    message is left under way, also after a stop.

    If the items are second members to be begun in an order, the lengths of first members travel with what is asked.

    Parameters
    ----------
    world : World
    stop : StopFlag
    capacity : int
    """

    def __init__(self, world: World, stop: StopFlag, capacity: int):
        self._world, self._stop, self._capacity = world, stop, capacity
        self._comm = world.comm.Dup()
        self._alone = world.n_nodes == 1
        self._largest = max(1, capacity // 2 // (2 * world.n_nodes))  # grant
        self._memory = world.node_array(2 * (capacity + 1 + capacity // 2), np.int64)  # two rounds, as in `_items`
        if world.node.rank == 0:
            self._memory[:] = 0
        world.publish()
        self._left = _Counters(world, 2)  # ranks of the node that have no more to ask
        self._round = self._mine = 0
        self._granted: NDArray[np.int64] = self._memory[:1]  # how many numbers of this round stand for something
        self._stands_for: NDArray[np.int64] = self._memory[1:1]  # one more than an item; 0 for none
        self._firsts: NDArray[np.int64] = self._memory[1:1]  # lengths of first members; 0: unknown, negative: told
        self._choice = Choice(0, 0, None)  # rank 0's; on a single node everybody's

    def begin(self, total: int, seconds: Seconds | None) -> int:
        """Start on new work; returns how many of the items, the last ones, are in the reserve."""
        self._mine, other = self._round % 2, (self._round + 1) % 2
        self._round += 1
        rounds = np.split(self._memory, 2)
        if self._world.node.rank == 0:
            rounds[other][:] = 0
            self._left[other] = 0
        memory = rounds[self._mine]
        self._granted, self._stands_for, self._firsts = np.split(memory, [1, 1 + self._capacity])
        if seconds is not None:
            held_back = len(seconds.lengths)
        else:
            held_back = 0 if self._alone else min(int(RESERVE * total), self._capacity // 2)
        self._choice = Choice(total - held_back, held_back, None if seconds is None else seconds.sign)
        return held_back

    def learn(self, pair: int, length: int) -> None:
        """This rank has run the first member of a pair."""
        self._firsts[pair] = length

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
        """Get items for this number and some after it."""
        given = self._own_share(number) if self._alone else self._from_rank_0()
        n = given.size
        self._stands_for[number : number + n] = given + 1
        self._world.sync()
        self._granted[0] = number + n if n else np.iinfo(np.int64).max
        self._world.sync()

    def _own_share(self, number: int) -> NDArray[np.int64]:
        """Items of a single node."""
        self._choice.drop(self._stands_for[:number] - 1)
        firsts = self._firsts.copy()  # other ranks go on writing
        pairs = np.flatnonzero(firsts)
        self._choice.learn(pairs, np.abs(firsts[pairs]))
        return self._choice.take(2)

    def _from_rank_0(self) -> NDArray[np.int64]:
        """Items from rank 0, which is told what the node knows."""
        given, status, pause = np.zeros(self._largest, dtype=np.int64), MPI.Status(), _Pause()
        answer = self._comm.Irecv(given, 0)
        self._comm.Send(np.concatenate([[_ASK], *self._news()]), 0)
        while not answer.Test(status):
            pause()
        return given[: status.Get_count(MPI.INT64_T)]

    def _news(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs whose first members have been run since this was last asked, and their lengths."""
        pairs = np.flatnonzero(self._firsts > 0)
        lengths = self._firsts[pairs]
        self._firsts[pairs] = -lengths
        return pairs, lengths

    def leave(self) -> None:
        """This rank, which is not rank 0, will ask no more in this round."""
        others = self._world.node.size - (self._world.node_index == 0)  # than rank 0
        if self._left.add_one(self._mine) + 1 == others:
            self._comm.Send(np.array([_LEAVE]), 0)

    def serve(self) -> None:
        """As rank 0, answer until every node has left. After a stop nothing is given any more."""
        nodes, status, pause = self._world.n_nodes, MPI.Status(), _Pause()
        asking = nodes if self._world.node.size > 1 else nodes - 1  # rank 0 alone on its node: nobody there asks
        if self._world.node.size == 1:
            self._choice.learn(*self._news())
        while asking:
            if not self._comm.Iprobe(status=status):
                pause()
                continue
            pause = _Pause()
            message = np.empty(status.Get_count(MPI.INT64_T), dtype=np.int64)
            self._comm.Recv(message, status.source)
            if message[0] == _LEAVE:
                asking -= 1
                continue
            self._choice.learn(*np.split(message[1:], 2))
            given = message[:0] if self._stop.pending() else self._choice.take(2 * nodes)
            self._comm.Send(given, status.source)


class Choice:
    """What is left of the items first, first + 1 … first + n - 1, and which of it comes next.

    Parameters
    ----------
    first, n : int
    sign : int or None
        Of `Seconds`, whose second members the items are; None to take them as they come.
    """

    def __init__(self, first: int, n: int, sign: int | None):
        self._left = np.arange(first, first + n)
        self._first, self._sign = first, sign
        # By pair: how soon the second member comes. A first member that still runs is going to be a long one.
        self._urgency = np.zeros(n) if sign is None else np.full(n, np.inf * sign)

    def learn(self, pairs: NDArray[np.int64], lengths: NDArray[Any]) -> None:
        """The lengths of some pairs' first members."""
        if self._sign is not None:
            self._urgency[pairs] = self._sign * lengths

    def drop(self, items: NDArray[np.int64]) -> None:
        """Some items have been taken."""
        self._left = np.setdiff1d(self._left, items, assume_unique=True)

    def take(self, share: int) -> NDArray[np.int64]:
        """One of `share` parts of what is left, the most urgent: as they come if nothing is known."""
        n = min(self._left.size, max(1, self._left.size // share))
        if self._sign is not None:
            self._left = self._left[np.argsort(-self._urgency[self._left - self._first], kind="stable")]
        taken, self._left = self._left[:n], self._left[n:]
        return taken


class _Pause:
    """Sleeps, longer each time, up to half a millisecond: who waits must not take a core from who works."""

    def __init__(self) -> None:
        self._seconds = 2e-5

    def __call__(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(5e-4, 1.5 * self._seconds)
