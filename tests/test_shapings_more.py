"""Log-ranks against the formula of NES, and the update with top directions against a plain ARS."""

import math

import numpy as np
import pytest
from fakes import LENGTH, build, epsilons, rugged
from scipy import stats

from iwes_mpi.method import shapings
from iwes_mpi.method.shapings import centered_rank, log_rank, standardize, top_directions
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

rng = np.random.default_rng(8)
DISTINCT = rng.standard_normal((25, 2))

# -- log-ranks -----------------------------------------------------------------------------------------------


def nes(returns):
    """Utilities of Wierstra et al. (2014), section 3.1, of distinct returns; (n, 2)."""
    flat = returns.ravel()
    n = flat.size
    rank = [1 + int((flat > value).sum()) for value in flat]  # 1 is the best
    raw = [max(0.0, math.log(n / 2 + 1) - math.log(k)) for k in rank]
    return (np.array(raw) / sum(raw) - 1 / n).reshape(returns.shape)


@pytest.mark.parametrize("n", [1, 2, 8, 25])
def test_log_ranks_are_those_of_nes_but_for_a_factor(n):
    returns = DISTINCT[:n]
    found, expected = log_rank.shape(returns), nes(returns)
    factor = np.linalg.norm(found) / np.linalg.norm(expected)
    np.testing.assert_allclose(found, factor * expected, rtol=1e-12, atol=1e-15)
    assert abs(found.sum()) < 1e-12
    assert found.ravel().argmax() == returns.ravel().argmax()


@pytest.mark.parametrize("n", [1, 2, 8, 25])
def test_log_ranks_have_the_deviation_of_centered_ranks(n):
    assert log_rank.shape(DISTINCT[:n]).std() == pytest.approx(centered_rank.shape(DISTINCT[:n]).std(), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equal_returns_share_the_mean_of_their_utilities(seed):
    """The mean over all ways to break the ties, by Monte Carlo-free reckoning: over the ranks that they take."""
    returns = np.random.default_rng(seed).integers(0, 5, size=(12, 2)).astype(float)
    order = stats.rankdata(returns.ravel(), method="ordinal")
    broken = log_rank.shape(order.reshape(12, 2).astype(float)).ravel()
    expected = [broken[returns.ravel() == value].mean() for value in returns.ravel()]
    np.testing.assert_allclose(log_rank.shape(returns).ravel(), expected, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e300])
@pytest.mark.parametrize("n", [1, 3, 50])
def test_equal_returns_tell_nothing(value, n):
    for module in (log_rank, top_directions):
        assert not module.shape(np.full((n, 2), value), 0.5).any()


def test_log_ranks_depend_on_order_alone():
    assert (log_rank.shape(np.exp(DISTINCT) * 3 - 7) == log_rank.shape(DISTINCT)).all()
    extreme = np.array([[1e300, -1e300], [1.7e308, 5e-324], [0.0, -0.0]])
    found = log_rank.shape(extreme)
    assert np.isfinite(found).all()
    assert found[2, 0] == found[2, 1]


# -- top directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "kept"), [(0.5, 12), (0.2, 5), (1.0, 25), (0.3, 8), (1e-9, 1), (0.02, 1)])
def test_the_pairs_with_the_best_returns_count(share, kept):
    found = top_directions.shape(DISTINCT, share)
    counts = found.any(axis=1)
    if share == 0.5:  # half of 25: the pair in the middle counts
        kept = 13
    assert counts.sum() == kept
    assert DISTINCT.max(axis=1)[counts].min() > DISTINCT.max(axis=1)[~counts].max(initial=-np.inf)
    expected = DISTINCT[counts] / DISTINCT[counts].std() * 25 / kept
    np.testing.assert_allclose(np.diff(found[counts]), np.diff(expected), rtol=1e-12)
    assert abs(found.sum()) < 1e-9


def test_all_directions_are_standardized_returns():
    np.testing.assert_allclose(top_directions.shape(DISTINCT, 1.0), standardize.shape(DISTINCT), rtol=1e-14)


def test_of_equal_pairs_the_first_count():
    returns = np.array([[1.0, 5.0], [5.0, 0.0], [2.0, 5.0], [4.0, 4.0]])
    assert top_directions.shape(returns, 0.5).any(axis=1).tolist() == [True, True, False, False]


def test_huge_returns_are_fine():
    found = top_directions.shape(np.array([[1e300, -1e300], [1.7e308, 5e-324]]), 1.0)
    assert np.isfinite(found).all()
    assert found.std() == pytest.approx(1)


def test_only_top_directions_read_their_share():
    for method in ("centered-rank", "standardize", "none", "log-rank"):
        assert (shapings.shape(DISTINCT, method, 0.1) == shapings.shape(DISTINCT, method, 1.0)).all()


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(value):
    with pytest.raises(WrongInput, match="top_share"):
        Config(top_share=value)


class ARS:
    """ARS V2-t as in Algorithm 2 of Mania et al. (2018), plainly."""

    def __init__(self, theta, alpha, nu, b):
        self.theta, self.alpha, self.nu, self.b = theta, alpha, nu, b
        self.states = []

    def step(self, deltas, rewards):
        """Lines 6 and 7, from N directions (N, d) and rewards (N, 2) of theta + nu·delta and theta − nu·delta."""
        order = sorted(range(len(deltas)), key=lambda k: max(rewards[k]), reverse=True)
        used = order[: self.b]
        sigma_r = np.std([rewards[k][sign] for k in used for sign in (0, 1)])
        total = sum((rewards[k][0] - rewards[k][1]) * deltas[k] for k in used)
        self.theta = self.theta + self.alpha / (self.b * sigma_r) * total

    def statistics(self):
        """Line 8: mean and variance of all states so far."""
        seen = np.concatenate(self.states)
        return seen.mean(axis=0), seen.var(axis=0)


@pytest.mark.parametrize(("n", "b"), [(30, 12), (8, 4), (8, 8), (5, 1)])
def test_the_update_is_that_of_ars(world, noise, n, b):
    alpha, nu = 0.02, 0.05
    run, runner = build(
        world, noise, rugged, n_pairs=n, optimizer="sgd", momentum=0.0, l2=0.0, learning_rate=2 * alpha, sigma=nu,
        shaping="top-directions", top_share=b / n, obs_stat_probability=1.0, eval_every=1,
    )  # fmt: skip
    ars = ARS(run.state.theta.copy(), alpha, nu, b)
    for iteration in range(6):
        runner.tasks.clear()
        population = run.iterate().population
        normalizer = runner.tasks[0].normalizer
        if iteration:  # the prior, a hundredth of a state, is all that ARS does not have
            mean, variance = ars.statistics()
            seen = sum(map(len, ars.states))
            np.testing.assert_allclose(normalizer[0], mean, rtol=0.1 / seen)
            np.testing.assert_allclose(normalizer[1], 1 / np.sqrt(variance), rtol=0.1 / seen)
        ars.states, runner.observations = ars.states + runner.observations, []
        assert sum(map(len, ars.states)) == 2 * n * LENGTH * (iteration + 1), "the states of all episodes"
        before = ars.theta
        ars.step(epsilons(noise, population.starts, ars.theta.size).astype(float), population.returns)
        moved = np.linalg.norm(ars.theta - before)
        assert moved > 0
        assert np.linalg.norm(run.state.theta - ars.theta) <= 1e-6 * moved
