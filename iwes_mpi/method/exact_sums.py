"""Exact sums over all pairs: the fixed point they are kept in, and the one message in which ranks exchange them."""

import math

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.kernels import N_CLIPPED, N_SCALARS, SUM_C, SUM_C2, SUM_CU, FixedPoint, Sums
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.ranks import Ranks


def fixed_point(n_pairs: int) -> FixedPoint:
    """The finest exponents at which no sum over `n_pairs` pairs can overflow 63 bits.

    With |u| ≤ 1 and 0 ≤ c ≤ 1 a pair adds at most 2·8 to an element of the gradient, and at most 2 to a scalar.
    A million pairs leave 2^-38 for the gradient: 4e-12.

    Raises
    ------
    ValueError
        If `n_pairs` is not between 1 and 2^30.
    """
    if not 1 <= n_pairs <= 2**30:
        raise ValueError(f"n_pairs must lie between 1 and 2^30, got {n_pairs}")
    pairs = (n_pairs - 1).bit_length()  # n_pairs ≤ 2^pairs
    term = int(math.log2(2 * kernels.MAX_ABS_EPSILON))
    # A single term must also stay below 2^51, where the magic number works.
    return FixedPoint(gradient=min(62 - term - pairs, 50 - term), scalar=min(62 - 1 - pairs, 50))


class ExactSums:
    """The sums of eq. 3 over the pairs of one or several batches, in units of a common scale.

    Utilities are divided by `scale`, their largest magnitude, and weights by a reference, their largest possible value:
    then no sum can overflow. Each rank adds its pairs to `part` and notes its largest weight; `reduce` adds the ranks.

    Parameters
    ----------
    n_pairs : int
        Over all batches and ranks.
    n_batches, d : int
    centered : bool
        Whether the second sum is wanted that centering needs.
    group : Ranks
        The ranks that share the pairs.
    """

    def __init__(self, n_pairs: int, n_batches: int, d: int, centered: bool, group: Ranks):
        self.n_pairs, self.exponents = n_pairs, fixed_point(n_pairs)
        self._group = group
        self._message = Message(
            gradient=counts(2 if centered else 1, d),
            scalars=counts(n_batches, N_SCALARS),
            largest=slots(group.size),  # by rank
        )

    def clear(self) -> None:
        """Forget all that was added."""
        self._message.clear()

    def part(self, batch: int) -> Sums:
        """What this rank adds its pairs of a batch to."""
        return Sums(self._message["gradient"], self._message["scalars"][batch])

    def note_largest(self, weight: float) -> None:
        """Note a weight of this rank's, if it is the largest so far."""
        mine = self._message["largest"]
        mine[self._group.rank] = max(weight, mine[self._group.rank])

    def reduce(self) -> None:
        """Add up the ranks. Collective on the group; before it, only `part` and `note_largest` mean anything."""
        self._message.reduce(self._group)

    # -- after `reduce`: real numbers, the same on every rank. Weights are in units of the reference, utilities in units
    # of their scale.

    @property
    def largest(self) -> float:
        """The largest weight (not in units of the reference)."""
        return float(self._message["largest"].max())

    @property
    def n_clipped(self) -> int:
        """How many weights were at the clip or above."""
        return int(self._message["scalars"][:, N_CLIPPED].sum())

    @property
    def unit(self) -> float:
        """What one unit of the scalar sums is worth."""
        return 2.0**-self.exponents.scalar

    @property
    def c(self) -> int:
        """Σc, in units."""
        return self._scalar(SUM_C)

    @property
    def c2(self) -> int:
        """Σc², in units."""
        return self._scalar(SUM_C2)

    @property
    def cu(self) -> int:
        """Σcu, in units."""
        return self._scalar(SUM_CU)

    def of_batch(self, batch: int) -> tuple[int, int]:
        """Σc and Σcu over one batch, in units."""
        scalars = self._message["scalars"][batch]
        return int(scalars[SUM_C]), int(scalars[SUM_CU])

    def mean_noise(self, row: int) -> NDArray[np.float64]:
        """(1/Σc) Σ (c₊u₊ − c₋u₋) epsilon, (d,), each batch stretched (`kernels.Pairs`); row 1: the same without u."""
        to_mean = 2.0**-self.exponents.gradient / (self.c * self.unit)  # eq. 3: 1/Σc
        return self._message["gradient"][row] * to_mean  # type: ignore[no-any-return]

    def _scalar(self, which: int) -> int:
        return sum(map(int, self._message["scalars"][:, which]))  # Python's integers do not overflow
