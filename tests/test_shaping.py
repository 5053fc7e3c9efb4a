"""Returns to utilities: against SciPy's ranks, and by the symmetries they must have."""

import numpy as np
import pytest
import reference
from scipy import stats

from iwes_mpi.method import shapings
from iwes_mpi.method.shapings import centered_rank, standardize
from iwes_mpi.settings.registry import SHAPINGS

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
    found = centered_rank.shape(returns)
    np.testing.assert_allclose(found, expected.reshape(returns.shape), rtol=0, atol=1e-15)
    assert abs(found.sum()) < 1e-12


def test_centered_ranks_of_distinct_returns_are_those_of_the_reference_code():
    found = centered_rank.shape(SAMPLES["distinct"])
    np.testing.assert_allclose(found, reference.centered_ranks(SAMPLES["distinct"]), rtol=0, atol=1e-15)
    assert found.min() == -0.5
    assert found.max() == 0.5


def test_centered_ranks_depend_on_order_alone():
    returns = SAMPLES["ties"]
    assert (centered_rank.shape(np.exp(returns) * 3 - 7) == centered_rank.shape(returns)).all()
    np.testing.assert_allclose(centered_rank.shape(-returns), -centered_rank.shape(returns), atol=1e-15)


def test_standardize():
    found = standardize.shape(SAMPLES["distinct"] * 50 + 1000)
    assert abs(found.mean()) < 1e-12
    assert found.std() == pytest.approx(1)
    assert np.corrcoef(found.ravel(), SAMPLES["distinct"].ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-310, 1e300])
@pytest.mark.parametrize("n", [1, 3, 7, 50])
def test_standardize_of_equal_returns_is_zero(value, n):
    assert not standardize.shape(np.full((n, 2), value)).any()


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1e5, 1e300])
def test_standardize_does_not_depend_on_the_scale(scale):
    returns = SAMPLES["distinct"]
    np.testing.assert_allclose(standardize.shape(returns * scale), standardize.shape(returns), rtol=1e-9)


def test_standardize_of_huge_returns_is_finite():
    found = standardize.shape(SAMPLES["huge"])
    assert np.isfinite(found).all()
    assert found.std() == pytest.approx(1)


def test_none_keeps_the_returns():
    returns = SAMPLES["distinct"]
    found = shapings.shape(returns, "none")
    assert (found == returns).all()
    assert not np.shares_memory(found, returns)


@pytest.mark.parametrize("method", SHAPINGS.names)
@pytest.mark.parametrize("name", ["distinct", "ties", "one pair"])
def test_permutation_equivariance(method, name):
    """Which sample a return belongs to does not matter: samples permuted, utilities permuted."""
    returns = SAMPLES[name]
    order = np.random.default_rng(1).permutation(returns.size)
    permuted = returns.ravel()[order].reshape(returns.shape)
    expected = shapings.shape(returns, method).ravel()[order].reshape(returns.shape)
    np.testing.assert_allclose(shapings.shape(permuted, method), expected, rtol=0, atol=1e-12)
    assert shapings.shape(returns, method).shape == returns.shape


def test_what_is_not_finite_is_the_worst():
    returns = np.array([[1.0, np.nan], [np.inf, -3.0], [-np.inf, 2.0]])
    found = shapings.replace_invalid(returns)
    assert found.tolist() == [[1.0, -3.0], [-3.0, -3.0], [-3.0, 2.0]]
    assert np.isnan(returns[0, 1]), "the returns themselves are kept for the log"
    assert (shapings.replace_invalid(SAMPLES["distinct"]) == SAMPLES["distinct"]).all()


@pytest.mark.parametrize("method", SHAPINGS.names)
def test_every_shaping_counts_what_is_not_finite_as_the_worst(method):
    """Utilities of a population with invalid returns are those of one with its worst return in their place."""
    returns = SAMPLES["distinct"].copy()
    worst = returns.min()
    returns[3, 0], returns[9, 1], returns[20, 0] = np.nan, np.inf, -np.inf
    expected = returns.copy()
    expected[[3, 9, 20], [0, 1, 0]] = worst
    assert (shapings.shape(returns, method) == shapings.shape(expected, method)).all()
    assert shapings.shape(returns, method)[3, 0] == shapings.shape(returns, method).min()


@pytest.mark.parametrize("method", SHAPINGS.names)
def test_nothing_finite_gives_zeros(method):
    assert not shapings.replace_invalid(np.full((3, 2), np.nan)).any()
    assert not shapings.shape(np.full((3, 2), -np.inf), method).any()
