"""by equal factors, whole after `episode_budget` steps (after Fuks et al. 2019)."""

from iwes_mpi.method.episode_schedules import Facts


def next_cap(facts: Facts) -> int:
    """See `episode_schedules`."""
    t = min(1.0, facts.env_steps / facts.budget)
    return max(facts.cap, int(facts.first * (facts.limit / facts.first) ** t + 0.5))
