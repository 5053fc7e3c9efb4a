"""ranks of all returns, spread evenly over [-0.5, 0.5] (Salimans et al. 2017)."""

import numpy as np
from numpy.typing import NDArray


def shape(returns: NDArray[np.float64], top_share: float = 1.0) -> NDArray[np.float64]:
    """See `shapings`. Equal returns share a rank."""
    flat = returns.ravel()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # of each distinct value: the position after its last copy
    rank = last - 0.5 * (counts + 1)  # the mean of the positions 0 … size − 1 its copies take
    return (rank / max(flat.size - 1, 1) - 0.5)[inverse].reshape(returns.shape)
