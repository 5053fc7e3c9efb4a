"""the same cap throughout."""

from iwes_mpi.method.episode_schedules import Facts


def next_cap(facts: Facts) -> int:
    """See `episode_schedules`."""
    return facts.cap
