"""from the first value to the last by equal factors."""

import math


def value(first: float, last: float, t: float) -> float:
    """See `schedules`."""
    return last if t == 1.0 else first * math.exp(t * math.log(last / first))
