"""longer once whole episodes no longer gain where cut ones do (for tasks that do not end early)."""

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.episode_schedules import Facts

_WINDOW = 8  # evaluations


def next_cap(facts: Facts) -> int:
    """See `episode_schedules`.

    Over the last evaluated centers, the order by cut returns is compared with that by whole ones (Spearman's rank
    correlation). Where returns of cut episodes rise in time but whole ones go against them, the cap has served.
    """
    if facts.history.shape[1] < _WINDOW:
        return facts.cap
    cut, whole = facts.history[:, -_WINDOW:]
    if not np.isfinite(facts.history[:, -_WINDOW:]).all():
        return facts.cap
    gains = _correlation(np.arange(_WINDOW), cut) > 0
    follows = _correlation(cut, whole) > 0
    return facts.grown() if gains and not follows else facts.cap


def _correlation(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Spearman's rank correlation, but for a positive factor: exact, since ranks are small integers; ties by order."""
    ranks = [2 * np.argsort(np.argsort(x, kind="stable"), kind="stable") - (len(x) - 1) for x in (a, b)]
    return float(np.sum(ranks[0] * ranks[1]))
