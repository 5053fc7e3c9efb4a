"""one dot product per pair: eq. 4 after the squares of the noise cancel."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import compiled
from iwes_mpi.method.kernels import dot
from iwes_mpi.method.weight_kernels import Noise

NEEDS_NORMS = False  # whether the noise table must know sums of its squares


class Weights(NamedTuple):
    """See `weight_kernels`."""

    table: NDArray[np.float32]  # (size,)
    delta: NDArray[np.float32]  # (d,)
    r2: float

    @classmethod
    def of(cls, noise: Noise, delta: NDArray[np.float64], r2: float) -> "Weights":
        """See `weight_kernels.Weights`."""
        return cls(noise.values, delta.astype(np.float32), r2)

    @compiled
    def log_weights(self, start):
        """log c± = −r²/2 ± epsilon·delta, eq. 4."""
        s = dot(self.table[start : start + self.delta.shape[0]], self.delta)
        return -0.5 * self.r2 + s, -0.5 * self.r2 - s  # eq. 4
