"""How many environment steps runs need to a return, and what of two methods' difference is more than luck.

Runs that never reach the return are not dropped: it is only known that they need more steps than they made. Numbers
are steps of population and evaluation together; fewer are better. Functions that need SciPy import it themselves.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.run import Run
from iwes_mpi.settings.limits import GOAL_WINDOW, reached

T = TypeVar("T")


class Outcome(NamedTuple):
    """One run's way to a return."""

    steps: float  # to the return, or that it made without reaching it
    reached: bool


class Survival(NamedTuple):
    """The share of runs that are still without the return, as a step function."""

    steps: NDArray[np.float64]  # (events,) where it falls, ascending
    share: NDArray[np.float64]  # (events,) from there on; 1 before the first


class Estimate(NamedTuple):
    """A number with its bootstrap interval; both may be infinite."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


# -- runs ----------------------------------------------------------------------------------------------------


def evaluations(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps spent by the end of each evaluation, and its mean return; those without a valid episode are left out.

    The steps are NaN in logs from before evaluation steps were counted.
    """
    rows = run.iterations
    counted = rows["eval_env_steps"].astype(float).where(rows["eval_env_steps"] >= 0)
    spent = run.spent("env_steps") + counted  # an evaluation comes before its iteration's population
    known = rows["eval_return_mean"].notna()
    return spent[known].to_numpy(np.float64), rows["eval_return_mean"][known].to_numpy(np.float64)


def steps_to(steps: Sequence[float], returns: Sequence[float], goal: float) -> float:
    """Steps at the end of the first three evaluations in a row whose mean is a return or more; infinite without."""
    for end in range(GOAL_WINDOW, len(returns) + 1):
        if reached(goal, returns[end - GOAL_WINDOW : end]):
            return float(steps[end - 1])
    return math.inf


def outcome(run: Run, goal: float, limit: float = math.inf) -> Outcome:
    """How many steps a run needed to a return.

    Parameters
    ----------
    run : Run
    goal : float
    limit : float
        What comes after so many steps does not count: give it to runs of different lengths.

    Raises
    ------
    ValueError
        If the run was ended at a lower return than `goal`, so that nothing is known of how it would have gone on, or
        if its log is from before evaluation steps were counted.
    """
    steps, returns = evaluations(run)
    if np.isnan(steps).any():
        raise ValueError(f"{run.path} does not tell how many steps its evaluations took")
    needed = steps_to(steps.tolist(), returns.tolist(), goal)
    if needed < math.inf and needed <= limit:
        return Outcome(needed, True)
    ended_at = run.config.stop_at_return
    rows = run.iterations
    made = float(rows["env_steps"].iloc[-1] + rows["eval_env_steps"].iloc[-1]) if len(rows) else 0.0
    if ended_at is not None and ended_at < goal and made < limit and reached(ended_at, returns.tolist()):
        raise ValueError(f"{run.path} was ended at a return of {ended_at:g}: it tells nothing of {goal:g}")
    return Outcome(min(made, limit), False)


# -- one group of runs ---------------------------------------------------------------------------------------


def survival(outcomes: Sequence[Outcome]) -> Survival:
    """The Kaplan–Meier estimate of the share of runs that need more than so many steps."""
    every = np.sort(np.array([steps for steps, _ in outcomes], np.float64))
    ended = np.array([steps for steps, is_reached in outcomes if is_reached], np.float64)
    events, falls = np.unique(ended, return_counts=True)
    at_risk = every.size - np.searchsorted(every, events)
    return Survival(events, np.cumprod(1.0 - falls / at_risk, dtype=np.float64))


def median_steps(outcomes: Sequence[Outcome]) -> float:
    """The steps by which half of the runs have reached the return, by `survival`; infinite if it never is half.

    Where the curve is level at one half, the middle of that level: as the median of an even number of values.
    """
    steps, share = survival(outcomes)
    below = np.flatnonzero(share < 0.5 + 1e-9)
    if not below.size:
        return math.inf
    first = int(below[0])
    if share[first] < 0.5 - 1e-9:
        return float(steps[first])
    return float(steps[first] + steps[first + 1]) / 2 if first + 1 < steps.size else math.inf


