"""The limits of a run: iterations, environment steps, wall-clock time."""

from iwes_mpi.settings.config import Config


def finished(config: Config, iterations: int, env_steps: int) -> bool:
    """Whether a run with so many iterations and environment steps has all it was given. It is never, without limits."""
    return (config.iterations is not None and iterations >= config.iterations) or (
        config.max_env_steps is not None and env_steps >= config.max_env_steps
    )


def used(config: Config, iterations: int, env_steps: int, elapsed: float) -> float:
    """The share of the nearest limit that is used up, 0 to 1; 0 without limits. `elapsed`: s of this job."""
    limits = ((iterations, config.iterations), (env_steps, config.max_env_steps), (elapsed, config.max_wall_time))
    return min(1.0, max((reached / limit for reached, limit in limits if limit), default=0.0))


def limited(config: Config) -> bool:
    """Whether the run has any limit."""
    return bool(config.iterations or config.max_env_steps or config.max_wall_time)
