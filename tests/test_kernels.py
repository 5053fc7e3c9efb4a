"""The compiled kernels against brute force in long double, at their limits, and in exact arithmetic."""

import math

import numpy as np
import pytest
import reference

from iwes_mpi.compiled.jit import float_bits, kernel
from iwes_mpi.method import kernels, weight_kernels
from iwes_mpi.method.exact_sums import fixed_point
from iwes_mpi.method.kernels import Bounds, Pairs, Sums
from iwes_mpi.settings.registry import WEIGHT_KERNELS

DIMENSIONS = (11_848, 96_520, 324_104)  # the paper's policies of 64, 256 and 512 hidden units
METHODS = WEIGHT_KERNELS.names


def all_log_weights(noise, starts, delta):
    """(3, n, 2): by each of the methods."""
    out = np.full((len(METHODS), starts.size, 2), np.nan)
    for method, log_c in zip(METHODS, out, strict=True):
        weights = weight_kernels.kernel_named(method).of(noise, delta, kernels.sum_squares(delta))
        kernels.log_weights(weights, starts, log_c)
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
    expected = np.stack([-r2 / 2 + s, -r2 / 2 - s], axis=1)
    assert np.abs(expected).min() < 0.01 * r2
    error = np.abs(all_log_weights(noise, starts, delta) - expected)
    assert (error <= 1e-5 * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 8, 255, 256, 257, 1023])
def test_log_weights_of_any_length(noise, d):
    rng = np.random.default_rng(d)
    starts, epsilon = population(noise, rng, 9, d)
    delta = of_norm(rng.standard_normal(d), 1.5)
    expected = reference.importance(epsilon, delta)[0]
    np.testing.assert_allclose(
        all_log_weights(noise, starts, delta), np.broadcast_to(expected, (len(METHODS), 9, 2)), atol=2e-6
    )


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


def accumulate(
    values, starts, d, utilities, log_c, exponents, center=True, log_clip=0.0, log_reference=0.0, stretch=1.0
):
    """`weigh_and_accumulate` over given log weights."""
    sums = empty_sums(2 if center else 1, d)
    pairs, bounds = Pairs(values, starts, utilities, stretch), Bounds(log_clip, log_reference)
    largest = kernels.weigh_and_accumulate(None, pairs, bounds, exponents, log_c, sums)
    return sums.gradient, sums.scalars, largest


def empty_sums(rows, d):
    return Sums(np.zeros((rows, d), dtype=np.int64), np.zeros(kernels.N_SCALARS, dtype=np.int64))


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
        exponents = fixed_point(n)
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
        exponents = fixed_point(total)
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


