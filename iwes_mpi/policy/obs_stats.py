"""Mean and variance of observations, or their whole covariance, mergeable, in float64."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel
from iwes_mpi.policy import whitening

# As in the reference ES code: before any observation, the mean is 0 and the variance 1 with this weight.
PRIOR_COUNT = 1e-2
MIN_VARIANCE = 1e-2


class ObsStats(NamedTuple):
    """Count, mean and sum of squared deviations of observations; for whitening, of their products too."""

    n: float  # observations; the prior counts as 0.01 of one
    mean: NDArray[np.float64]  # (obs_size,)
    m2: NDArray[np.float64]  # (obs_size,) Σ (x − mean)², or (obs_size, obs_size) Σ (x − mean)·(x − mean)ᵀ

    def normalizer(self) -> NDArray[np.float64]:
        """What `network.normalize` needs, with the variance bounded from below.

        Returns
        -------
        float64 (2, obs_size) or (1 + obs_size, obs_size)
            Mean and inverse standard deviation; or mean and whitening matrix.
        """
        variance = self.m2 / self.n
        if self.m2.ndim == 2:
            return np.vstack([self.mean, whitening.inverse_root(variance, MIN_VARIANCE)])
        return np.stack([self.mean, 1.0 / np.sqrt(np.maximum(variance, MIN_VARIANCE))])


def initial_stats(obs_size: int, whiten: bool = False) -> ObsStats:
    """The statistics before any observation."""
    m2 = PRIOR_COUNT * np.eye(obs_size) if whiten else np.full(obs_size, PRIOR_COUNT)
    return ObsStats(PRIOR_COUNT, np.zeros(obs_size), m2)


def merge(a: ObsStats, b: ObsStats) -> ObsStats:
    """The statistics of both samples together (Chan, Golub and LeVeque 1983)."""
    if b.n == 0:
        return a
    count = a.n + b.n
    difference = b.mean - a.mean
    share = b.n / count
    squared = difference * difference if a.m2.ndim == 1 else np.outer(difference, difference)
    return ObsStats(count, a.mean + difference * share, a.m2 + b.m2 + squared * (a.n * share))


def merge_all(stats: ObsStats, packed: NDArray[np.float64]) -> ObsStats:
    """`stats` merged with packed ones, row after row, to the same bits as `merge`; rows that are not finite count not.

    Parameters
    ----------
    stats : ObsStats
    packed : float64 (rows, 1 + obs_size + m2.size)
        From `pack`.
    """
    mean, m2 = stats.mean.copy(), stats.m2.copy()
    return ObsStats(float(_merge_rows(stats.n, mean, m2.reshape(-1), packed)), mean, m2)


@kernel(contract=False)
def _merge_rows(count, mean, m2, packed):
    """Merge packed statistics into a mean (obs_size,) and m2 of either kind, flat, in place; returns the count."""
    size = mean.shape[0]
    for i in range(packed.shape[0]):
        row = packed[i]
        finite = True
        for j in range(row.shape[0]):
            finite &= math.isfinite(row[j])
        if row[0] == 0.0 or not finite:
            continue
        total = count + row[0]
        share = row[0] / total
        weight = count * share
        if m2.shape[0] == size:
            for j in range(size):
                difference = row[1 + j] - mean[j]
                m2[j] = (m2[j] + row[1 + size + j]) + (difference * difference) * weight
        else:
            for k in range(size):
                for j in range(size):
                    product = (row[1 + k] - mean[k]) * (row[1 + j] - mean[j])
                    m2[k * size + j] = (m2[k * size + j] + row[1 + size + k * size + j]) + product * weight
        for j in range(size):
            mean[j] += (row[1 + j] - mean[j]) * share
        count = total
    return count


def pack(stats: ObsStats) -> NDArray[np.float64]:
    """As one vector: count, mean, m2; shape (1 + 2·obs_size,) or (1 + obs_size + obs_size²,).

    That is always one number more than the normalizer has.
    """
    return np.concatenate([[stats.n], stats.mean, stats.m2.ravel()])


def unpack(packed: NDArray[np.float64], whiten: bool = False) -> ObsStats:
    """The inverse of `pack`."""
    size = math.isqrt(packed.size) if whiten else (packed.size - 1) // 2
    m2 = packed[1 + size :].copy()
    return ObsStats(float(packed[0]), packed[1 : 1 + size].copy(), m2.reshape(size, size) if whiten else m2)


@kernel
def observe(packed, obs):
    """Add one observation to packed statistics of either kind, in place (Welford 1962)."""
    size = obs.shape[0]
    packed[0] += 1.0
    share = 1.0 / packed[0]
    if packed.shape[0] > 1 + 2 * size:
        for i in range(size):
            deviation = (obs[i] - packed[1 + i]) * (1.0 - share)
            row = 1 + size + i * size
            for j in range(size):
                packed[row + j] += deviation * (obs[j] - packed[1 + j])
        for j in range(size):
            packed[1 + j] += (obs[j] - packed[1 + j]) * share
        return
    for j in range(size):
        deviation = obs[j] - packed[1 + j]
        packed[1 + j] += deviation * share
        packed[1 + size + j] += deviation * (obs[j] - packed[1 + j])
