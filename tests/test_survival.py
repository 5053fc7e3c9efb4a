"""Steps to a return and what is said of them, against SciPy, brute force and examples by hand."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iwes_mpi.files.run import Run
from iwes_mpi.settings.config import Config
from iwes_mpi.shown import statistics
from iwes_mpi.shown.statistics import Outcome

INF = math.inf


def outcomes(*steps: float, never: tuple[float, ...] = ()) -> list[Outcome]:
    return [*(Outcome(t, True) for t in steps), *(Outcome(t, False) for t in never)]


def at_random(rng: np.random.Generator, n: int, censored: float = 0.3, values: int = 12) -> list[Outcome]:
    """Outcomes with ties, some of them censored anywhere."""
    return [Outcome(float(rng.integers(1, values)), bool(rng.random() > censored)) for _ in range(n)]


# -- runs ----------------------------------------------------------------------------------------------------


def made_up(scores: list[float], **settings: float) -> Run:
    """A run of 100 population steps an iteration, and evaluations of 7 steps where there is a score."""
    run = Run(Path("somewhere"))
    evaluated = [not math.isnan(score) for score in scores]
    run.config = Config(**settings)
    run.iterations = pd.DataFrame({
        "iteration": range(len(scores)),
        "env_steps": [100 * (i + 1) for i in range(len(scores))],
        "eval_env_steps": np.cumsum([7 * known for known in evaluated]),
        "eval_return_mean": scores,
    })  # fmt: skip
    return run


def test_steps_are_counted_to_the_end_of_the_third_evaluation() -> None:
    run = made_up([1, math.nan, 2, 3, 4, math.nan, math.nan, 9])
    steps, returns = statistics.evaluations(run)
    assert steps.tolist() == [7, 214, 321, 428, 735]
    assert returns.tolist() == [1, 2, 3, 4, 9]
    assert statistics.outcome(run, 2.0) == (321, True)
    assert statistics.outcome(run, 3.0) == (428, True)
    assert statistics.outcome(run, 5.0) == (735, True)
    assert statistics.outcome(run, 5.4) == (835, False)
    assert statistics.outcome(run, 5.0, limit=734) == (734, False)
    assert statistics.outcome(made_up([9, 9]), 5.0) == (214, False)
    assert statistics.outcome(made_up([]), 5.0) == (0, False)


def test_steps_to_a_return_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        returns = rng.normal(size=rng.integers(0, 9))
        goal = rng.normal()
        means = pd.Series(returns, dtype=float).rolling(3).mean()
        first = np.flatnonzero(means >= goal)
        expected = 10.0 * (first[0] + 1) if first.size else INF
        assert statistics.steps_to(10.0 * np.arange(1, len(returns) + 1), returns.tolist(), goal) == expected


def test_what_a_run_cannot_tell_is_said() -> None:
    ended = made_up([1, 2, 3], stop_at_return=2.0)
    assert statistics.outcome(ended, 2.0) == (221, True)
    with pytest.raises(ValueError, match="was ended at a return of 2: it tells nothing of 3"):
        statistics.outcome(ended, 3.0)
    assert statistics.outcome(ended, 3.0, limit=200) == (200, False)
    assert statistics.outcome(made_up([1, 2, 2], stop_at_return=2.0), 3.0) == (321, False), "its limit was another"
    old = made_up([1, 2, 3])
    old.iterations["eval_env_steps"] = -1
    with pytest.raises(ValueError, match="does not tell how many steps its evaluations took"):
        statistics.outcome(old, 2.0)


# -- one group -----------------------------------------------------------------------------------------------


def test_a_survival_curve_by_hand() -> None:
    # 6 runs: 1 ends at 3, 1 is last seen at 4, 2 end at 5, 1 is last seen at 5, 1 ends at 8
    found = statistics.survival(outcomes(3, 5, 5, 8, never=(4, 5)))
    assert found.steps.tolist() == [3, 5, 8]
    np.testing.assert_allclose(found.share, [5 / 6, 5 / 6 * 2 / 4, 0])


def test_survival_curves_are_scipys() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        group = at_random(rng, int(rng.integers(2, 15)))
        ended = [t for t, is_reached in group if is_reached]
        if not ended:
            continue
        data = stats.CensoredData(uncensored=ended, right=[t for t, is_reached in group if not is_reached])
        expected = stats.ecdf(data).sf
        found = statistics.survival(group)
        np.testing.assert_allclose(found.share, expected.evaluate(found.steps), atol=1e-12)
        assert set(found.steps) == set(ended)


@pytest.mark.parametrize(
    ("group", "median"),
    [
        (outcomes(1, 2, 3), 2),
        (outcomes(1, 2, 3, 4), 2.5),
        (outcomes(1, 2, 3, never=(9, 9)), 3),
        (outcomes(1, 2, 3, never=(9, 9, 9)), INF),
        (outcomes(1, 2, 3, 4, never=(9, 9)), 3.5),
        (outcomes(never=(9,)), INF),
        (outcomes(10, 20, 30, never=(5,)), 20),  # one last seen before all others says nothing
        (outcomes(3, 5, 5, 8, never=(4, 5)), 5),
    ],
)
def test_medians(group: list[Outcome], median: float) -> None:
    assert statistics.median_steps(group) == median


def test_medians_without_early_ends_are_numpys() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        steps = rng.integers(1, 30, int(rng.integers(1, 12))).astype(float)
        never = int(rng.integers(0, 6))
        expected = np.sort(np.append(steps, [INF] * never))
        middle = (expected[(len(expected) - 1) // 2] + expected[len(expected) // 2]) / 2
        assert statistics.median_steps(outcomes(*steps, never=(50.0,) * never)) == middle


def test_interquartile_mean() -> None:
    assert statistics.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1000]) == 3.5
    assert statistics.interquartile_mean([[-INF, 1], [2, INF]]) == 1.5
    assert statistics.interquartile_mean([7.0]) == 7


def test_share_of_the_steps() -> None:
    assert statistics.share_spent(outcomes(25, 200, never=(40,)), 100) == [0.25, 1, 1]


# -- two groups ----------------------------------------------------------------------------------------------


def brute_force_order(a: Outcome, b: Outcome) -> int:
    """By the intervals in which the steps that each needs may lie."""
    (a_low, a_high), (b_low, b_high) = (
        (steps, steps) if is_reached else (np.nextafter(steps, INF), INF) for steps, is_reached in (a, b)
    )
    return 1 if a_high < b_low else -1 if b_high < a_low else 0


def test_probability_of_improvement_by_brute_force() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        a, b = (at_random(rng, int(rng.integers(1, 8)), values=6) for _ in range(2))
        expected = np.mean([(1 + brute_force_order(x, y)) / 2 for x, y in itertools.product(a, b)])
        assert statistics.probability_of_improvement(a, b) == pytest.approx(expected)
        assert statistics.probability_of_improvement(b, a) == pytest.approx(1 - expected)


def test_mann_whitney_is_scipys() -> None:
    rng = np.random.default_rng(5)
    for n, m in ((10, 10), (3, 5), (7, 4), (40, 40)):
        x, y = rng.permutation(200)[:n].astype(float), rng.permutation(200)[:m] + 0.5
        expected = stats.mannwhitneyu(y, x, method="exact")  # fewer is better
        a, b = outcomes(*x), outcomes(*y)
        assert statistics.probability_of_improvement(a, b) == pytest.approx(expected.statistic / (n * m))
        assert statistics.p_value(a, b) == pytest.approx(expected.pvalue)


def test_p_of_censored_runs_by_all_permutations() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        a, b = at_random(rng, 4), at_random(rng, 3)
        together = a + b
        scores = [sum(brute_force_order(x, y) for y in together) for x in together]
        sums = [sum(chosen) for chosen in itertools.combinations(scores, 4)]
        tails = [np.mean([s <= sum(scores[:4]) for s in sums]), np.mean([s >= sum(scores[:4]) for s in sums])]
        assert statistics.p_value(a, b) == pytest.approx(min(1, 2 * min(tails)))


def test_ratios_of_medians() -> None:
    assert statistics.ratio_of_medians(outcomes(10, 20, 30), outcomes(10, 5, 4)) == 4
    assert statistics.ratio_of_medians(outcomes(never=(9, 9)), outcomes(3)) == INF
    assert statistics.ratio_of_medians(outcomes(3), outcomes(never=(9, 9))) == 0
    assert math.isnan(statistics.ratio_of_medians(outcomes(never=(9,)), outcomes(never=(9,))))


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # R: p.adjust(c(.01, .04, .03, .005), "holm")
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holms_correction_by_hand(given: list[float], corrected: list[float]) -> None:
    assert statistics.holm(given) == pytest.approx(corrected)


def test_holms_correction_is_the_closed_test_of_bonferronis() -> None:
    """A claim holds if every set of claims that it belongs to has a p below level / size: the largest of these p."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        p = rng.random(5) ** 3
        for i, found in enumerate(statistics.holm(p.tolist())):
            sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n) if i in s]
            assert found == pytest.approx(max(min(1, len(s) * min(p[list(s)])) for s in sets))


