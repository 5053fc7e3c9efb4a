"""The only module that knows MPI: the world of ranks, its nodes, slices, exact sums, shared memory and abort.

Collective methods must be called by all ranks of their group in the same order. Sums over samples are sums of
64-bit integers, so that the result depends neither on the number of ranks nor on the order of the reduction.
"""

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
for _variable in THREAD_VARIABLES:  # before NumPy loads: the ranks are the parallelism
    os.environ.setdefault(_variable, "1")
# Windows live in node memory only; Open MPI's UCX component for remote ones complains without such a network.
os.environ.setdefault("OMPI_MCA_osc", "^ucx")

import mpi4py  # noqa: E402

mpi4py.rc.thread_level = "serialized"

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from iwes_mpi import signals  # noqa: E402

T = TypeVar("T")

# What launchers tell a process about how many of them they started, most specific first
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS")


class LauncherMismatch(RuntimeError):
    """The launcher belongs to another MPI than the one mpi4py uses: each process is alone in its own world."""


def check_launcher(size: int, environment: Mapping[str, str]) -> None:
    """Refuse a world of one process where the launcher says that it started several.

    Raises
    ------
    LauncherMismatch
        Naming the variable that tells.
    """
    if size > 1:
        return
    for variable in _SIZE_VARIABLES:
        started = environment.get(variable, "")
        if not started.isdigit():
            continue
        if int(started) > 1:
            raise LauncherMismatch(
                f"the launcher started {started} processes ({variable}), but each of them is rank 0 of 1: mpirun "
                f"or srun belongs to another MPI than mpi4py's ({library_version()}). Use the launcher of that MPI, "
                "or rebuild mpi4py against the launcher's (README, 'On a cluster')"
            )
        return


def library_version() -> str:
    """Name and version of the MPI library, in one line."""
    return MPI.Get_library_version().strip("\0").splitlines()[0].strip()[:80]


def split(n: int, parts: int, index: int) -> range:
    """Slice `index` of n items cut into `parts` contiguous slices whose lengths differ by at most one."""
    return range(n * index // parts, n * (index + 1) // parts)


class Group:
    """Some ranks that compute together.

    Parameters
    ----------
    comm : MPI communicator
    """

    def __init__(self, comm: MPI.Intracomm):
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()

    def slice(self, n: int) -> range:
        """This rank's share of n items."""
        return split(n, self.size, self.rank)

    def sum_integers(self, values: NDArray[np.int64]) -> None:
        """Sum int64 arrays over the ranks, in place, exactly."""
        self.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)

    def merge_slots(self, values: NDArray[np.float64]) -> None:
        """Fill an array of which each rank has filled some slots and left the others zero, in place.

        The sum of the bit patterns as integers is exact, since no slot is filled by two ranks.
        """
        self.comm.Allreduce(MPI.IN_PLACE, values.view(np.int64), MPI.SUM)

    def maximum(self, value: float) -> float:
        """The largest of the ranks' values."""
        return float(self.comm.allreduce(value, MPI.MAX))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.comm.allreduce(flag, MPI.LOR))

    def barrier(self) -> None:
        """Wait until all ranks of the group are here."""
        self.comm.Barrier()

    def rest_until_all(self) -> None:
        """Wait for the others of the group asleep, so that they have the cores."""
        arrival, pause = self.comm.Ibarrier(), 2e-5
        while not arrival.Test():
            time.sleep(pause)
            pause = min(2e-3, 1.5 * pause)


def alone() -> Group:
    """The group of this rank only."""
    return Group(MPI.Intracomm(MPI.COMM_SELF))