def interquartile_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half of some values."""
    from scipy import stats

    return float(stats.trim_mean(np.asarray(values, np.float64), 0.25, axis=None))


def share_spent(outcomes: Sequence[Outcome], limit: float) -> list[float]:
    """The share of a limit that each run spent to the return; 1 if it did not reach it."""
    return [min(1.0, steps / limit) if is_reached else 1.0 for steps, is_reached in outcomes]


# -- two groups ----------------------------------------------------------------------------------------------


def _order(a: Sequence[Outcome], b: Sequence[Outcome]) -> NDArray[np.float64]:
    """For each pair of runs (a, b) 1 if that of `a` needs fewer steps, −1 if more, 0 if equal or not known (Gehan)."""
    steps_a, steps_b = (np.array([o.steps for o in group], np.float64) for group in (a, b))
    reached_a, reached_b = (np.array([o.reached for o in group], bool) for group in (a, b))
    before = steps_a[:, None] < steps_b[None, :]
    after = steps_a[:, None] > steps_b[None, :]
    same = ~before & ~after
    # One that goes on without the return where the other reaches it needs more.
    wins = reached_a[:, None] & (before | (same & ~reached_b[None, :]))
    loses = reached_b[None, :] & (after | (same & ~reached_a[:, None]))
    order: NDArray[np.float64] = wins.astype(np.float64) - loses
    return order


def probability_of_improvement(a: Sequence[Outcome], b: Sequence[Outcome]) -> float:
    """The probability that a run of `a` needs fewer steps than one of `b`: the Mann–Whitney statistic, U / (n m).

    Pairs that are equal, or of which it is not known, count as one half.
    """
    return float(np.mean(1 + _order(a, b)) / 2)


def ratio_of_medians(a: Sequence[Outcome], b: Sequence[Outcome]) -> float:
    """How many times the steps of `b` those of `a` are, by their medians; NaN if neither reaches the return."""
    numerator, denominator = median_steps(a), median_steps(b)
    return math.nan if math.isinf(numerator) and math.isinf(denominator) else numerator / denominator


def p_value(a: Sequence[Outcome], b: Sequence[Outcome]) -> float:
    """Two-sided p of the permutation test that the groups need as many steps as each other (Gehan's Wilcoxon).

    Exact. Without runs that never reach the return, and without ties, this is the exact Mann–Whitney test.
    """
    together = [*a, *b]
    scores = _order(together, together).sum(axis=1).astype(int)
    # counts[k, s]: how many choices of k of the runs looked at so far have scores that add up to s − middle
    middle = int(np.abs(scores).sum())
    counts = np.zeros((len(a) + 1, 2 * middle + 1))
    counts[0, middle] = 1.0
    for score in scores:
        # `middle` is never left, so nothing that counts comes round the end
        counts[1:] += np.roll(counts[:-1], score, axis=1)
    share = counts[len(a)] / counts[len(a)].sum()
    found = middle + int(scores[: len(a)].sum())
    return min(1.0, 2 * float(min(share[: found + 1].sum(), share[found:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several comparisons, corrected such that one wrong claim among all has the stated probability.

    Holm's method, which needs no assumption on how the comparisons depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


# -- intervals -----------------------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[..., float],
    *groups: Sequence[T],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of some groups of runs, with its percentile interval from resampling runs within each group.

    With a group for each task and method this is the stratified bootstrap.

    Parameters
    ----------
    statistic : callable
        Takes the groups, returns a number; NaN where it cannot be told, which widens the interval both ways.
    *groups : sequences
        Runs, or what is known of each.
    resamples : int
    level : float
        Of the interval.
    seed : int

    Returns
    -------
    Estimate
    """
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = [[group[j] for j in rng.integers(len(group), size=len(group))] for group in groups]
        found[i] = statistic(*drawn)
    tail = int((1 - level) / 2 * (resamples - 1))
    low = np.sort(np.where(np.isnan(found), -math.inf, found))[tail]
    high = np.sort(np.where(np.isnan(found), math.inf, found))[resamples - 1 - tail]
    return Estimate(float(statistic(*groups)), float(low), float(high))


def median_interval(outcomes: Sequence[Outcome], **options: Any) -> Estimate:
    """`median_steps` with its `bootstrap` interval."""
    return bootstrap(median_steps, outcomes, **options)


def ratio_interval(a: Sequence[Outcome], b: Sequence[Outcome], **options: Any) -> Estimate:
    """`ratio_of_medians` with its `bootstrap` interval; what cannot be told may be any ratio, from zero on."""
    value, low, high = bootstrap(ratio_of_medians, a, b, **options)
    return Estimate(value, max(0.0, low), high)


def improvement_interval(pairs: Sequence[tuple[Sequence[Outcome], Sequence[Outcome]]], **options: Any) -> Estimate:
    """`probability_of_improvement`, the mean over tasks, with its stratified `bootstrap` interval.

    Parameters
    ----------
    pairs : sequence
        For each task the runs of the one method and of the other.
    **options
        Of `bootstrap`.
    """
    orders = [_order(a, b) for a, b in pairs]  # once, for all resamples

    def mean(*drawn: Sequence[int]) -> float:
        found = zip(orders, drawn[::2], drawn[1::2], strict=True)
        return float(np.mean([np.mean(1 + order[np.ix_(a, b)]) / 2 for order, a, b in found]))

    return bootstrap(mean, *(range(len(group)) for pair in pairs for group in pair), **options)


def interquartile_interval(tasks: Sequence[Sequence[float]], **options: Any) -> Estimate:
    """The `interquartile_mean` of all runs' values, with its stratified `bootstrap` interval.

    Parameters
    ----------
    tasks : sequence of sequences
        For each task the values of its runs, comparable between tasks.
    **options
        Of `bootstrap`.
    """
    return bootstrap(lambda *groups: interquartile_mean(np.concatenate(groups)), *tasks, **options)
