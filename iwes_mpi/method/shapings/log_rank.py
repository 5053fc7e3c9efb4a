"""logarithms of the ranks of the better half, as in CMA-ES and NES (Wierstra et al. 2014)."""

import math

import numpy as np
from numpy.typing import NDArray


def shape(returns: NDArray[np.float64], top_share: float = 1.0) -> NDArray[np.float64]:
    """See `shapings`. Of N returns, the one of rank k from the best has w_k / Σw − 1/N, w_k = max(0, log((N/2+1) / k)).

    Equal returns share the mean of their utilities. All are scaled to the standard deviation that centered ranks have:
    a gradient of returns that tell nothing has the same length then, and a learning rate means about the same.
    """
    flat = returns.ravel()
    n = flat.size
    if flat.min() == flat.max():  # sums of rounded utilities would leave a trace
        return np.zeros_like(returns)
    weights = np.maximum(0.0, math.log(n / 2 + 1) - np.log(np.arange(n, 0.0, -1.0)))  # the worst first
    utilities = weights / weights.sum() - 1 / n
    utilities *= math.sqrt((n + 1) / (n - 1) / 12) / utilities.std()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(utilities, np.cumsum(counts) - counts) / counts
    return shared[inverse].reshape(returns.shape)
