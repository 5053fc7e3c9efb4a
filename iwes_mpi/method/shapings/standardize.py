"""returns with mean 0 and standard deviation 1."""

import numpy as np
from numpy.typing import NDArray


def shape(returns: NDArray[np.float64], top_share: float = 1.0) -> NDArray[np.float64]:
    """See `shapings`. All 0 if the returns are all equal."""
    if returns.min() == returns.max():  # a rounded mean would leave them a deviation
        return np.zeros_like(returns)
    scaled = np.ldexp(returns, -np.frexp(np.abs(returns).max())[1])  # exact, and no square of it can overflow
    centered = scaled - scaled.mean()
    return centered / centered.std()  # type: ignore[no-any-return]
