"""from the first value to the last along half a cosine: slow, fast, slow."""

import math


def value(first: float, last: float, t: float) -> float:
    """See `schedules`."""
    return last if t == 1.0 else first + (last - first) * (0.5 - 0.5 * math.cos(math.pi * t))
