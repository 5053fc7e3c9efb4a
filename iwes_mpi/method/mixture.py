"""Several populations as one: weights by the balance heuristic (Veach and Guibas 1995).

A sample of any of the batches counts as one drawn from their mixture, c = p(x) / Σ_m (N_m/N) p_m(x). So no weight is
larger than N/N_m times that of its own batch, and batches that lie far away do no harm. (For one batch it is eq. 4.)
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.weight_kernels import Noise
from iwes_mpi.mpi.group import Group


class Mixture:
    """Log weights of this rank's pairs of several batches.

    Densities of old pairs under old search distributions are computed once and kept.

    Parameters
    ----------
    group : Group
        The ranks that share the pairs of each batch.
    noise : Noise
    """

    def __init__(self, group: Group, noise: Noise):
        self._group, self._noise = group, noise
        # By the starts of two batches, which are the same arrays as long as the batches are in use: log ratios of the
        # first one's pairs under the second one's distribution
        self._kept: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []

    def log_weights(
        self, batches: Sequence[Batch], theta: NDArray[np.float64], sigma: float
    ) -> list[NDArray[np.float64]]:
        """By batch, log c (n, 2) of this rank's share of its pairs at the search distribution N(theta, sigma²I)."""
        present = [batch.starts for batch in batches]
        self._kept = [kept for kept in self._kept if all(any(one is each for each in present) for one in kept[:2])]
        total = sum(batch.starts.size for batch in batches)
        found = []
        for own in batches:
            log_c = self._log_ratios(own, theta, sigma)
            others = [batch for batch in batches if batch is not own]
            shares = np.array([batch.starts.size / total for batch in others])
            ratios = np.array([self._between(own, other) for other in others]).reshape(len(others), *log_c.shape)
            kernels.subtract_log_mixture(own.starts.size / total, shares, ratios, log_c)
            found.append(log_c)
        return found

    def _between(self, own: Batch, other: Batch) -> NDArray[np.float64]:
        """Log densities of this rank's pairs of one batch under another's distribution, less those under their own."""
        for a, b, ratios in self._kept:
            if a is own.starts and b is other.starts:
                return ratios
        ratios = self._log_ratios(own, other.center, other.sigma)
        self._kept.append((own.starts, other.starts, ratios))
        return ratios

    def _log_ratios(self, own: Batch, center: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        mine = self._group.slice(own.starts.size)
        out = np.zeros((len(mine), 2))
        move = (own.center - center) / sigma
        constant = center.size * math.log(own.sigma / sigma)
        kernels.log_ratios(
            self._noise.values, own.starts[mine.start : mine.stop], move.astype(np.float32),
            0.5 * kernels.sum_squares(move), own.sigma / sigma, constant, out,
        )  # fmt: skip
        return out