class World(Group):
    """All ranks of the job, and how they lie on nodes (processes that share memory).

    Raises
    ------
    LauncherMismatch
        From `check_launcher`.
    """

    def __init__(self) -> None:
        super().__init__(MPI.Intracomm(MPI.COMM_WORLD))
        check_launcher(self.size, os.environ)
        self.node = Group(MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)))
        leader = self.node.comm.bcast(self.rank)
        leaders = self.comm.allgather(leader)
        nodes = sorted(set(leaders))
        self.n_nodes = len(nodes)
        self.node_index = nodes.index(leader)
        # Ranks in node order: a node's shares of the work lie side by side, however ranks were placed.
        self._first_position = sum(leaders.count(node) for node in nodes[: self.node_index])
        self._windows: list[MPI.Win] = []
        self.last_words = LastWords(self.node)
        self._crowded = self.any(self.node.size > (os.cpu_count() or 1))

    def barrier(self) -> None:
        """Wait until all ranks are here; asleep where ranks share cores, so as not to hold up those still at work."""
        if self._crowded:
            self.rest_until_all()
        else:
            super().barrier()

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone reads and writes files and talks to people."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """This rank's static share of n work items, in node order."""
        return split(n, self.size, self._first_position + self.node.rank)

    def node_share(self, n: int) -> range:
        """The static share of n work items of this rank's node: those of its ranks together."""
        first = self._first_position
        return range(n * first // self.size, n * (first + self.node.size) // self.size)

    def weights_group(self, where: Literal["all", "node", "root"]) -> Group | None:
        """The ranks that compute weights (``--weights-on``), or None on the others. Collective."""
        if where == "all":
            return self
        if where == "node":
            return self.node if self.node_index == 0 else None
        return alone() if self.is_root else None

    def broadcast(self, values: NDArray[Any]) -> None:
        """Give every rank rank 0's array, in place."""
        self.comm.Bcast(values, 0)

    def from_root(self, value: T | None) -> T:
        """Rank 0's value on every rank, whatever it is; for start-up, not for the loop."""
        return self.comm.bcast(value, 0)

    def first(self, value: T | None) -> T | None:
        """The value of the lowest rank that has one, on every rank; None if none has."""
        return next((found for found in self.comm.allgather(value) if found is not None), None)

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over ranks of a small float64 array."""
        total = np.empty_like(values)
        self.comm.Allreduce(values, total, MPI.SUM)
        return total / self.size

    def minimum_integer(self, value: int) -> int:
        """The smallest of the ranks' integers."""
        return int(self.comm.allreduce(value, MPI.MIN))

    def maximum_integer(self, value: int) -> int:
        """The largest of the ranks' integers."""
        return int(self.comm.allreduce(value, MPI.MAX))

    def node_array(self, size: int, dtype: Any) -> NDArray[Any]:
        """One array per node, in memory that all its ranks share. Collective.

        After writing, call `publish` before any other rank reads.
        """
        n_bytes = size * np.dtype(dtype).itemsize
        window = self.node_window(n_bytes if self.node.rank == 0 else 0)
        buffer, _ = window.Shared_query(0)
        return np.asarray(buffer)[:n_bytes].view(dtype)

    def node_window(self, n_bytes: int) -> MPI.Win:
        """A shared-memory window of the node to which this rank gives `n_bytes`, open for access. Collective."""
        window = _open_window(self.node, n_bytes)
        self._windows.append(window)
        return window

    def publish(self) -> None:
        """Make what any rank of the node wrote to node arrays visible to the others. Collective on the node."""
        for window in self._windows:
            window.Sync()
        self.node.barrier()
        for window in self._windows:
            window.Sync()

    def close(self) -> None:
        """Release the nodes' shared memory. Collective; node arrays must not be used after it."""
        for window in self._windows:
            window.Unlock_all()
            window.Free()
        self._windows.clear()

    def abort(self, code: int) -> NoReturn:
        """End every rank at once, whatever else fails."""
        try:
            self.last_words.claim()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # nobody reads any more, or a signal came in the midst of a print
                    stream.flush()
            self.comm.Abort(code)
        finally:
            os._exit(code)  # some MPI libraries return while the abort is under way


def _open_window(node: Group, n_bytes: int) -> MPI.Win:
    """A shared-memory window to which this rank gives `n_bytes`, open for access. Collective on the node."""
    window = MPI.Win.Allocate_shared(n_bytes, 1, comm=node.comm)
    window.Lock_all()
    return window


class LastWords:
    """Who of a node tells why the job ends: one rank, so that a fault that all have at once is one report, not 48.

    Creating one is collective on the node.

    Parameters
    ----------
    node : Group
    """

    def __init__(self, node: Group):
        self._window: MPI.Win | None = _open_window(node, 8 if node.rank == 0 else 0)
        self._claims = np.asarray(self._window.Shared_query(0)[0]).view(np.int64)
        if node.rank == 0:
            self._claims[:] = 0
        self._window.Sync()
        node.barrier()
        self._window.Sync()

    def be_first(self) -> bool:
        """Whether no rank of the node has claimed them; they are this one's then. For the main thread."""
        if self._window is None:
            return True
        one, before = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._window.Fetch_and_op(one, before, 0, 0, MPI.SUM)
        self._window.Flush(0)
        return bool(before[0] == 0)

    def claim(self) -> bool:
        """As `be_first`, without MPI: for any thread, but two ranks may do so in the same moment."""
        if self._window is None:
            return True
        first = bool(self._claims[0] == 0)
        self._claims[0] = 1
        return first

    def free(self) -> None:
        """Release the shared memory. Collective on the node."""
        window, self._window = self._window, None
        if window is not None:
            window.Unlock_all()
            window.Free()


def launch(main: Callable[[World], int]) -> NoReturn:
    """Run `main` on every rank and end the process with the exit code it returns.

    An exception that leaves `main` on any rank, SystemExit and KeyboardInterrupt included, prints its traceback
    and ends the whole job with code 1: the other ranks would otherwise wait for this one for ever. Of a node's ranks
    only the first prints, should the same befall several. A rank that dies without a word is noticed by its
    `Neighbour`.
    """
    try:
        world = World()
    except LauncherMismatch as error:
        if first_of_launch(os.environ):
            print(f"iwes_mpi: error: {error}", file=sys.stderr)
        sys.exit(2)

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            if world.last_words.be_first():
                text = "".join(traceback.format_exception(kind, error, trace))
                print(f"iwes_mpi: rank {world.rank} of {world.size} failed:\n{text}", file=sys.stderr, flush=True)
            else:
                time.sleep(Neighbour.PATIENCE)  # while the first prints
        except Exception:
            pass  # a broken pipe, say: what matters is that the job ends
        finally:
            world.abort(1)

    sys.excepthook = report
    faulthandler.enable()  # a crash in compiled code shows where Python was
    neighbour = Neighbour(world)
    try:
        code = main(world)
    except BaseException as error:
        report(type(error), error, error.__traceback__)
        raise
    neighbour.leave()
    world.last_words.free()
    sys.exit(code)


class Neighbour:
    """Notices when the next rank of this node dies without a word, by SIGKILL or a crash, and ends the job.

    mpirun does that by itself; srun does not unless it is told to (--kill-on-bad-exit). A thread sleeps until the
    kernel tells of the process's end: each of a node's ranks looks after one other. A rank alone on its node has
    nobody. Creating one is collective on the node.

    Parameters
    ----------
    world : World
    """

    PATIENCE = 2.0  # s in which the launcher may end the job by itself, or a report be printed

    def __init__(self, world: World):
        self._world = world
        self._wake, self._left = os.pipe()
        space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
        found = world.node.comm.allgather((world.rank, os.getpid(), space))
        self._rank, pid, its_space = found[(world.node.rank + 1) % world.node.size]
        if self._rank == world.rank or its_space != space:  # in a container of its own, a number says nothing
            return
        try:
            process = [os.pidfd_open(pid)]
        except ProcessLookupError:  # dead already
            process = []
        except (AttributeError, OSError):  # not Linux, or an old one
            return
        threading.Thread(target=self._look, args=(process,), daemon=True).start()

    def _look(self, process: list[int]) -> None:
        """Sleep until the process ends, if there still is one, or this rank leaves."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        if process and self._wake in select.select([*process, self._wake], [], [])[0]:
            return
        # Not at once: a launcher that ends the job by itself does so within milliseconds, and then the ranks of every
        # node would see a neighbour die, and name one that was not the first.
        if select.select([self._wake], [], [], self.PATIENCE)[0]:
            return
        world = self._world
        if world.last_words.claim():
            text = f"rank {self._rank} of {world.size} died without a word, killed or by a crash; ending all ranks"
            with contextlib.suppress(Exception):
                print(f"iwes_mpi: {text}", file=sys.stderr, flush=True)
        world.abort(1)

    def leave(self) -> None:
        """Take no more notice, once no rank of the node has anything left to do but end. Collective on the node.

        None of them ends before all are here: MPI is finalised together.
        """
        self._world.node.rest_until_all()
        os.write(self._left, b"\0")


def first_of_launch(environment: Mapping[str, str]) -> bool:
    """Whether this process is the launcher's first, by the launcher's own account."""
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    return next((environment[name] for name in ranks if name in environment), "0") == "0"


class StopFlag:
    """A request to stop, made on any rank and soon known to all, also in the middle of a population.

    SIGTERM, SIGINT and SIGUSR1 only set a flag; a second SIGINT ends the job at once. The first rank of a node that
    finds its flag set raises the node's flag, in shared memory, and sends an empty message to every other rank. Ranks
    look between episodes. What `signals.note` has noted until then counts. Creating one is collective.

    Parameters
    ----------
    world : World
    deadline : float or None
        When rank 0 requests a stop, by `time.monotonic`.
    """

    def __init__(self, world: World, deadline: float | None):
        self._world = world
        self._deadline = deadline if world.is_root else None
        self._requested = self._announced = False
        self._comm = world.comm.Dup()
        self._node_flag = world.node_array(1, np.int64)
        if world.node.rank == 0:
            self._node_flag[0] = 0
        world.publish()
        for number in signals.STOPPING:
            before = signal.signal(number, self._handle)
            if isinstance(before, signals.Note) and before.requested:
                self._requested = True

    def _handle(self, number: int, frame: object) -> None:
        if self._requested and number == signal.SIGINT:
            os.write(2, f"iwes_mpi: rank {self._world.rank}: interrupted again, ending at once\n".encode())
            self._world.abort(1)
        self._requested = True

    def pending(self) -> bool:
        """Whether a stop has been requested, as far as this rank knows by now."""
        if self._node_flag[0]:
            return True
        if self._comm.Iprobe():
            self._node_flag[0] = 1
            return True
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._requested = True
        if self._requested and not self._announced:
            self._announced = True
            self._node_flag[0] = 1
            for rank in range(self._world.size):
                if rank != self._world.rank:
                    self._comm.Isend([None, 0, MPI.BYTE], rank).Free()
        return self._requested

    def agreed(self) -> bool:
        """Whether a stop has been requested on any rank; the same on all. Collective."""
        return self._world.any(self.pending())

    def drain(self) -> None:
        """Take the messages that are still under way. Collective."""
        for rank, announced in enumerate(self._comm.allgather(self._announced)):
            if announced and rank != self._world.rank:
                self._comm.Recv([None, 0, MPI.BYTE], rank)

    def release(self) -> None:
        """Give signals back their usual effect, once everything is saved."""
        for number in signals.STOPPING:
            signal.signal(number, signal.SIG_DFL)


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
        self._taken = 0  # what the counter stands at once all ranks of the node have exhausted their iterators

    def items(self, *lengths: int) -> Iterator[tuple[int, int]]:
        """Items of several lists, the first list's first, as pairs (list, item)."""
        world = self._world
        if self._counter is None:
            for which, length in enumerate(lengths):
                for item in world.share(length):
                    if self._stop.pending():
                        return
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
            for which, share in enumerate(mine):
                if offset < len(share):
                    yield which, share[offset]
                    break
                offset -= len(share)
