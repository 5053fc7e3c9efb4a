"""the returns themselves."""

import numpy as np
from numpy.typing import NDArray


def shape(returns: NDArray[np.float64], top_share: float = 1.0) -> NDArray[np.float64]:
    """See `shapings`."""
    return returns.copy()
