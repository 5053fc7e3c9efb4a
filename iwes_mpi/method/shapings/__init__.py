"""Shapings: how returns become utilities, one a file (`--shaping`).

A shaping is a module with a function ``shape(returns, top_share)`` from all returns of a population, float64
(n_pairs, 2) and finite, to its utilities, of the same shape. `top_share` is for `top_directions` alone.
"""

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.settings.registry import SHAPINGS


def shape(returns: NDArray[np.float64], method: str, top_share: float = 1.0) -> NDArray[np.float64]:
    """Utilities (n_pairs, 2) of `returns` by ``--shaping``; returns that are not finite count as the worst.

    Raises
    ------
    WrongInput
        If there is no such method.
    """
    return SHAPINGS.module(method).shape(replace_invalid(returns), top_share)  # type: ignore[no-any-return]


def replace_invalid(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns with those that are not finite set to the worst of the others.

    If none is finite all become 0: nothing can be learned from such a population.
    """
    finite = np.isfinite(returns)
    worst = returns[finite].min() if finite.any() else 0.0
    return np.where(finite, returns, worst)
