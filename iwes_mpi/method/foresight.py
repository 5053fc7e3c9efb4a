"""A guess which episodes will be long. Ranks begin with these, so that none is left with a long one at the end.

Where long episodes return more than short ones, or less, updates move theta toward long or toward short ones. A
perturbation that points where theta has just moved then has long episodes too, or short ones, and its mirror image has
the others. On logged populations of Hopper this order left ranks idle for a fifth of the time that any order of
episodes of unknown length would have (docs/benchmarks.md). It enters no result: only who runs what, and when.
"""

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.mpi.message import Message, slots
from iwes_mpi.mpi.world import World

_VARIED = 0.05  # a population whose lengths have a smaller deviation than this, as a share of their mean, needs no order
_RELATED = 0.2  # returns and lengths that correlate less than this say nothing about each other


class Foresight:
    """Guesses the order of episodes from the last population and the step that was made from it.

    Parameters
    ----------
    world : World
    noise : NoiseTable
    """

    def __init__(self, world: World, noise: NoiseTable):
        self._world, self._noise = world, noise
        self._sign = 0.0  # of the relation between lengths and returns; 0 for none
        self._before: NDArray[np.float64] | None = None  # theta around which the last population was drawn

    def learn(
        self, theta: NDArray[np.float64], returns: NDArray[np.float64], lengths: NDArray[np.int64], ran: NDArray[np.bool_]
    ) -> None:
        """Take note of a population around theta (d,): returns, lengths and whether they ran, (n_pairs, 2) each."""
        good = ran & np.isfinite(returns)
        self._before, self._sign = theta, 0.0
        x, y = lengths[good].astype(np.float64), returns[good]
        if x.size > 1 and x.std() > _VARIED * x.mean() and y.std() > 0:
            relation = float(np.mean((x - x.mean()) / x.std() * ((y - y.mean()) / y.std())))
            self._sign = float(np.sign(relation)) if abs(relation) >= _RELATED else 0.0

    def order(
        self, theta: NDArray[np.float64], starts: NDArray[np.int64], members: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The members of a block of pairs around theta, those with the longest episodes first. Collective.

        Parameters
        ----------
        theta : float64 (d,)
        starts : int64 (n_pairs,)
            Where each epsilon starts in the noise table.
        members : int64 (n,)
            Counted through both members of all pairs.

        Returns
        -------
        int64 (n,)
            The same on every rank; `members` as they are if nothing is known.
        """
        if self._sign == 0 or self._before is None or self._world.size == 1:
            return members
        step = (self._sign * (theta - self._before)).astype(np.float32)
        message = Message(along=slots(starts.size))
        mine = self._world.share(starts.size)
        kernels.project(self._noise.values, starts[mine.start : mine.stop], step, message["along"][mine.start : mine.stop])
        message.reduce(self._world)
        along = np.stack([message["along"], -message["along"]], axis=1).ravel()
        return members[np.argsort(-along[members], kind="stable")]
