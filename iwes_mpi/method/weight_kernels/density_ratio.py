"""the literal ratio of densities: three sums of squares per pair, as eq. 4 is written."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import compiled
from iwes_mpi.method.kernels import squared_distances, sum_squares
from iwes_mpi.method.weight_kernels import Noise

NEEDS_NORMS = False  # whether the noise table must know sums of its squares


class Weights(NamedTuple):
    """See `weight_kernels`."""

    table: NDArray[np.float32]  # (size,)
    delta: NDArray[np.float64]  # (d,)

    @classmethod
    def of(cls, noise: Noise, delta: NDArray[np.float64], r2: float) -> "Weights":
        """See `weight_kernels.Weights`."""
        return cls(noise.values, delta)

    @compiled
    def log_weights(self, start):
        """log c± = (‖epsilon‖² − ‖±epsilon − delta‖²)/2, eq. 4."""
        row = self.table[start : start + self.delta.shape[0]]
        plus, minus = squared_distances(row, self.delta)
        denominator = sum_squares(row)
        return 0.5 * (denominator - plus), 0.5 * (denominator - minus)  # eq. 4