@pytest.mark.parametrize("stretch", [1.0, 0.3])
def test_terms_round_to_nearest(stretch):
    """Each term is rounded on its own, to the nearest integer: at most half a unit per pair from the real sum."""
    rng = np.random.default_rng(8)
    n, d = 6, 50
    values = rng.standard_normal(d * n).astype(np.float32)
    starts = np.arange(n) * d
    utilities, log_c = rng.uniform(-1, 1, (n, 2)), -rng.exponential(3, (n, 2))
    exponents = kernels.FixedPoint(gradient=12, scalar=10)  # coarse, so that rounding shows
    sums, scalars, largest = accumulate(values, starts, d, utilities, log_c, exponents, stretch=stretch)
    c = np.exp(log_c)
    a, b = c[:, 0] * utilities[:, 0] - c[:, 1] * utilities[:, 1], c[:, 0] - c[:, 1]
    epsilon = values.reshape(n, d).astype(float) * stretch
    assert sums[0].tolist() == np.rint(a[:, None] * epsilon * 2**12).sum(axis=0).astype(int).tolist()
    assert sums[1].tolist() == np.rint(b[:, None] * epsilon * 2**12).sum(axis=0).astype(int).tolist()
    expected = [np.rint(x * 2**10).sum() for x in (c, c * c, c * utilities)]
    assert scalars.tolist() == [*expected, 0]
    assert largest == pytest.approx(c.max())


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("log_clip", [0.0, math.log(10), math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_sums_are_the_same_for_any_partition(noise, method, log_clip, center):
    """Integers over any split of the pairs, in any order, empty parts included, add up to the same integers."""
    rng = np.random.default_rng(3)
    n, d = 101, 3001
    starts, _ = population(noise, rng, n, d)
    delta = of_norm(rng.standard_normal(d), 1.3)
    utilities = rng.uniform(-1, 1, (n, 2))
    exponents = fixed_point(n)

    weights = weight_kernels.kernel_named(method).of(noise, delta, kernels.sum_squares(delta))
    bounds = Bounds(log_clip, 3.0 if log_clip else 0.0)

    def part(pairs):
        sums = empty_sums(1 + center, d)
        mine = Pairs(noise.values, starts[pairs], utilities[pairs], 1.0)
        largest = kernels.weigh_and_accumulate(weights, mine, bounds, exponents, np.zeros((len(pairs), 2)), sums)
        return *sums, largest

    whole = part(np.arange(n))
    assert whole[1][kernels.SUM_C] > 0
    for parts in (2, 3, 4, 7, 50, 150):
        order = rng.permutation(n) if parts != 4 else np.arange(n)
        cuts = np.sort(rng.integers(0, n + 1, size=parts - 1))
        found = [part(pairs) for pairs in np.split(order, cuts)]
        assert sum(f[0] for f in found).tobytes() == whole[0].tobytes()
        assert sum(f[1] for f in found).tobytes() == whole[1].tobytes()
        assert max(f[2] for f in found) == whole[2]


@pytest.mark.parametrize("method", METHODS)
def test_weights_on_the_way_are_those_computed_before(noise, method):
    """One pass or two: the same weights, to the bit, and the same sums; clipped ones are counted."""
    rng = np.random.default_rng(7)
    n, d = 21, 999
    starts, _ = population(noise, rng, n, d)
    delta = of_norm(rng.standard_normal(d), 0.8)
    weights = weight_kernels.kernel_named(method).of(noise, delta, kernels.sum_squares(delta))
    pairs = Pairs(noise.values, starts, rng.uniform(-1, 1, (n, 2)), 1.0)
    before, on_the_way = np.zeros((n, 2)), np.zeros((n, 2))
    kernels.log_weights(weights, starts, before)
    found = []
    for given, log_c in ((None, before), (weights, on_the_way)):
        sums = empty_sums(2, d)
        largest = kernels.weigh_and_accumulate(given, pairs, Bounds(0.0, 0.0), fixed_point(n), log_c, sums)
        found.append((sums.gradient.tobytes(), sums.scalars.tolist(), largest))
    assert before.tobytes() == on_the_way.tobytes()
    assert found[0] == found[1]
    assert found[0][1][kernels.N_CLIPPED] == np.sum(before >= 0) > 0


def test_the_largest_weight_is_reported_before_the_reference_is_subtracted():
    values, utilities = np.ones(8, np.float32), np.ones((2, 2))
    log_c = np.array([[3.0, 1.0], [-5.0, 2.0]])
    for log_clip, reference_, expected in ((math.inf, 3.0, math.exp(3)), (math.log(10), math.log(10), 10.0)):
        _, scalars, largest = accumulate(
            values, np.zeros(2, np.int64), 8, utilities, log_c, fixed_point(2), True, log_clip, reference_
        )
        assert largest == pytest.approx(expected)
        c = np.minimum(np.exp(log_c), expected) / expected
        assert scalars[kernels.SUM_C] * 2.0 ** -fixed_point(2).scalar == pytest.approx(c.sum(), abs=1e-13)
        assert scalars[kernels.N_CLIPPED] == (0 if math.isinf(log_clip) else 1)


def test_nothing_but_the_gradient_of_no_pairs():
    sums, scalars, largest = accumulate(
        np.zeros(8, np.float32), np.zeros(0, np.int64), 8, np.zeros((0, 2)), np.zeros((0, 2)), fixed_point(1)
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
