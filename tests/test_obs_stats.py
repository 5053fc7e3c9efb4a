"""Mergeable statistics against NumPy's mean and variance of the observations themselves."""

import numpy as np
import pytest

from iwes_mpi.policy import obs_stats
from iwes_mpi.policy.obs_stats import ObsStats


def of(sample):
    """The statistics of a sample (n, obs_size), two-pass in long double."""
    x = np.asarray(sample, dtype=np.longdouble)
    mean = x.mean(axis=0)
    return ObsStats(len(x), mean.astype(float), ((x - mean) ** 2).sum(axis=0).astype(float))


def observed(sample):
    """The statistics by the compiled one-pass kernel."""
    packed = np.zeros(1 + 2 * sample.shape[1])
    for row in sample:
        obs_stats.observe(packed, row)
    return obs_stats.unpack(packed)


def assert_same(a, b, rtol=1e-11):
    assert a.n == pytest.approx(b.n, rel=1e-14)
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(a.m2, b.m2, rtol=rtol, atol=1e-12)


rng = np.random.default_rng(3)
SAMPLE = rng.standard_normal((1000, 4)) * [1, 100, 1e-3, 5] + [0, 1e4, 7, -2]


def test_observe_is_mean_and_variance():
    assert_same(observed(SAMPLE), of(SAMPLE))
    assert_same(observed(SAMPLE[:1]), ObsStats(1, SAMPLE[0], np.zeros(4)))


def test_observe_far_from_zero():
    """Sums of squares would lose all digits here."""
    sample = 1e9 + rng.standard_normal((500, 2))
    assert_same(observed(sample), of(sample), rtol=1e-6)


@pytest.mark.parametrize("cut", [1, 10, 500, 999])
def test_merge_is_concatenation(cut):
    merged = obs_stats.merge(of(SAMPLE[:cut]), of(SAMPLE[cut:]))
    assert_same(merged, of(SAMPLE))
    np.testing.assert_allclose(merged.m2 / merged.n, np.var(SAMPLE, axis=0), rtol=1e-11)


def test_merge_of_any_partition_in_any_order():
    for seed in range(20):
        order = np.random.default_rng(seed)
        shuffled = order.permutation(SAMPLE)
        cuts = np.sort(order.integers(1, len(SAMPLE), size=order.integers(1, 60)))
        parts = [part for part in np.split(shuffled, cuts) if len(part)]
        total = of(parts[0])
        for part in parts[1:]:
            total = obs_stats.merge(total, of(part))
        assert_same(total, of(SAMPLE))


def test_merge_commutes_and_associates():
    a, b, c = of(SAMPLE[:100]), of(SAMPLE[100:103]), of(SAMPLE[103:])
    assert_same(obs_stats.merge(a, b), obs_stats.merge(b, a))
    assert_same(obs_stats.merge(obs_stats.merge(a, b), c), obs_stats.merge(a, obs_stats.merge(b, c)))


def test_merging_nothing_changes_nothing():
    a, nothing = of(SAMPLE), obs_stats.unpack(np.zeros(9))
    assert obs_stats.merge(a, nothing) is a
    assert_same(obs_stats.merge(nothing, a), a)


def test_merge_changes_neither():
    a, b = of(SAMPLE[:10]), of(SAMPLE[10:])
    copies = [x.copy() for x in (a.mean, a.m2, b.mean, b.m2)]
    obs_stats.merge(a, b)
    assert all((x == y).all() for x, y in zip(copies, (a.mean, a.m2, b.mean, b.m2), strict=True))


def test_before_any_observation_nothing_is_normalized():
    mean, inverse = obs_stats.initial_stats(3).normalizer()
    assert (mean == 0).all()
    assert (inverse == 1).all()


def test_the_prior_is_a_hundredth_of_an_observation():
    """As the reference ES code: sums begin with 0, sums of squares and the count with 0.01."""
    stats = obs_stats.merge(obs_stats.initial_stats(4), of(SAMPLE))
    n = len(SAMPLE) + 0.01
    mean = SAMPLE.sum(axis=0) / n
    variance = ((SAMPLE**2).sum(axis=0) + 0.01) / n - mean**2
    np.testing.assert_allclose(stats.normalizer(), [mean, 1 / np.sqrt(np.maximum(variance, 1e-2))], rtol=1e-6)


def test_constant_observations_are_not_blown_up():
    """Variance is bounded from below by 0.01."""
    stats = of(np.full((50, 2), 4.0))
    np.testing.assert_allclose(stats.normalizer(), [[4, 4], [10, 10]])


def test_pack_and_unpack():
    stats = of(SAMPLE)
    again = obs_stats.unpack(obs_stats.pack(stats))
    assert again.n == stats.n
    assert (again.mean == stats.mean).all()
    assert (again.m2 == stats.m2).all()


@pytest.mark.parametrize("whiten", [False, True])
def test_many_merge_to_the_bits_of_one_after_the_other(whiten: bool) -> None:
    """Rows without observations, or with ones that are not finite, count nothing."""
    rng = np.random.default_rng(5)
    rows = np.zeros((60, 1 + 4 + (16 if whiten else 4)))
    for row in rows[::2]:
        for obs in rng.standard_normal((3, 4)) * 10.0 ** rng.integers(-3, 4):
            obs_stats.observe(row, obs)
    expected = start = obs_stats.initial_stats(4, whiten)
    for row in rows:
        expected = obs_stats.merge(expected, obs_stats.unpack(row, whiten))
    rows[7] = rows[8]
    rows[7, -1] = np.inf
    found = obs_stats.merge_all(start, rows)
    assert found.n == expected.n
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.m2, expected.m2)
    assert start.n == obs_stats.PRIOR_COUNT
    assert not start.mean.any()
