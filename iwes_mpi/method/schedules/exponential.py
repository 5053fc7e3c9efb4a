"""by equal factors."""

import math


def factor(end: float, t: float) -> float:
    """See `schedules`."""
    return end if t == 1.0 else math.exp(t * math.log(end))
