"""The compiled kernels against brute force in long double, at their limits, and in exact arithmetic."""

import itertools
import math

import numpy as np
import pytest
import reference

from iwes_mpi.compiled.jit import float_bits, kernel
from iwes_mpi.method import kernels

DIMENSIONS = (11_848, 96_520, 324_104)  # the paper's policies of 64, 256 and 512 hidden units
METHODS = range(len(kernels.WEIGHT_KERNELS))


def all_log_weights(noise, starts, delta):
    """(3, n, 2): by each of the methods."""
    out = np.full((3, starts.size, 2), np.nan)
    for method in METHODS:
        kernels.log_weights(
            method, noise.values, starts, noise.prefix, delta, delta.astype(np.float32),
            kernels.sum_squares(delta), out[method],
        )  # fmt: skip
    return out


def population(noise, rng, n, d):
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    return starts, np.stack([noise.values[start : start + d] for start in starts])


def of_norm(direction, r):
    return direction * (r / np.linalg.norm(direction))


# -- log weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitted", [False, True], ids=["independent", "fitted"])
@pytest.mark.parametrize("d", DIMENSIONS)
def test_log_weights_match_the_density_ratio(noise, d, fitted):
    """Eq. 4 in long double, for theta moved at random and for theta moved along the population's own noise."""
    rng = np.random.default_rng(d)
    starts, epsilon = population(noise, rng, 3, d)
    direction = epsilon.sum(axis=0, dtype=float) if fitted else rng.standard_normal(d)
    for r in (0.0, 1e-3, 1.0, 5.0, 20.0, 60.0) if d < 2e5 else (0.5, 60.0):
        delta = of_norm(direction, r)
        expected = reference.importance(epsilon, delta)[0]
        tolerance = 1e-5 * np.maximum(1, np.abs(expected))
        assert (np.abs(all_log_weights(noise, starts, delta) - expected) <= tolerance).all(), r


@pytest.mark.parametrize(("d", "n"), [(11_848, 13), (11_848, 40), (96_520, 110)])
def test_log_weights_survive_cancellation(noise, d, n):
    """theta moved so far along the noise that s is hundreds to thousands and cancels against r²/2."""
    starts, epsilon = population(noise, np.random.default_rng(n), n, d)
    delta = epsilon.mean(axis=0, dtype=float) * 2
    r2 = delta @ delta
    assert r2 > 500
    s = epsilon @ delta.astype(np.longdouble)
    expected = np.stack([-r2 / 2 - s, -r2 / 2 + s], axis=1)
    assert np.abs(expected).min() < 0.01 * r2
    error = np.abs(all_log_weights(noise, starts, delta) - expected)
    assert (error <= 1e-5 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 8, 255, 256, 257, 1023])
def test_log_weights_of_any_length(noise, d):
    rng = np.random.default_rng(d)
    starts, epsilon = population(noise, rng, 9, d)
    delta = of_norm(rng.standard_normal(d), 1.5)
    expected = reference.importance(epsilon, delta)[0]
    np.testing.assert_allclose(all_log_weights(noise, starts, delta), np.broadcast_to(expected, (3, 9, 2)), atol=2e-6)


def test_mirrored_log_weights_swap_with_the_sign_of_delta(noise):
    rng = np.random.default_rng(5)
    starts, _ = population(noise, rng, 10, 300)
    delta = of_norm(rng.standard_normal(300), 2.0)
    np.testing.assert_allclose(
        all_log_weights(noise, starts, delta), all_log_weights(noise, starts, -delta)[:, :, ::-1], rtol=0, atol=1e-12
    )


# -- squared norms -------------------------------------------------------------------------------------------


def test_squared_norm_lookup(noise):
    """The O(1) lookup against the sum itself: random slices, and slices that begin or end on block borders."""
    rng = np.random.default_rng(2)
    block, size = kernels.BLOCK, noise.values.size
    cases = [(int(rng.integers(0, size - d + 1)), int(d)) for d in rng.integers(1, 20_000, size=300)]
    for d in (1, block - 1, block, block + 1, 2 * block, 10 * block):
        for start in (0, 1, block - 1, block, block + 1, 7 * block, size - d):
            cases.append((start, d))
    cases += [(0, size), (0, size // block * block), (5, size - 5), (block, size - block)]
    for start, d in cases:
        exact = float(np.sum(noise.values[start : start + d].astype(np.longdouble) ** 2))
        found = kernels.squared_norm(noise.values, noise.prefix, start, d)
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-7), (start, d)


def test_prefix_sums(noise):
    blocks = noise.values[: (noise.prefix.size - 1) * kernels.BLOCK].astype(np.longdouble).reshape(-1, kernels.BLOCK)
    expected = np.concatenate([[0], np.cumsum((blocks * blocks).sum(axis=1))])
    assert noise.prefix.size == noise.values.size // kernels.BLOCK + 1
    np.testing.assert_allclose(noise.prefix, expected.astype(float), rtol=1e-13, atol=0)


# -- fixed point ---------------------------------------------------------------------------------------------


@kernel
def _bits(value):
    return float_bits(value)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 1e300, 5e-324])
