"""along half a cosine: slow, fast, slow."""

import math


def factor(end: float, t: float) -> float:
    """See `schedules`."""
    return end if t == 1.0 else 1.0 + (end - 1.0) * (0.5 - 0.5 * math.cos(math.pi * t))
