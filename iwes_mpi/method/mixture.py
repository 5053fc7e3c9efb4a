"""Several populations as one: weights by the balance heuristic (Veach and Guibas 1995).

A sample of any of the batches counts as one drawn from their mixture, c = p(x) / Σ_m (N_m/N) p_m(x). So no weight is
larger than N/N_m times that of its own batch, and batches that lie far away do no harm. (For one batch it is eq. 4.)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.densities import Densities


class Mixture(Densities):
    """Log weights of this rank's pairs of several batches.

    Densities of old pairs under old search distributions are computed once and kept.

    Parameters
    ----------
    group : Ranks
        The ranks that share the pairs of each batch.
    noise : Noise
    """

    def log_weights(
        self, batches: Sequence[Batch], theta: NDArray[np.float64], sigma: float
    ) -> list[NDArray[np.float64]]:
        """By batch, log c (n, 2) of this rank's share of its pairs at the search distribution N(theta, sigma²I)."""
        self.keep_only(batches)
        total = sum(batch.starts.size for batch in batches)
        found = []
        for own in batches:
            log_c = self.ratios(own, theta, sigma)
            others = [batch for batch in batches if batch is not own]
            shares = np.array([batch.starts.size / total for batch in others])
            ratios = np.array([self.between(own, other) for other in others]).reshape(len(others), *log_c.shape)
            kernels.subtract_log_mixture(own.starts.size / total, shares, ratios, log_c)
            found.append(log_c)
        return found
