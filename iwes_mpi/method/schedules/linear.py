"""from the first value to the last in equal steps."""


def value(first: float, last: float, t: float) -> float:
    """See `schedules`."""
    return last if t == 1.0 else first + t * (last - first)
