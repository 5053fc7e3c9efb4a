"""Eqs. 3 and 4 by the estimator, one population at a time: against long double, at their limits, and as statistics.

Several populations at once are in test_mixture.py.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from fakes import epsilons, on_ranks

from iwes_mpi.method import kernels, weight_kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.estimator import Estimator
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.shapings import centered_rank
from iwes_mpi.settings.registry import WEIGHT_KERNELS


def estimate(group, noise, starts, utilities, delta, **settings):
    """The estimate where theta has moved by delta from a population at 0, in units of a sigma of 1."""
    batch = Batch(np.zeros(delta.size), 1.0, starts, utilities)
    return Estimator(group, noise, Phases(), **settings).estimate([batch], delta)


def assert_finite(found):
    assert all(math.isfinite(x) for x in found[1:]), found[1:]
    assert found.gradient is None or np.isfinite(found.gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("fitted", [False, True], ids=["independent", "fitted"])
@pytest.mark.parametrize("d", [11_848, 96_520, 324_104])
def test_estimates_match_long_double(world, noise, d, fitted):
    rng = np.random.default_rng(d)
    n = 3 if d > 2e5 else 6
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    epsilon = epsilons(noise, starts, d)
    utilities = centered_rank.shape(rng.standard_normal((n, 2)))
    direction = epsilon.sum(axis=0).astype(float) if fitted else rng.standard_normal(d)
    for r in (0.0, 0.3, 1.0, 5.0) if d < 2e4 else (1.0, 5.0):
        delta = direction * (r / np.linalg.norm(direction))
        log_c, score = reference.importance(epsilon, delta)
        for clip in (1.0, 10.0, math.inf):
            for center in (False, True):
                expected = reference.iwes(log_c, score, utilities, clip, center)
                norm = np.linalg.norm(expected.gradient.astype(float))
                methods = WEIGHT_KERNELS.names if d < 2e4 or clip == 1 else ("cancelled",)
                for method in methods:
                    found = estimate(
                        world, noise, starts, utilities, delta, clip=clip, center=center, weight_kernel=method
                    )
                    assert_finite(found)
                    assert np.linalg.norm((found.gradient - expected.gradient).astype(float)) <= 1e-4 * norm
                    # A weight is rounded to 2^-50 or so, of 1 or of the largest one.
                    unit = float(n * 2.0**-50 / expected.sum_c2 * (1 if clip == 1 else expected.max_weight**2))
                    assert found.ess == pytest.approx(float(expected.ess), rel=1e-4 + unit)
                    assert found.clipped_share == expected.clipped_share
                    if expected.max_weight < 1e300:
                        assert found.mean_weight == pytest.approx(float(expected.mean_weight), rel=1e-4)
                        assert found.max_weight == pytest.approx(float(expected.max_weight), rel=1e-4)


@pytest.mark.parametrize("method", WEIGHT_KERNELS.names)
@pytest.mark.parametrize("d", [2, 11_848, 324_104])
def test_nothing_is_ever_nan_or_inf(world, noise, d, method):
    """Near and far, clipped or not, towards the noise or away from it. Overlap that is lost gives no gradient."""
    rng = np.random.default_rng(d)
    n = 2
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    utilities = np.array([[0.5, -0.5], [0.0, 0.25]])
    towards = epsilons(noise, starts, d).sum(axis=0).astype(float)
    for direction in (rng.standard_normal(d), towards, -towards):
        for r in (0.0, 1e-12, 20.0, 60.0, 1e4) if d < 1e5 else (60.0,):
            delta = direction * (r / np.linalg.norm(direction))
            for clip in (1e-3, 1.0, 10.0, math.inf):
                for center in (False, True):
                    found = estimate(
                        world, noise, starts, utilities, delta, clip=clip, center=center, weight_kernel=method
                    )
                    assert_finite(found)
                    assert 0 <= found.ess <= 1 + 1e-12
                    assert found.gradient is not None or found.ess == 0


def test_lost_overlap_gives_no_gradient(world, noise):
    """Independent of the noise, r = 60 leaves weights of exp(−1800)."""
    d = 11_848
    delta = np.full(d, 60 / math.sqrt(d))
    starts = np.arange(5) * d
    lost = estimate(world, noise, starts, np.ones((5, 2)), delta)
    assert lost.gradient is None
    assert (lost.ess, lost.mean_weight, lost.clipped_share) == (0, 0, 0)
    # Without a clip the estimator is self-normalized: one sample carries everything.
    alone = estimate(world, noise, starts, np.ones((5, 2)), delta, clip=math.inf)
    assert alone.gradient is not None
    assert alone.ess == pytest.approx(0.1, rel=0.05)


def test_all_utilities_zero(world, noise):
    found = estimate(world, noise, np.arange(3), np.zeros((3, 2)), np.full(50, 0.1))
    assert not found.gradient.any()


@pytest.mark.parametrize("clip", [0.5, 1.0, 10.0, math.inf])
def test_at_the_center_all_weights_are_equal(world, noise, clip):
    """k = 0: plain ES whatever the clip; ESS is 1."""
    rng = np.random.default_rng(1)
    starts, utilities = rng.integers(0, 10**6, 8), rng.standard_normal((8, 2))
    found = estimate(world, noise, starts, utilities, np.zeros(99), clip=clip)
    plain = (utilities[:, 0] - utilities[:, 1]) @ epsilons(noise, starts, 99).astype(float) / 16
    np.testing.assert_allclose(found.gradient, plain, rtol=1e-9, atol=1e-12)
    assert found.ess == pytest.approx(1, rel=1e-12)
    assert found.mean_weight == found.max_weight == pytest.approx(min(1, clip), rel=1e-12)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, 10.0, math.inf])
def test_the_same_bits_on_any_number_of_ranks(noise, clip, center):
    rng = np.random.default_rng(4)
    n, d = 10, 1234
    starts, utilities = rng.integers(0, 10**6, n), rng.standard_normal((n, 2))
    delta = rng.standard_normal(d) * 0.05

    def bits(group):
        found = estimate(group, noise, starts, utilities, delta, clip=clip, center=center)
        return found.gradient.tobytes(), found[1:]

    alone = on_ranks(1, bits)[0]
    for size in (2, 3, 7, 13):
        assert on_ranks(size, bits) == [alone] * size


# -- the estimator's statistics ------------------------------------------------------------------------------


def populations(rng, count, n, d):
    """Independent noise, with no overlap between pairs."""
    for _ in range(count):
        yield SimpleNamespace(values=rng.standard_normal(n * d, dtype=np.float32), prefix=np.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("objective", ["linear", "quadratic"])
def test_estimator_is_unbiased(world, objective, r):
    """Mean over populations against sigma times the known gradient of E F at theta^{t+k}; D independent, no clip.

    Gaussian smoothing leaves the gradient of a linear and of a quadratic function as it is. The self-normalized
    estimator's bias, of order 1/n, is a fiftieth of the standard error at this n.
    """
    d, n, count, sigma = 6, 20_000, 20, 0.5
    rng = np.random.default_rng(17)
    w, m = rng.standard_normal(d), rng.standard_normal(d)
    a = rng.standard_normal((d, d))
    a = a @ a.T / d
    delta = rng.standard_normal(d)
    delta *= r / np.linalg.norm(delta)
    old = rng.standard_normal(d)
    new = old + sigma * delta

    def f(x):
        y = x - m
        return 1.5 + x @ w if objective == "linear" else x @ w - 1.5 - 0.5 * np.sum((y @ a) * y, axis=-1)

    gradient = w if objective == "linear" else w - a @ (new - m)
    found, mean_f = [], []
    for noise in populations(rng, count, n, d):
        epsilon = noise.values.reshape(n, d).astype(float)
        utilities = np.stack([f(old + sigma * epsilon), f(old - sigma * epsilon)], axis=1)
        batch = Batch(old, sigma, np.arange(n) * d, utilities)
        found.append(Estimator(world, noise, Phases(), clip=math.inf).estimate([batch], new).gradient)
        mean_f.append(utilities.mean())
    error = np.std(found, axis=0, ddof=1) / math.sqrt(count)
    z = (np.mean(found, axis=0) - sigma * gradient) / error
    assert np.abs(z).max() < 3.9  # d = 6 values of Student's t with 19 degrees of freedom: p = 0.006
    # The test has power: sigma, and eq. 3's term along D, are worth many standard errors.
    assert np.linalg.norm(sigma * gradient) > 50 * np.linalg.norm(error)
    if r > 0:
        assert abs(np.mean(mean_f)) * r > 20 * np.linalg.norm(error)


def weights_of_independent_move(world, r, clip):
    n, d = 100_000, 16
    rng = np.random.default_rng(23)
    noise = next(populations(rng, 1, n, d))
    delta = rng.standard_normal(d)
    delta *= r / np.linalg.norm(delta)
    return estimate(world, noise, np.arange(n) * d, np.ones((n, 2)), delta, clip=clip)


@pytest.mark.slow
@pytest.mark.parametrize(("r", "stated"), [(0.5, 0.93), (1, 0.78), (2, 0.43), (3, 0.19)])
def test_clipped_weights_of_an_independent_move(world, r, stated):
    """ESS and mean weight against their closed forms, when theta did not move along this very noise."""
    found = weights_of_independent_move(world, r, 1.0)
    assert reference.ess_clipped(r) == pytest.approx(stated, abs=0.005)
    assert found.ess == pytest.approx(reference.ess_clipped(r), rel=0.01)
    assert found.mean_weight == pytest.approx(2 * reference.normal_cdf(-r / 2), rel=0.01)
    assert found.clipped_share == pytest.approx(reference.normal_cdf(-r / 2), rel=0.02)
    assert found.max_weight == 1


@pytest.mark.parametrize("r", [0.25, 0.5, 1])
def test_unclipped_weights_of_an_independent_move(world, r):
    found = weights_of_independent_move(world, r, math.inf)
    assert found.ess == pytest.approx(math.exp(-r * r), rel=0.03)
    assert found.mean_weight == pytest.approx(1, rel=0.01)
    assert found.clipped_share == 0


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1.0), ("adam", 2 / math.pi)])
def test_a_move_along_the_noise_spreads_the_weights(world, noise, optimizer, factor):
    """Var(s) = r²(1 + d/n_pairs) after a step of SGD, r²(1 + (2/π)·d/n_pairs) after Adam's first (docs/method.md)."""
    n, d = 200, 4000
    rng = np.random.default_rng(6)
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    epsilon = epsilons(noise, starts, d).astype(float)
    gradient = rng.choice([-1.0, 1.0], size=n) @ epsilon
    delta = np.sign(gradient) if optimizer == "adam" else gradient
    delta = delta / np.linalg.norm(delta)
    log_c = np.zeros((n, 2))
    kernels.log_weights(weight_kernels.kernel_named("cancelled").of(noise, delta, 1.0), starts, log_c)
    assert np.mean((log_c[:, 0] + 0.5) ** 2) == pytest.approx(1 + factor * d / n, rel=0.1)


