"""from the first value to the last along half a cosine: slow, fast, slow."""

import math


def value(first: float, last: float, t: float) -> float:
    """See `schedules`."""
    return last if t == 1.0 else last + (first - last) * (0.5 + 0.5 * math.cos(math.pi * t))
