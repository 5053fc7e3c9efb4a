"""Weights of a set of samples of several populations that counts as drawn from one distribution (`mixing`)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.batch import Batch
from iwes_mpi.method.densities import Densities


class SetWeights(Densities):
    """Log weights of this rank's pairs of the set in use, which counts as drawn from the newest batch's distribution.

    Parameters
    ----------
    group : Ranks
        The ranks that share the pairs of each batch.
    noise : Noise
    """

    def log_weights(
        self, batches: Sequence[Batch], theta: NDArray[np.float64], sigma: float
    ) -> list[NDArray[np.float64]]:
        """By batch, log p_theta(x)/p_{t+1}(x) (n, 2) of this rank's share of its pairs; −inf where not in use."""
        self.keep_only(batches)
        return [self._of(own, batches[-1], theta, sigma) for own in batches]

    def _of(self, own: Batch, newest: Batch, theta: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        mine = self._group.slice(own.starts.size)
        if np.array_equal(theta, newest.center):  # before the first step all count alike
            log_c = np.zeros((len(mine), 2))
        else:
            log_c = self.ratios(own, theta, sigma)
            if own is not newest:
                log_c -= self.between(own, newest)
        if own.used is not None:
            log_c[~own.used[mine.start : mine.stop]] = -np.inf
        return log_c
