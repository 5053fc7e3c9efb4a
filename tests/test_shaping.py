"""Returns to utilities: against SciPy's ranks, and by the symmetries they must have."""

import numpy as np
import pytest
import reference
from scipy import stats

rng = np.random.default_rng(12)
SAMPLES = {
    "distinct": rng.standard_normal((50, 2)),
    "ties": rng.integers(0, 7, size=(50, 2)).astype(float),
    "all equal": np.full((8, 2), 3.5),
    "one pair": np.array([[2.0, -1.0]]),
    "one tied pair": np.array([[2.0, 2.0]]),
    "signed zeros": np.array([[0.0, -0.0], [1.0, -1.0]]),
    "huge": np.array([[1e300, -1e300], [1.7e308, 5e-324]]),
}


@pytest.mark.parametrize("returns", SAMPLES.values(), ids=SAMPLES)
def test_centered_ranks_are_average_ranks(returns):
    expected = (stats.rankdata(returns.ravel()) - 1) / (returns.size - 1) - 0.5
    found = shaping.centered_rank(returns)
    np.testing.assert_allclose(found, expected.reshape(returns.shape), rtol=0, atol=1e-15)
    assert abs(found.sum()) < 1e-12


def test_centered_ranks_of_distinct_returns_are_those_of_the_reference_code():
    found = shaping.centered_rank(SAMPLES["distinct"])
    np.testing.assert_allclose(found, reference.centered_ranks(SAMPLES["distinct"]), rtol=0, atol=1e-15)
    assert found.min() == -0.5
    assert found.max() == 0.5


def test_centered_ranks_depend_on_order_alone():
    returns = SAMPLES["ties"]
    assert (shaping.centered_rank(np.exp(returns) * 3 - 7) == shaping.centered_rank(returns)).all()
    np.testing.assert_allclose(shaping.centered_rank(-returns), -shaping.centered_rank(returns), atol=1e-15)


def test_standardize():
    found = shaping.standardize(SAMPLES["distinct"] * 50 + 1000)
    assert abs(found.mean()) < 1e-12
    assert found.std() == pytest.approx(1)
    assert np.corrcoef(found.ravel(), SAMPLES["distinct"].ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-310, 1e300])
@pytest.mark.parametrize("n", [1, 3, 7, 50])
def test_standardize_of_equal_returns_is_zero(value, n):
    assert not shaping.standardize(np.full((n, 2), value)).any()


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1e5, 1e300])
def test_standardize_does_not_depend_on_the_scale(scale):
    returns = SAMPLES["distinct"]
    np.testing.assert_allclose(shaping.standardize(returns * scale), shaping.standardize(returns), rtol=1e-9)


def test_standardize_of_huge_returns_is_finite():
    found = shaping.standardize(SAMPLES["huge"])
    assert np.isfinite(found).all()
    assert found.std() == pytest.approx(1)


def test_none_keeps_the_returns():
    returns = SAMPLES["distinct"]
    found = shaping.shape(returns, "none")
    assert (found == returns).all()
    assert not np.shares_memory(found, returns)


@pytest.mark.parametrize("method", ["centered-rank", "standardize", "none"])
@pytest.mark.parametrize("name", ["distinct", "ties", "one pair"])
def test_permutation_equivariance(method, name):
    """Which sample a return belongs to does not matter: samples permuted, utilities permuted."""
    returns = SAMPLES[name]
    order = np.random.default_rng(1).permutation(returns.size)
    permuted = returns.ravel()[order].reshape(returns.shape)
    expected = shaping.shape(returns, method).ravel()[order].reshape(returns.shape)
    np.testing.assert_allclose(shaping.shape(permuted, method), expected, rtol=0, atol=1e-12)
    assert shaping.shape(returns, method).shape == returns.shape


def test_what_is_not_finite_is_the_worst():
    returns = np.array([[1.0, np.nan], [np.inf, -3.0], [-np.inf, 2.0]])
    found, count = shaping.replace_invalid(returns)
    assert found.tolist() == [[1.0, -3.0], [-3.0, -3.0], [-3.0, 2.0]]
    assert count == 3
    assert np.isnan(returns[0, 1]), "the returns themselves are kept for the log"
    same, none = shaping.replace_invalid(SAMPLES["distinct"])
    assert (same == SAMPLES["distinct"]).all()
    assert none == 0


def test_nothing_finite_gives_zeros():
    found, count = shaping.replace_invalid(np.full((3, 2), np.nan))
    assert not found.any()
    assert count == 6
