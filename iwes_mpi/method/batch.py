"""A population once it is evaluated: all that the estimator needs of it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.kernels import sum_squares

LOST = 1e14  # nats; from farther away the log weights of samples would be lost in rounding


class Batch(NamedTuple):
    """Mirrored pairs x_{i±} = center ± sigma·epsilon_i and what they are worth; the same on every rank."""

    center: NDArray[np.float64]  # (d,) theta^t, around which the pairs were drawn
    sigma: float
    starts: NDArray[np.int64]  # (n_pairs,) where each epsilon_i starts in the noise table
    utilities: NDArray[np.float64]  # (n_pairs, 2) u_{i±}, the shaped returns; 0 for members that are not in use
    used: NDArray[np.bool_] | None = None  # (n_pairs, 2) whether a member is in use (`mixing`); None: all are

    @property
    def samples(self) -> int:
        """How many members are in use."""
        return 2 * self.starts.size if self.used is None else int(np.count_nonzero(self.used))

    def half(self, which: int) -> "Batch":
        """Every other pair, from pair 0 or 1 on; all of them if there is only one."""
        if self.starts.size < 2:
            return self
        used = None if self.used is None else self.used[which::2]
        return self._replace(starts=self.starts[which::2], utilities=self.utilities[which::2], used=used)

    def delta(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far theta (d,) has moved from the center, in units of sigma."""
        return (theta - self.center) / self.sigma

    def kl(self, theta: NDArray[np.float64]) -> float:
        """KL divergence of N(theta, sigma²I) from the distribution the pairs were drawn from, r²/2, in nats."""
        return float(sum_squares(self.delta(theta))) / 2