def test_float_bits(value):
    assert _bits(value) == int(np.float64(value).view(np.int64))


@pytest.mark.parametrize("n_pairs", [0, -1, 2**30 + 1])
def test_fixed_point_refuses(n_pairs):
    with pytest.raises(ValueError, match="n_pairs"):
        kernels.fixed_point(n_pairs)


def test_fixed_point_never_overflows_and_never_wastes():
    """At every population size: the worst sums fit into 63 bits, and no finer exponent would fit."""
    sizes = {1, 2, 3, 5, 7, 5000, 2**20, 2**30} | {2**p + e for p in range(2, 30) for e in (-1, 0, 1)}
    largest_epsilon = float(np.nextafter(np.float32(kernels.MAX_ABS_EPSILON), np.float32(0)))
    finest = []
    for n in sorted(sizes):
        exponents = kernels.fixed_point(n)
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
    assert kernels.fixed_point(2**20).gradient >= 38
    assert kernels.fixed_point(2**20).scalar >= 38


def accumulate(values, starts, d, utilities, log_c, exponents, center=True, log_clip=0.0, reference_=0.0):
    """`weigh_and_accumulate` over given log weights."""
    sums = np.zeros((2 if center else 1, d), dtype=np.int64)
    scalars = np.zeros(kernels.N_SCALARS, dtype=np.int64)
    largest = kernels.weigh_and_accumulate(
        kernels.CANCELLED, False, values, starts, np.zeros(1), np.zeros(d), np.zeros(d, np.float32), 1.0,
        log_clip, reference_, utilities, *exponents, log_c, sums, scalars,
    )  # fmt: skip
    return sums, scalars, largest


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])
def test_worst_case_terms_are_exact_at_the_bounds(n):
    """All weights 1, all utilities ±1, all noise at ±8: the largest terms there are, against exact integers."""
    rng = np.random.default_rng(n)
    d = 37
    edge = np.nextafter(np.float32(8), np.float32(0))
    values = np.concatenate([np.full(d, edge), np.full(d, -edge), rng.choice([edge, -edge], size=d)]).astype(np.float32)
    for start, sign in ((0, 1), (d, 1), (0, -1), (2 * d, 1)):
        starts = np.full(n, start)
        utilities = np.tile([sign, -sign], (n, 1)).astype(float)
        exponents = kernels.fixed_point(n)
        sums, scalars, largest = accumulate(values, starts, d, utilities, np.zeros((n, 2)), exponents)
        term = [round(2 * sign * float(x) * 2**exponents.gradient) for x in values[start : start + d]]
        assert sums[0].tolist() == [n * t for t in term]
        assert not sums[1].any()  # Σ (c₊ − c₋) epsilon
        assert scalars.tolist() == [2 * n * 2**exponents.scalar, 2 * n * 2**exponents.scalar, 0, 2 * n]
        assert largest == 1


