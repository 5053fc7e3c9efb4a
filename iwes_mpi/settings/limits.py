"""The limits of a run: iterations, environment steps, the return to reach, wall-clock time."""

from collections.abc import Sequence

from iwes_mpi.settings.config import Config

GOAL_WINDOW = 3  # evaluations in a row whose mean must reach a return


def reached_limit(config: Config, iterations: int, env_steps: int, evaluations: Sequence[float] = ()) -> str | None:
    """The limit that a run has come to, by the setting's name; None if it has not come to any it was given.

    Parameters
    ----------
    config : Config
    iterations : int
        Completed.
    env_steps : int
        Of population episodes.
    evaluations : sequence of float
        The mean returns of its evaluations, the newest last; those before the last three do not matter.
    """
    if config.iterations is not None and iterations >= config.iterations:
        return "iterations"
    if config.max_env_steps is not None and env_steps >= config.max_env_steps:
        return "max_env_steps"
    if config.stop_at_return is not None and reached(config.stop_at_return, evaluations):
        return "stop_at_return"
    return None


def finished(config: Config, iterations: int, env_steps: int, evaluations: Sequence[float] = ()) -> bool:
    """Whether a run has come to a limit (`reached_limit`). It never has without limits."""
    return reached_limit(config, iterations, env_steps, evaluations) is not None


def reached(goal: float, evaluations: Sequence[float]) -> bool:
    """Whether the mean of the last three evaluations, one number each, is a return or more."""
    last = evaluations[-GOAL_WINDOW:]
    return len(last) == GOAL_WINDOW and sum(last) / GOAL_WINDOW >= goal


def used(config: Config, iterations: int, env_steps: int, elapsed: float) -> float:
    """The share of the nearest limit that is used up, 0 to 1; 0 without limits. `elapsed`: s of this job."""
    limits = ((iterations, config.iterations), (env_steps, config.max_env_steps), (elapsed, config.max_wall_time))
    return min(1.0, max((reached / limit for reached, limit in limits if limit), default=0.0))


def limited(config: Config) -> bool:
    """Whether the run has any limit."""
    return bool(config.iterations or config.max_env_steps or config.max_wall_time)
