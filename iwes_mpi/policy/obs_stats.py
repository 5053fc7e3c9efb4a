"""Mean and variance of observations, mergeable, in float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel

# As in the reference ES code: before any observation, the mean is 0 and the variance 1 with this weight.
PRIOR_COUNT = 1e-2
MIN_VARIANCE = 1e-2


class ObsStats(NamedTuple):
    """Count, mean and sum of squared deviations of observations."""

    n: float  # observations; the prior counts as 0.01 of one
    mean: NDArray[np.float64]  # (obs_size,)
    m2: NDArray[np.float64]  # (obs_size,) Σ (x − mean)²

    def normaliser(self) -> NDArray[np.float64]:
        """Mean and inverse standard deviation, shape (2, obs_size), with the variance bounded from below."""
        variance = self.m2 / self.n
        return np.stack([self.mean, 1.0 / np.sqrt(np.maximum(variance, MIN_VARIANCE))])


def initial_stats(obs_size: int) -> ObsStats:
    """The statistics before any observation."""
    return ObsStats(PRIOR_COUNT, np.zeros(obs_size), np.full(obs_size, PRIOR_COUNT))


def merge(a: ObsStats, b: ObsStats) -> ObsStats:
    """The statistics of both samples together (Chan, Golub and LeVeque 1983)."""
    if b.n == 0:
        return a
    count = a.n + b.n
    difference = b.mean - a.mean
    share = b.n / count
    return ObsStats(count, a.mean + difference * share, a.m2 + b.m2 + difference * difference * (a.n * share))


def pack(stats: ObsStats) -> NDArray[np.float64]:
    """As one vector: count, mean, m2; shape (1 + 2·obs_size,)."""
    return np.concatenate([[stats.n], stats.mean, stats.m2])


def unpack(packed: NDArray[np.float64]) -> ObsStats:
    """The inverse of `pack`."""
    size = (packed.size - 1) // 2
    return ObsStats(float(packed[0]), packed[1 : 1 + size].copy(), packed[1 + size :].copy())


@kernel
def observe(packed, obs):
    """Add one observation to packed statistics, in place (Welford 1962)."""
    size = obs.shape[0]
    packed[0] += 1.0
    share = 1.0 / packed[0]
    for j in range(size):
        deviation = obs[j] - packed[1 + j]
        packed[1 + j] += deviation * share
        packed[1 + size + j] += deviation * (obs[j] - packed[1 + j])