# -- centering ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_centering_cancels_the_term_along_d(world, noise, clip):
    """g = (1/Σc) Σ c (u − ū_c)(±epsilon): no D in it, and a constant added to all utilities changes nothing."""
    rng = np.random.default_rng(9)
    n, d = 20, 700
    starts, utilities = rng.integers(0, 10**6, n), rng.uniform(-1, 1, (n, 2))
    epsilon = epsilons(noise, starts, d)
    delta = rng.standard_normal(d) / math.sqrt(d)
    log_c, _ = reference.importance(epsilon, delta)
    c = np.minimum(np.exp(log_c), clip)
    v = utilities - np.sum(c * utilities) / np.sum(c)
    expected = (c[:, 0] * v[:, 0] - c[:, 1] * v[:, 1]) @ epsilon / np.sum(c)
    size = np.linalg.norm(expected.astype(float))
    for shift in (0.0, 0.7, -30.0):
        found = estimate(world, noise, starts, utilities + shift, delta, clip=clip, center=True).gradient
        assert np.linalg.norm((found - expected).astype(float)) <= 1e-5 * size
    plain = estimate(world, noise, starts, utilities, delta, clip=clip).gradient
    shifted = estimate(world, noise, starts, utilities + 0.7, delta, clip=clip).gradient
    assert np.linalg.norm(shifted - plain) > 0.3 * size, "without centering a constant matters"
