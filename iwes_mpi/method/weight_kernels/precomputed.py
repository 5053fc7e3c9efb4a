"""eq. 4 with denominators looked up in sums made with the noise table (section 3.2 of the paper)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import compiled
from iwes_mpi.method.kernels import squared_distances, squared_norm
from iwes_mpi.method.weight_kernels import Noise

NEEDS_NORMS = True  # whether the noise table must know sums of its squares


class Weights(NamedTuple):
    """See `weight_kernels`."""

    table: NDArray[np.float32]  # (size,)
    prefix: NDArray[np.float64]  # (size // BLOCK + 1,)
    delta: NDArray[np.float64]  # (d,)

    @classmethod
    def of(cls, noise: Noise, delta: NDArray[np.float64], r2: float) -> "Weights":
        """See `weight_kernels.Weights`."""
        return cls(noise.values, noise.prefix, delta)

    @compiled
    def log_weights(self, start):
        """log c± = (‖epsilon‖² − ‖±epsilon − delta‖²)/2, eq. 4."""
        d = self.delta.shape[0]
        plus, minus = squared_distances(self.table[start : start + d], self.delta)
        denominator = squared_norm(self.table, self.prefix, start, d)
        return 0.5 * (denominator - plus), 0.5 * (denominator - minus)  # eq. 4
