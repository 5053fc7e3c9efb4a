"""longer while whole episodes earn less than half per step of what cut ones do, shorter again when they follow."""

from iwes_mpi.method.episode_schedules import Facts

_SHARE = 0.5


def next_cap(facts: Facts) -> int:
    """See `episode_schedules`.

    A gait learned on the first steps may fall over later. Then whole episodes earn little where cut ones earn much, and
    the population has to see what comes later. Decided at each evaluation.
    """
    if facts.history.shape[1] == 0:
        return facts.cap
    cut, whole = facts.history[:, -1]
    if not cut > 0:  # nothing is learned yet, or there is no evaluation to compare with
        return facts.cap
    return facts.grown() if not whole >= _SHARE * cut else facts.shrunk()
