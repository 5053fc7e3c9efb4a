"""Requests to stop: signals to any rank, or the end of the time, known to all ranks soon."""

import os
import signal
import time

import numpy as np

from iwes_mpi.mpi import signals
from iwes_mpi.mpi.process import MPI
from iwes_mpi.mpi.world import World


class StopFlag:
    """A request to stop, made on any rank and soon known to all, also in the middle of a population.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP only set a flag; a second SIGINT ends the job at once. The first rank of a
    node that finds its flag set raises the node's flag, in shared memory, and sends an empty message to every other
    rank. Ranks look between episodes. What `signals.note` has noted until then counts. Creating one is collective.

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
        self._signals = signals.stopping()
        self._before = {number: signal.getsignal(number) for number in self._signals}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(self._signals)
        self.listen()

    def listen(self) -> None:
        """Take the signals that ask to stop, in case somebody else, such as an environment, has taken or blocked them.

        What `signals.note` has noted until then counts.
        """
        for number in self._signals:
            before = signal.signal(number, self._handle)
            if isinstance(before, signals.Note) and before.requested:
                self._requested = True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

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
        """Take the messages that are still under way; no rank asks any more after it. Collective."""
        for rank, announced in enumerate(self._comm.allgather(self._announced)):
            if announced and rank != self._world.rank:
                self._comm.Recv([None, 0, MPI.BYTE], rank)
        self._comm.Free()

    def release(self) -> None:
        """Give signals back the effect they had, once everything is saved.

        Those that were only noted are ignored from now on: there is nothing left to stop in a program that is about to
        end, and its exit code tells that it was done.
        """
        for number, before in self._before.items():
            if isinstance(before, signals.Note):
                signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
