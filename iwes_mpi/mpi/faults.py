"""A rank that dies without a word ends the job, instead of leaving the others to wait for it."""

import contextlib
import os
import select
import signal
import sys
import threading

from iwes_mpi.mpi.world import World


class Neighbor:
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
        # node would see a neighbor die, and name one that was not the first.
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

        No rank ends before all are here, since they finalize MPI together.
        """
        self._world.node.rest_until_all()
        os.write(self._left, b"\0")
