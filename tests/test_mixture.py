"""Several populations as one: weights by the balance heuristic, and eq. 3 over all of them, against long double."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from fakes import epsilons, on_ranks

from iwes_mpi.method import kernels, weight_kernels
from iwes_mpi.method import mixture as mixture_module
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.estimator import Estimator
from iwes_mpi.method.mixture import Mixture
from iwes_mpi.method.phases import Phases
from iwes_mpi.settings.registry import WEIGHT_KERNELS

EQUAL, DIFFERENT = (0.05, 0.05, 0.05, 0.05), (0.05, 0.047, 0.056, 0.05)
SIZES = {2: (7, 4), 3: (5, 9, 2), 4: (6, 3, 8, 1)}


def batches_around(noise, rng, d, sizes, sigmas, step=0.8):
    """Batches whose centers follow one another at a distance of `step` sigmas, and theta as far from the last."""
    center = rng.standard_normal(d)
    batches = []
    for size, sigma in zip(sizes, sigmas, strict=False):
        starts = rng.integers(0, noise.values.size - d + 1, size)
        batches.append(Batch(center.copy(), sigma, starts, rng.uniform(-3, 2, (size, 2))))
        center += sigma * of_norm(rng.standard_normal(d), step)
    return batches, center


def of_norm(direction, r):
    return direction * (r / np.linalg.norm(direction))


def expected_weights(noise, batches, theta, sigma=None):
    samples = [(b.center, b.sigma, epsilons(noise, b.starts, theta.size)) for b in batches]
    return reference.mixture(samples, theta, batches[-1].sigma if sigma is None else sigma)


# -- weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", [EQUAL, DIFFERENT], ids=["equal sigmas", "different sigmas"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_weights_match_the_mixtures_density(world, noise, count, sigmas):
    rng = np.random.default_rng(count)
    for d, step in ((1, 0.8), (37, 0.5), (300, 3.0), (2000, 0.8)):
        batches, theta = batches_around(noise, rng, d, SIZES[count], sigmas, step)
        for sigma in (batches[-1].sigma, 0.9 * batches[-1].sigma):
            expected, _ = expected_weights(noise, batches, theta, sigma)
            found = Mixture(world, noise).log_weights(batches, theta, sigma)
            for a, b in zip(found, expected, strict=True):
                assert (np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b))).all(), (d, sigma)


@pytest.mark.parametrize("sigmas", [EQUAL, DIFFERENT], ids=["equal sigmas", "different sigmas"])
def test_weights_at_the_size_of_the_papers_policy(world, noise, sigmas):
    """Hundreds of nats cancel here between d·log sigma and the squares of the noise."""
    rng = np.random.default_rng(1)
    batches, theta = batches_around(noise, rng, 11_848, (3, 2), sigmas)
    expected, _ = expected_weights(noise, batches, theta)
    for a, b in zip(Mixture(world, noise).log_weights(batches, theta, batches[-1].sigma), expected, strict=True):
        assert (np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b))).all()


def test_weights_after_steps_along_the_populations_own_noise(world, noise):
    """As an optimizer moves theta: dot products of hundreds of nats, which cancel against squared distances."""
    rng, d, n, sigma = np.random.default_rng(6), 4000, 12, 0.02
    center, batches = rng.standard_normal(d), []
    for _ in range(3):
        starts = rng.integers(0, noise.values.size - d + 1, n)
        batches.append(Batch(center.copy(), sigma, starts, np.zeros((n, 2))))
        center += sigma * of_norm(epsilons(noise, starts, d).astype(float).sum(axis=0), 15.0)
    expected, _ = expected_weights(noise, batches, center)
    for a, b in zip(Mixture(world, noise).log_weights(batches, center, sigma), expected, strict=True):
        assert (np.abs(a - b) <= 1e-4).all()
        assert np.ptp(b) > 100


@pytest.mark.parametrize("method", WEIGHT_KERNELS.names)
def test_one_batch_is_eq_4(world, noise, method):
    """The mixture of one distribution is that distribution, by any weight kernel."""
    rng = np.random.default_rng(2)
    (batch,), theta = batches_around(noise, rng, 500, (9,), EQUAL, 1.3)
    (found,) = Mixture(world, noise).log_weights([batch], theta, batch.sigma)
    delta = batch.delta(theta)
    log_c = np.zeros((9, 2))
    kernels.log_weights(
        weight_kernels.kernel_named(method).of(noise, delta, kernels.sum_squares(delta)), batch.starts, log_c
    )
    np.testing.assert_allclose(found, log_c, rtol=0, atol=5e-6)


def test_the_same_distribution_in_two_batches_is_one_larger_batch(world, noise):
    """Two populations around one center: the weights of eq. 4, and the estimate of both populations joined."""
    rng = np.random.default_rng(3)
    (whole,), theta = batches_around(noise, rng, 400, (12,), EQUAL, 0.7)
    parts = [whole._replace(starts=whole.starts[s], utilities=whole.utilities[s]) for s in (slice(5), slice(5, 12))]
    (expected,) = Mixture(world, noise).log_weights([whole], theta, whole.sigma)
    found = np.concatenate(Mixture(world, noise).log_weights(parts, theta, whole.sigma))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    for clip, center in itertools.product((1.0, math.inf), (False, True)):
        one, two = (
            Estimator(world, noise, Phases(), clip=clip, center=center).estimate(batches, theta)
            for batches in ([whole], parts)
        )
        np.testing.assert_allclose(two.gradient, one.gradient, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(two[1:], one[1:], rtol=1e-9)


@pytest.mark.parametrize("sigmas", [EQUAL, DIFFERENT], ids=["equal sigmas", "different sigmas"])
def test_no_weight_exceeds_its_own_batchs_by_more_than_the_share(world, noise, sigmas):
    """c ≤ (N/N_m) p/p_m, however far the other batches lie; those far away change nothing else."""
    rng = np.random.default_rng(4)
    d = 200
    batches, theta = batches_around(noise, rng, d, (6, 3, 5), sigmas)
    far = Batch(batches[0].center + 1e3, 0.05, batches[0].starts, batches[0].utilities)
    for chosen in (batches, [far, *batches]):
        total = sum(batch.starts.size for batch in chosen)
        found = Mixture(world, noise).log_weights(chosen, theta, chosen[-1].sigma)
        for batch, log_c in zip(chosen, found, strict=True):
            (own,) = Mixture(world, noise).log_weights([batch], theta, chosen[-1].sigma)
            assert np.isfinite(log_c).all()
            assert (log_c <= own + math.log(total / batch.starts.size) + 1e-9).all()
    with_far = Mixture(world, noise).log_weights([far, *batches], theta, batches[-1].sigma)[1:]
    without = Mixture(world, noise).log_weights(batches, theta, batches[-1].sigma)
    for a, b in zip(with_far, without, strict=True):  # a common factor: the samples' number
        np.testing.assert_allclose(a - b, math.log(20 / 14), rtol=0, atol=1e-9)


# -- the gradient over several batches -----------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("sigmas", [EQUAL, DIFFERENT], ids=["equal sigmas", "different sigmas"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_gradient_over_several_batches(world, noise, count, sigmas, clip, center):
    """Eq. 3 with the score of every sample at the new center, whichever batch it comes from."""
    rng = np.random.default_rng(count)
    for d, step in ((60, 0.4), (60, 2.0), (1000, 0.9)):
        batches, theta = batches_around(noise, rng, d, SIZES[count], sigmas, step)
        utilities = np.concatenate([batch.utilities for batch in batches])
        log_c, score = map(np.concatenate, expected_weights(noise, batches, theta))
        expected = reference.iwes(log_c, score, utilities, clip, center)
        found = Estimator(world, noise, Phases(), clip=clip, center=center).estimate(batches, theta)
        error = np.linalg.norm((found.gradient - expected.gradient).astype(float))
        assert error <= 1e-5 * np.linalg.norm(expected.gradient.astype(float))
        assert found.ess == pytest.approx(float(expected.ess), rel=1e-5)
        assert found.mean_weight == pytest.approx(float(expected.mean_weight), rel=1e-5)
        assert found.max_weight == pytest.approx(float(expected.max_weight), rel=1e-5)
        assert found.clipped_share == expected.clipped_share


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_order_of_batches_does_not_matter(world, noise, clip, center):
    """But for the last, whose sigma is the search distribution's."""
    rng = np.random.default_rng(8)
    batches, theta = batches_around(noise, rng, 80, SIZES[4], DIFFERENT)
    results = []
    for order in itertools.permutations(batches[:3]):
        found = Estimator(world, noise, Phases(), clip=clip, center=center).estimate([*order, batches[3]], theta)
        results.append(np.concatenate([found.gradient, found[1:]]))
    np.testing.assert_allclose(results, np.broadcast_to(results[0], np.shape(results)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_centering_makes_it_blind_to_a_constant(world, noise, clip):
    rng = np.random.default_rng(9)
    batches, theta = batches_around(noise, rng, 90, SIZES[3], DIFFERENT)
    shifted = [batch._replace(utilities=batch.utilities - 30.0) for batch in batches]
    one, two = (
        Estimator(world, noise, Phases(), clip=clip, center=True).estimate(chosen, theta).gradient
        for chosen in (batches, shifted)
    )
    assert np.linalg.norm(one - two) < 1e-8 * np.linalg.norm(one)
    one, two = (
        Estimator(world, noise, Phases(), clip=clip).estimate(chosen, theta).gradient for chosen in (batches, shifted)
    )
    assert np.linalg.norm(one - two) > 0.3 * np.linalg.norm(one), "without it a constant matters"


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_at_the_center_of_all_batches_it_is_plain_es(world, noise, clip):
    """Several populations around theta itself, with one sigma: all weights are 1."""
    rng = np.random.default_rng(10)
    (whole,), _ = batches_around(noise, rng, 70, (10,), EQUAL)
    parts = [whole._replace(starts=whole.starts[s], utilities=whole.utilities[s]) for s in (slice(4), slice(4, 10))]
    found = Estimator(world, noise, Phases(), clip=clip).estimate(parts, whole.center)
    plain = (whole.utilities[:, 0] - whole.utilities[:, 1]) @ epsilons(noise, whole.starts, 70).astype(float) / 20
    np.testing.assert_allclose(found.gradient, plain, rtol=1e-9, atol=1e-12)
    assert (found.ess, found.mean_weight, found.max_weight) == pytest.approx((1, 1, 1), rel=1e-12)


def test_estimator_is_unbiased_over_several_batches(world):
    """Mean over experiments against sigma times the known gradient of a quadratic, with three sigmas and centers.

    Of no part of this does the test take the package's word: neither of weights, nor of scores.
    """
    d, count, sigma = 5, 20, 0.5
    rng = np.random.default_rng(17)
    w, m = rng.standard_normal(d), rng.standard_normal(d)
    a = rng.standard_normal((d, d))
    a = a @ a.T / d
    new = rng.standard_normal(d)
    plan = [(0.6, 0.45, 4000), (0.4, 0.6, 9000), (0.0, sigma, 7000)]  # distance, sigma, pairs
    centers = [new + sigma * of_norm(rng.standard_normal(d), r) for r, _, _ in plan]

    def f(x):
        y = x - m
        return x @ w - 1.5 - 0.5 * np.sum((y @ a) * y, axis=-1)

    total = sum(n for _, _, n in plan)
    found, weights = [], []
    for _ in range(count):
        values = rng.standard_normal(total * d, dtype=np.float32)
        noise = SimpleNamespace(values=values, prefix=np.zeros(1))
        batches, first = [], 0
        for (_, own_sigma, n), center in zip(plan, centers, strict=True):
            epsilon = values[first * d : (first + n) * d].reshape(n, d).astype(float)
            utilities = np.stack([f(center + own_sigma * epsilon), f(center - own_sigma * epsilon)], axis=1)
            batches.append(Batch(center, own_sigma, (first + np.arange(n)) * d, utilities))
            first += n
        estimate = Estimator(world, noise, Phases(), clip=math.inf).estimate(batches, new)
        found.append(estimate.gradient)
        weights.append(estimate.mean_weight)
    error = np.std(found, axis=0, ddof=1) / math.sqrt(count)
    truth = sigma * (w - a @ (new - m))
    assert np.abs((np.mean(found, axis=0) - truth) / error).max() < 3.9  # Student's t with 19 degrees of freedom
    assert np.linalg.norm(truth) > 50 * np.linalg.norm(error)
    assert np.mean(weights) == pytest.approx(1, abs=4 * np.std(weights) / math.sqrt(count)), "E c = 1"


# -- ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("sigmas", [EQUAL, DIFFERENT], ids=["equal sigmas", "different sigmas"])
def test_the_same_bits_on_any_number_of_ranks(noise, sigmas, clip, center):
    """Also where a rank has no pair of some batch, at the second update, which finds densities kept from the first."""
    rng = np.random.default_rng(5)
    batches, theta = batches_around(noise, rng, 321, SIZES[4], sigmas)
    further = theta + 0.05 * of_norm(rng.standard_normal(321), 0.5)

    def bits(group):
        estimator = Estimator(group, noise, Phases(), clip=clip, center=center)
        found = [estimator.estimate(batches[i:], at) for i in (0, 1) for at in (theta, further)]
        return [(estimate.gradient.tobytes(), estimate[1:]) for estimate in found]

    alone = on_ranks(1, bits)[0]
    assert len({gradient for gradient, _ in alone}) == 4
    for size in (2, 3, 7):
        assert on_ranks(size, bits) == [alone] * size


# -- densities that are kept ---------------------------------------------------------------------------------


class Counted:
    """Counts how often the pairs of a batch are read to compute densities."""

    def __init__(self, monkeypatch):
        self.calls, real = 0, kernels.log_ratios

        def counting(*arguments):
            self.calls += 1
            real(*arguments)

        monkeypatch.setattr(mixture_module.kernels, "log_ratios", counting)

    def take(self):
        calls, self.calls = self.calls, 0
        return calls


def same(a, b):
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


def test_densities_of_old_pairs_are_kept(world, noise, monkeypatch):
    """Three batches: each pair's density at theta is new every time, those under the other two are computed once."""
    rng = np.random.default_rng(11)
    batches, theta = batches_around(noise, rng, 150, SIZES[4], DIFFERENT)
    counted, mixture = Counted(monkeypatch), Mixture(world, noise)
    mixture.log_weights(batches[:3], theta, 0.05)
    assert counted.take() == 3 + 3 * 2
    for at in (theta + 0.01, theta - 0.02):
        found = mixture.log_weights(batches[:3], at, 0.04)
        assert counted.take() == 3
        assert same(found, Mixture(world, noise).log_weights(batches[:3], at, 0.04))
        counted.take()
    # The oldest goes, another comes: only what concerns the new one is computed.
    found = mixture.log_weights(batches[1:], theta, 0.05)
    assert counted.take() == 3 + 2 * 2
    assert same(found, Mixture(world, noise).log_weights(batches[1:], theta, 0.05))


def test_densities_of_batches_that_are_gone_are_dropped(world, noise, monkeypatch):
    rng = np.random.default_rng(12)
    batches, theta = batches_around(noise, rng, 150, SIZES[4], EQUAL)
    counted, mixture = Counted(monkeypatch), Mixture(world, noise)
    for first in range(3):
        mixture.log_weights(batches[first : first + 2], theta, 0.05)
        kept = [batch for own, other, _ in mixture._kept for batch in (own, other)]
        assert len(mixture._kept) == 2
        assert all(any(batch is one for one in batches[first : first + 2]) for batch in kept)
    mixture.log_weights(batches[3:], theta, 0.05)
    assert mixture._kept == []
    counted.take()
    mixture.log_weights(batches[2:], theta, 0.05)
    assert counted.take() == 2 + 2, "what was dropped is computed again"


def test_a_batch_that_equals_another_is_not_taken_for_it(world, noise):
    """Densities belong to one batch, not to those that look like it: here with another center."""
    rng = np.random.default_rng(13)
    batches, theta = batches_around(noise, rng, 50, SIZES[2], EQUAL)
    moved = [batch._replace(center=batch.center + 0.02 * i) for i, batch in enumerate(batches, 1)]
    mixture = Mixture(world, noise)
    mixture.log_weights(batches, theta, 0.05)
    found = mixture.log_weights(moved, theta, 0.05)
    assert same(found, Mixture(world, noise).log_weights(moved, theta, 0.05))


# -- kernels -------------------------------------------------------------------------------------------------


def test_mixture_of_densities_beyond_the_range_of_floats():
    """log(α₀ + Σ α_m exp(x_m)) where exp(x_m) is infinite or 0 as a float64."""
    others = np.array([[[800.0, -800.0]], [[-5.0, -2000.0]], [[799.0, 0.0]]])
    log_c = np.array([[810.0, 3.0]])
    kernels.subtract_log_mixture(0.4, np.array([0.3, 0.2, 0.1]), others, log_c)
    exact = np.log(np.longdouble(0.3) * np.exp(np.longdouble(800)) + np.longdouble(0.1) * np.exp(np.longdouble(799)))
    assert log_c[0, 0] == pytest.approx(810 - float(exact), rel=1e-14)
    assert log_c[0, 1] == pytest.approx(3 - math.log(0.5), rel=1e-14)


def test_mixture_without_others_changes_nothing():
    log_c = np.array([[1.5, -700.0], [0.0, 3.0]])
    before = log_c.copy()
    kernels.subtract_log_mixture(1.0, np.zeros(0), np.zeros((0, 2, 2)), log_c)
    assert (log_c == before).all()
