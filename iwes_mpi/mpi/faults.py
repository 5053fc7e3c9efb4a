"""A rank or a launcher that dies without a word ends the job, instead of leaving the others to wait for it."""

import contextlib
import os
import select
import signal
import sys
import threading

from iwes_mpi.mpi.world import World

_LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # what launchers tell a rank: they are its parents


class Neighbor:
    """Notices when the next rank of this node dies without a word, by SIGKILL or a crash, and ends the job.

    mpirun does that by itself; srun does not unless it is told to (--kill-on-bad-exit). A thread sleeps until the
    kernel tells of the process's end: each of a node's ranks looks after one other. A rank alone on its node has
    nobody. Creating one is collective on the node.

    It looks after the launcher's process on this node too, the rank's parent: without it nobody would ever end the
    rank. Its death is a request to stop, so that there may be a checkpoint, and the end a while later.

    Parameters
    ----------
    world : World
    """

    PATIENCE = 2.0  # s in which the launcher may end the job by itself, or a report be printed
    FAREWELL = 30.0  # s in which a rank without a launcher may stop by itself

    def __init__(self, world: World):
        self._world = world
        self._wake, self._left = os.pipe()
        space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
        found = world.node.comm.allgather((world.rank, os.getpid(), space))
        self._rank, pid, its_space = found[(world.node.rank + 1) % world.node.size]
        try:
            if self._rank == world.rank or its_space != space:  # in a container of its own, a number says nothing
                process: int | None = None
            else:
                process = os.pidfd_open(pid)
        except ProcessLookupError:  # dead already
            process = -1
        except (AttributeError, OSError):  # not Linux, or an old one
            return
        parent = None
        with contextlib.suppress(OSError):
            if any(name in os.environ for name in _LAUNCHED) and os.getppid() > 1:
                parent = os.pidfd_open(os.getppid())
        if process is not None or parent is not None:
            threading.Thread(target=self._look, args=(process, parent), daemon=True).start()

    def _look(self, process: int | None, parent: int | None) -> None:
        """Sleep until one of the processes ends, or this rank leaves; a process is −1 if it is dead already."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while process != -1:
            ended = select.select([p for p in (process, parent, self._wake) if p is not None], [], [])[0]
            if self._wake in ended:
                return
            if process in ended:
                break
            parent = None
            if self._stop():
                return
        # Not at once: a launcher that ends the job by itself does so within milliseconds, and then the ranks of every
        # node would see a neighbor die, and name one that was not the first.
        if select.select([self._wake], [], [], self.PATIENCE)[0]:
            return
        world = self._world
        if world.last_words.claim():
            text = f"rank {self._rank} of {world.size} died without a word, killed or by a crash; ending all ranks"
            with contextlib.suppress(Exception):
                print(f"iwes_mpi: {text}", file=sys.stderr, flush=True)
        world.abort(1)

    def _stop(self) -> bool:
        """Ask this rank to stop, since its launcher is gone; returns whether it did, and ends the job if not."""
        world = self._world
        if world.last_words.claim():
            with contextlib.suppress(Exception):
                text = f"the launcher's process of rank {world.rank} is gone; stopping"
                print(f"iwes_mpi: {text}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        if not select.select([self._wake], [], [], self.FAREWELL)[0]:
            world.abort(1)
        return True

    def leave(self) -> None:
        """Take no more notice, once no rank of the node has anything left to do but end. Collective on the node.

        No rank ends before all are here, since they finalize MPI together.
        """
        self._world.node.rest_until_all()
        os.write(self._left, b"\0")