def test_worst_case_sums_of_the_largest_population():
    """2^20 and 2^30 pairs at the bounds, by doubling the sums of 2^10 pairs the way an Allreduce adds them."""
    d, n = 5, 2**10
    edge = np.nextafter(np.float32(8), np.float32(0))
    values = np.full(d, -edge)
    for total in (2**20, 2**30):
        exponents = kernels.fixed_point(total)
        sums, scalars, _ = accumulate(
            values, np.zeros(n, np.int64), d, np.tile([1.0, -1.0], (n, 1)), np.zeros((n, 2)), exponents
        )
        exact = [int(x) for x in sums[0]], [int(x) for x in scalars]
        for _ in range((total // n).bit_length() - 1):
            sums, scalars = sums + sums, scalars + scalars
        assert sums[0].tolist() == [x * (total // n) for x in exact[0]]
        assert scalars.tolist() == [x * (total // n) for x in exact[1]]
        assert sums[0].max() < 0
        assert scalars.min() >= 0


def test_terms_round_to_nearest():
    """Each term is rounded on its own, to the nearest integer: at most half a unit per pair from the real sum."""
    rng = np.random.default_rng(8)
    n, d = 6, 50
    values = rng.standard_normal(d * n).astype(np.float32)
    starts = np.arange(n) * d
    utilities, log_c = rng.uniform(-1, 1, (n, 2)), -rng.exponential(3, (n, 2))
    exponents = kernels.FixedPoint(gradient=12, scalar=10)  # coarse, so that rounding shows
    sums, scalars, largest = accumulate(values, starts, d, utilities, log_c, exponents)
    c = np.exp(log_c)
    a, b = c[:, 0] * utilities[:, 0] - c[:, 1] * utilities[:, 1], c[:, 0] - c[:, 1]
    epsilon = values.reshape(n, d).astype(float)
    assert sums[0].tolist() == np.rint(a[:, None] * epsilon * 2**12).sum(axis=0).astype(int).tolist()
    assert sums[1].tolist() == np.rint(b[:, None] * epsilon * 2**12).sum(axis=0).astype(int).tolist()
    expected = [np.rint(x * 2**10).sum() for x in (c, c * c, c * utilities)]
    assert scalars.tolist() == [*expected, 0]
    assert largest == pytest.approx(c.max())


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("log_clip", [0.0, math.log(10), math.inf])
def test_sums_are_the_same_for_any_partition(noise, center, log_clip):
    """Integers over any split of the pairs, in any order, empty parts included, add up to the same integers."""
    rng = np.random.default_rng(3)
    n, d = 101, 3001
    starts, _ = population(noise, rng, n, d)
    delta = of_norm(rng.standard_normal(d), 1.3)
    utilities = rng.uniform(-1, 1, (n, 2))
    exponents = kernels.fixed_point(n)

    def part(pairs):
        sums = np.zeros((1 + center, d), dtype=np.int64)
        scalars = np.zeros(kernels.N_SCALARS, dtype=np.int64)
        largest = kernels.weigh_and_accumulate(
            kernels.CANCELLED, True, noise.values, starts[pairs], noise.prefix, delta, delta.astype(np.float32),
            kernels.sum_squares(delta), log_clip, 3.0 if log_clip else 0.0, utilities[pairs],
            *exponents, np.zeros((len(pairs), 2)), sums, scalars,
        )  # fmt: skip
        return sums, scalars, largest

    whole = part(np.arange(n))
    assert whole[1][kernels.SUM_C] > 0
    for parts in (2, 3, 4, 7, 50, 150):
        order = rng.permutation(n) if parts != 4 else np.arange(n)
        cuts = np.sort(rng.integers(0, n + 1, size=parts - 1))
        found = [part(pairs) for pairs in np.split(order, cuts)]
        assert sum(f[0] for f in found).tobytes() == whole[0].tobytes()
        assert sum(f[1] for f in found).tobytes() == whole[1].tobytes()
        assert max(f[2] for f in found) == whole[2]


def test_nothing_but_the_gradient_of_no_pairs():
    sums, scalars, largest = accumulate(
        np.zeros(8, np.float32), np.zeros(0, np.int64), 8, np.zeros((0, 2)), np.zeros((0, 2)), kernels.fixed_point(1)
    )
    assert not sums.any()
    assert not scalars.any()
    assert largest == 0


# -- small kernels -------------------------------------------------------------------------------------------


def test_perturb_rounds_once(noise):
    """theta ± sigma·epsilon in float64, then one rounding to float32."""
    rng = np.random.default_rng(1)
    theta, row, out = rng.standard_normal(999), noise.values[7:1006], np.zeros(999, np.float32)
    for sign in (1.0, -1.0):
        kernels.perturb(theta, 0.02, row, sign, out)
        exact = theta.astype(np.longdouble) + np.longdouble(sign * 0.02) * row
        assert (np.abs(out - exact) <= 0.5001 * np.spacing(np.abs(out))).all()


def test_sum_squares_and_norm():
    values = np.random.default_rng(1).standard_normal(100_003)
    exact = float(np.sum(values.astype(np.longdouble) ** 2))
    assert kernels.sum_squares(values) == pytest.approx(exact, rel=1e-14)
    assert kernels.norm(values) == pytest.approx(math.sqrt(exact), rel=1e-14)
    assert kernels.norm(np.zeros(0)) == 0