# -- intervals -----------------------------------------------------------------------------------------------


def test_a_bootstrap_interval_is_scipys() -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(size=30)
    found = statistics.bootstrap(lambda v: float(np.mean(v)), values.tolist(), resamples=5000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=rng).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_a_bootstrap_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(10)
    covered = 0
    for i in range(150):
        low, high = statistics.median_interval(outcomes(*rng.exponential(1.0, 25)), resamples=200, seed=i)[1:]
        covered += low <= math.log(2) <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_the_bootstrap_stays_within_its_strata() -> None:
    """Two tasks of different size and level: resampling across them would mix the levels."""
    tasks = [[1.0] * 4, [9.0] * 12]
    assert statistics.bootstrap(lambda a, b: sum(a) + sum(b), *tasks, resamples=50) == (112, 112, 112)
    found = statistics.interquartile_interval(tasks, resamples=50)
    assert found == (9, 9, 9)


def test_intervals_with_runs_that_never_get_there() -> None:
    group = outcomes(10, 20, 30, 40, 50, 60, never=(99,) * 4)
    value, low, high = statistics.median_interval(group)
    assert value == 55
    assert 10 < low < 55
    assert high == INF
    value, low, high = statistics.ratio_interval(outcomes(*range(100, 110)), group)
    assert value == pytest.approx(104.5 / 55)
    assert low == 0
    assert 1.9 < high < 10
    value, low, high = statistics.ratio_interval(outcomes(never=(9, 9)), outcomes(never=(9, 9)))
    assert math.isnan(value)
    assert (low, high) == (0, INF)


def test_the_same_interval_every_time() -> None:
    group = outcomes(*range(10))
    assert statistics.median_interval(group) == statistics.median_interval(group)
    assert statistics.median_interval(group) != statistics.median_interval(group, resamples=3)


def test_improvement_over_tasks_is_a_mean() -> None:
    sure, even = (outcomes(1, 2), outcomes(3, 4)), (outcomes(5, 6), outcomes(5, 6))
    value, low, high = statistics.improvement_interval([sure, even])
    assert value == 0.75
    assert low <= 0.75 <= high
    assert statistics.improvement_interval([sure, sure]) == (1, 1, 1)


def test_an_estimate_as_text() -> None:
    assert f"{statistics.Estimate(1.234, 0.5, INF):.2f}" == "1.23 [0.50, inf]"
