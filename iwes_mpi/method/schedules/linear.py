"""in equal steps."""


def factor(end: float, t: float) -> float:
    """See `schedules`."""
    return end if t == 1.0 else 1.0 + t * (end - 1.0)
