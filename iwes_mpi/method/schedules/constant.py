"""as it is throughout."""


def factor(end: float, t: float) -> float:
    """See `schedules`."""
    return 1.0
