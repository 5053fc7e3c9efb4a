"""The estimator of Campos et al. (2018), eqs. 3 and 4, over all ranks.

Notation (used throughout): a population was drawn around theta^t as x_{i±} = theta^t ± sigma·epsilon_i; by now theta
has moved to theta^{t+k}; delta = (theta^{t+k} − theta^t) / sigma, shape (d,), and r = ‖delta‖.

Importance weight, eq. 4, for both members of a mirrored pair from one dot product::

    log c_{i±} = −r²/2 ± epsilon_i·delta

Gradient, eq. 3 times sigma, with utilities u::

    g = (1/Σc) Σ_i Σ_± c_{i±} u_{i±} (±epsilon_i − delta)
      = (1/Σc) [ Σ_i (c_{i+} u_{i+} − c_{i−} u_{i−}) epsilon_i − (Σ c u) delta ]
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels, weight_kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.exact_sums import ExactSums
from iwes_mpi.method.kernels import Bounds, Pairs
from iwes_mpi.method.mixture import Mixture
from iwes_mpi.method.phases import Phase, Phases
from iwes_mpi.method.set_weights import SetWeights
from iwes_mpi.mpi.ranks import Ranks

Vector = NDArray[np.float64]

# The mean of c², in units of the exact sums, below which rounding would show in the effective sample size. Weights are
# then a few millionths at most: the population says nothing about where theta is now.
_RESOLVED = 1024


class Estimate(NamedTuple):
    """One importance-weighted estimate, eq. 3, and what its weights say."""

    gradient: Vector | None  # (d,) sigma times eq. 3; None if no overlap is left
    ess: float  # (Σc)² / (2n Σc²), where 2n is the number of samples in use
    mean_weight: float  # Σc / 2n
    max_weight: float
    clipped_share: float


class Weighed(NamedTuple):
    """Batches, weighed at a theta."""

    batches: Sequence[Batch]
    theta: Vector  # (d,)
    weights: weight_kernels.Weights | None  # what computes log_c while the noise is read; None if it is known already
    log_c: list[NDArray[np.float64]]  # by batch, (n, 2): log weights of this rank's pairs, or room for them
    bounds: Bounds


class Totals(NamedTuple):
    """The sums over all ranks."""

    sums: ExactSums
    weighed: Weighed
    scale: float  # utilities are in units of it
    widest: float  # the largest sigma of the batches: epsilon is in units of it


class Estimator:
    """Eqs. 3 and 4 over the ranks of a group, with exact sums.

    Parameters
    ----------
    group : Ranks
        The ranks that share the pairs.
    noise : Noise
        The noise table.
    phases : Phases
        Charged with weights and communication.
    clip : float
        Weights are clipped from above at this; inf for no clipping.
    center : bool
        Whether to subtract the weighted mean utility.
    weight_kernel : str
        Of `weight_kernels`.
    per_pair : bool
        Whether both members of a pair get the mean of their two weights.
    mixed : bool
        Whether batches are one set that counts as drawn from the newest one's distribution (`mixing`).
    """

    def __init__(
        self, group: Ranks, noise: weight_kernels.Noise, phases: Phases, *,
        clip: float = 1.0, center: bool = False, weight_kernel: str = "cancelled", per_pair: bool = False,
        mixed: bool = False,
    ):  # fmt: skip
        self._group, self._noise, self._phases = group, noise, phases
        self._center, self._log_clip, self._per_pair = center, math.log(clip), per_pair
        self._weights = weight_kernels.kernel_named(weight_kernel)
        self._joint = SetWeights(group, noise) if mixed else Mixture(group, noise)
        self._sums: dict[tuple[int, int, int], ExactSums] = {}  # the last one used

    def estimate(self, batches: Sequence[Batch], theta: Vector) -> Estimate:
        """The estimate at theta^{t+k} from populations drawn elsewhere: `weigh`, `add_up`, `solve`. Collective."""
        return self.solve(self.add_up(self.weigh(batches, theta)))

    def weigh(self, batches: Sequence[Batch], theta: Vector) -> Weighed:
        """Log weights of this rank's pairs at theta^{t+k}, eq. 4. Collective on the group.

        Parameters
        ----------
        batches : sequence of Batch
            The newest last. Several count as one, drawn from the mixture of their distributions, or see `mixed`.
        theta : float64 (d,)
            theta^{t+k}; the search distribution there has the newest batch's sigma.
        """
        with self._phases(Phase.WEIGHTS):
            if len(batches) > 1 or batches[0].used is not None:
                log_c = self._joint.log_weights(batches, theta, batches[-1].sigma)  # eq. 4 for a joint set
            else:
                batch, starts = batches[0], batches[0].starts[self._mine(batches[0])]
                delta = batch.delta(theta)
                r2 = kernels.sum_squares(delta)
                log_c = [np.zeros((starts.size, 2))]
                if r2 == 0.0:  # before the first step every log weight is exactly 0
                    return Weighed(batches, theta, None, log_c, self._bounds(min(0.0, self._log_clip)))
                weights = self._weights.of(self._noise, delta, r2)  # eq. 4
                if self._log_clip == 0.0:  # no weight exceeds 1: computed while the noise is read for the sums
                    return Weighed(batches, theta, weights, log_c, self._bounds(0.0))
                kernels.log_weights(weights, starts, log_c[0])
            # A common factor is free; without the largest weight in it nothing can overflow.
            with self._phases(Phase.COMM):
                largest = self._group.maximum(max(values.max(initial=-math.inf) for values in log_c))
            return Weighed(batches, theta, None, log_c, self._bounds(min(self._log_clip, largest)))

    def add_up(self, weighed: Weighed) -> Totals:
        """The sums of eq. 3 over the pairs of all ranks: Σc, Σc², Σcu, Σ (c₊u₊ − c₋u₋) epsilon. Collective."""
        batches = weighed.batches
        with self._phases(Phase.WEIGHTS):
            sums = self._empty_sums(batches, weighed.theta.size)
            scale = max(float(np.abs(batch.utilities).max(initial=0.0)) for batch in batches) or 1.0
            widest = max(batch.sigma for batch in batches)
            for i, batch in enumerate(batches):
                mine = self._mine(batch)
                utilities, stretch = batch.utilities[mine] / scale, batch.sigma / widest
                pairs = Pairs(self._noise.values, batch.starts[mine], utilities, stretch)
                largest = kernels.weigh_and_accumulate(
                    weighed.weights, pairs, weighed.bounds, sums.exponents, weighed.log_c[i], sums.part(i)
                )
                sums.note_largest(largest)
            with self._phases(Phase.COMM):
                sums.reduce()
        return Totals(sums, weighed, scale, widest)

    def solve(self, totals: Totals) -> Estimate:
        """Eq. 3, times sigma, and what the weights say. There is no gradient if no overlap is left."""
        sums, (batches, theta, _, _, bounds), scale, widest = totals
        with self._phases(Phase.WEIGHTS):
            found = self._describe(sums, bounds, sum(batch.samples for batch in batches))
            if found.ess == 0.0:
                return found
            return found._replace(gradient=self._gradient(sums, batches, theta, widest) * scale)

    def _bounds(self, log_reference: float) -> Bounds:
        return Bounds(self._log_clip, log_reference, self._per_pair)

    def _describe(self, sums: ExactSums, bounds: Bounds, two_n: int) -> Estimate:
        """What the weights of 2n samples say; the ESS is 0 if no overlap is left."""
        mean = math.exp(min(kernels.LOG_MAX, bounds.log_reference)) * (sums.c * sums.unit / two_n)  # Σc / 2n
        resolved = sums.c2 >= two_n * _RESOLVED
        ess = sums.c * sums.c * sums.unit / (two_n * sums.c2) if resolved else 0.0  # (Σc)² / (2n Σc²)
        return Estimate(None, ess, mean, sums.largest, sums.n_clipped / two_n)

    def _gradient(self, sums: ExactSums, batches: Sequence[Batch], theta: Vector, widest: float) -> Vector:
        """Sigma times eq. 3, (d,), in units of the utilities' scale."""
        sigma, mean_utility = batches[-1].sigma, sums.cu / sums.c  # ū_c = Σcu / Σc
        gradient = sums.mean_noise(0)  # eq. 3, first term
        if self._center:
            gradient -= mean_utility * sums.mean_noise(1)  # eq. 3 with u − ū_c
        if widest != sigma:
            gradient *= widest / sigma
        for i, batch in enumerate(batches):
            c, cu = sums.of_batch(i)
            excess = cu - mean_utility * c if self._center else cu  # summed over batches, 0 if centered
            if not self._center or len(batches) > 1:
                gradient -= (excess / sums.c) * ((theta - batch.center) / sigma)  # eq. 3, second term
        return gradient

    def _mine(self, batch: Batch) -> slice:
        """This rank's pairs of a batch."""
        share = self._group.slice(batch.starts.size)
        return slice(share.start, share.stop)

    def _empty_sums(self, batches: Sequence[Batch], d: int) -> ExactSums:
        shape = (sum(batch.starts.size for batch in batches), len(batches), d)
        if shape not in self._sums:
            self._sums = {shape: ExactSums(*shape, self._center, self._group)}
        self._sums[shape].clear()
        return self._sums[shape]
