"""The exact sums: their exponents never overflow, and their values are those of exact arithmetic on any ranks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from fakes import on_ranks

from iwes_mpi.method import kernels
from iwes_mpi.method.exact_sums import ExactSums, fixed_point
from iwes_mpi.method.kernels import Bounds, Pairs
from iwes_mpi.mpi.group import alone

# -- fixed point ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_pairs", [0, -1, 2**30 + 1])
def test_fixed_point_refuses(n_pairs):
    with pytest.raises(ValueError, match="n_pairs"):
        fixed_point(n_pairs)


def test_fixed_point_never_overflows_and_never_wastes():
    """At every population size: the worst sums fit into 63 bits, and no finer exponent would fit."""
    sizes = {1, 2, 3, 5, 7, 5000, 2**20, 2**30} | {2**p + e for p in range(2, 30) for e in (-1, 0, 1)}
    largest_epsilon = float(np.nextafter(np.float32(kernels.MAX_ABS_EPSILON), np.float32(0)))
    finest = []
    for n in sorted(sizes):
        exponents = fixed_point(n)
        # A pair's term of the gradient is at most (1·1 + 1·1)·|epsilon|, rounded; its weights add at most 1 + 1.
        term = round(2 * largest_epsilon * 2**exponents.gradient)
        assert term < 2**51, "the magic number rounds correctly below 2^51"
        assert n * term < 2**63
        assert 2 * n * 2**exponents.scalar < 2**63
        finest.append(exponents)
        # Power-of-two populations come within a factor 2 of the limit, unless the magic number limits them.
        assert exponents.gradient == 46 or n * term * 4 >= 2**62
    assert all(a.gradient >= b.gradient and a.scalar >= b.scalar for a, b in itertools.pairwise(finest))


def test_fixed_point_leaves_enough_for_a_million_pairs():
    assert fixed_point(2**20).gradient >= 38
    assert fixed_point(2**20).scalar >= 38


# -- sums over ranks -----------------------------------------------------------------------------------------

D = 33


def batches_of(sizes, seed=5):
    """Noise, and by batch where its pairs' noise starts, their utilities, log weights ≤ 0 and stretch."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal(5000).astype(np.float32)
    found = []
    for size, stretch in zip(sizes, itertools.cycle((1.0, 0.4, 0.75)), strict=False):
        starts = rng.integers(0, table.size - D, size)
        found.append((starts, rng.uniform(-1, 1, (size, 2)), -rng.exponential(2.0, (size, 2)), stretch))
    return table, found


def summed(group, table, batches, center=True, sums=None):
    sums = sums or ExactSums(sum(len(b[0]) for b in batches), len(batches), D, center, group)
    for i, (starts, utilities, log_c, stretch) in enumerate(batches):
        mine = group.slice(len(starts))
        mine = slice(mine.start, mine.stop)
        pairs = Pairs(table, starts[mine], utilities[mine], stretch)
        sums.note_largest(
            kernels.weigh_and_accumulate(
                None, pairs, Bounds(0.0, 0.0), sums.exponents, log_c[mine].copy(), sums.part(i)
            )
        )
    sums.reduce()
    return sums


def facts(sums, center=True):
    rows = [sums.mean_noise(row).tobytes() for row in range(2 if center else 1)]
    of_batch = [sums.of_batch(i) for i in range(sums._message["scalars"].shape[0])]
    return sums.c, sums.c2, sums.cu, sums.n_clipped, sums.largest, of_batch, rows


@pytest.mark.parametrize("sizes", [(1,), (40,), (17, 5), (3, 1, 60, 8)])
def test_sums_are_those_of_exact_fractions(sizes):
    """Each term rounded to its unit, and the rest exact: Python's fractions, term by term."""
    table, batches = batches_of(sizes)
    sums = summed(alone(), table, batches)
    n = sum(sizes)
    assert sums.n_pairs == n
    assert sums.exponents == fixed_point(n)
    unit = Fraction(1, 2**sums.exponents.scalar)
    assert sums.unit == unit
    noise = [Fraction(0)] * D, [Fraction(0)] * D
    totals = [Fraction(0)] * 3
    for i, (starts, utilities, log_c, stretch) in enumerate(batches):
        own = [Fraction(0)] * 2
        for start, u, log in zip(starts, utilities, log_c, strict=True):
            c = [Fraction(math.exp(x)) for x in log]
            u = [Fraction(float(x)) for x in u]
            for j in range(D):
                epsilon = Fraction(float(table[start + j])) * Fraction(stretch)
                noise[0][j] += (c[0] * u[0] - c[1] * u[1]) * epsilon
                noise[1][j] += (c[0] - c[1]) * epsilon
            totals = [t + x for t, x in zip(totals, (sum(c), c[0] ** 2 + c[1] ** 2, c[0] * u[0] + c[1] * u[1]),
                                            strict=True)]  # fmt: skip
            own = [own[0] + sum(c), own[1] + c[0] * u[0] + c[1] * u[1]]
        # A term is off by half a unit, and by the few ulps of exp and a product.
        assert abs(sums.of_batch(i)[0] * unit - own[0]) <= 2 * len(starts) * (unit + Fraction(1, 2**51))
        assert abs(sums.of_batch(i)[1] * unit - own[1]) <= 2 * len(starts) * (unit + Fraction(1, 2**51))
    for found, exact in zip((sums.c, sums.c2, sums.cu), totals, strict=True):
        assert abs(found * unit - exact) <= 2 * n * (unit + Fraction(1, 2**51))
    fine = Fraction(1, 2**sums.exponents.gradient) + Fraction(8, 2**51)
    for row, exact in enumerate(noise):
        bound = n * fine / totals[0] + Fraction(1, 2**50)
        for found, value in zip(sums.mean_noise(row), exact, strict=True):
            assert abs(Fraction(float(found)) - value / totals[0]) <= bound
    assert sums.largest == pytest.approx(max(math.exp(b[2].max()) for b in batches), rel=1e-15)
    assert sums.n_clipped == 0


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("sizes", [(40,), (17, 5), (3, 1, 60, 8)])
def test_the_same_bits_on_any_number_of_ranks(sizes, center):
    """Also where ranks have no pair of a batch."""
    table, batches = batches_of(sizes)
    expected = facts(summed(alone(), table, batches, center), center)
    for size in (2, 3, 7, 13):
        assert on_ranks(size, lambda group: facts(summed(group, table, batches, center), center)) == [expected] * size


def test_cleared_sums_are_as_new():
    table, batches = batches_of((9, 4))
    _, others = batches_of((9, 4), seed=77)
    sums = summed(alone(), table, others)
    before = facts(sums)
    sums.clear()
    again = facts(summed(alone(), table, batches, sums=sums))
    assert again == facts(summed(alone(), table, batches))
    assert again != before


def test_scalar_sums_of_batches_do_not_overflow_together():
    """Each batch's Σc fits into 63 bits, and so does their sum: the exponents are those of all pairs together."""
    n = 3
    table = np.zeros(D, np.float32)
    batch = (np.zeros(n, np.int64), np.ones((n, 2)), np.zeros((n, 2)), 1.0)
    sums = summed(alone(), table, [batch] * 4)
    assert sums.c * sums.unit == sums.c2 * sums.unit == sums.cu * sums.unit == 2 * n * 4
    assert sums.n_clipped == 24
    assert 0 < sums.c < 2**63
