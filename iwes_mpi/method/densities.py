"""Densities of samples under other search distributions than the one that they were drawn from."""

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.weight_kernels import Noise
from iwes_mpi.mpi.ranks import Ranks


class Samples(Protocol):
    """Mirrored pairs and where they were drawn: a `Batch`, or a `Drawn` of the state."""

    @property
    def center(self) -> NDArray[np.float64]:
        """Theta (d,) then."""

    @property
    def sigma(self) -> float:
        """Standard deviation then."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each pair's noise starts (n_pairs,)."""


class Around(NamedTuple):
    """Pairs of which no more is known yet than where they are drawn; see `Samples`."""

    center: NDArray[np.float64]
    sigma: float
    starts: NDArray[np.int64]


class Densities:
    """Log ratios of densities, of this rank's share of the pairs.

    Parameters
    ----------
    group : Ranks
        The ranks that share the pairs.
    noise : Noise
    """

    def __init__(self, group: Ranks, noise: Noise):
        self._group, self._noise = group, noise
        # Log ratios of the first one's pairs under the second one's distribution
        self._kept: list[tuple[Samples, Samples, NDArray[np.float64]]] = []

    def ratios(self, own: Samples, center: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        """Log densities (n, 2) under N(center, sigma²I), less those under the distribution they were drawn from."""
        mine = self._group.slice(own.starts.size)
        out = np.zeros((len(mine), 2))
        delta = (center - own.center) / sigma
        constant = center.size * math.log(own.sigma / sigma)
        kernels.log_ratios(
            self._noise.values, own.starts[mine.start : mine.stop], delta.astype(np.float32),
            0.5 * kernels.sum_squares(delta), own.sigma / sigma, constant, out,
        )  # fmt: skip
        return out

    def between(self, own: Samples, other: Samples) -> NDArray[np.float64]:
        """`ratios` under the distribution that other samples were drawn from; computed once and kept."""
        for a, b, ratios in self._kept:
            if _same(a, own) and _same(b, other):
                return ratios
        ratios = self.ratios(own, other.center, other.sigma)
        self._kept.append((own, other, ratios))
        return ratios

    def keep_only(self, batches: Iterable[Samples]) -> None:
        """Forget what `between` keeps of other samples than these."""
        present = list(batches)
        self._kept = [kept for kept in self._kept if all(any(_same(one, p) for p in present) for one in kept[:2])]


def _same(a: Samples, b: Samples) -> bool:
    """Whether these are the same samples: their arrays are the same as long as they are in use."""
    return a.starts is b.starts and a.center is b.center and a.sigma == b.sigma
