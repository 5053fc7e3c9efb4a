"""Returns to utilities: pure functions of all returns of a population, shape (n_pairs, 2)."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def replace_invalid(returns: Array) -> tuple[Array, int]:
    """Returns with those that are not finite set to the worst of the others, and how many were.

    If none is finite all become 0: nothing can be learnt from such a population.
    """
    finite = np.isfinite(returns)
    worst = returns[finite].min() if finite.any() else 0.0
    return np.where(finite, returns, worst), int(returns.size - finite.sum())


def centered_rank(returns: Array) -> Array:
    """Ranks of all returns, spread evenly over [−0.5, 0.5] (Salimans et al. 2017); equal returns share a rank."""
    flat = returns.ravel()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # of each distinct value: the position after its last copy
    rank = last - 0.5 * (counts + 1)  # the mean of the positions 0 … size − 1 its copies take
    return (rank / max(flat.size - 1, 1) - 0.5)[inverse].reshape(returns.shape)


def standardize(returns: Array) -> Array:
    """Returns with mean 0 and standard deviation 1; all 0 if they are all equal."""
    if returns.min() == returns.max():  # a rounded mean would leave them a deviation
        return np.zeros_like(returns)
    scaled = np.ldexp(returns, -np.frexp(np.abs(returns).max())[1])  # exact, and no square of it can overflow
    centred = scaled - scaled.mean()
    return centred / centred.std()


def shape(returns: Array, method: str) -> Array:
    """Utilities (n_pairs, 2) of finite `returns` by the method of ``--shaping``."""
    if method == "centered-rank":
        return centered_rank(returns)
    return standardize(returns) if method == "standardize" else returns.copy()
