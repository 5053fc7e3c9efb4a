"""Schedules: how sigma and the learning rate change over the iterations, one a file (`--sigma-schedule`).

A schedule is a module with a function ``factor(end, t)`` that goes from 1 at t = 0 to `end` at t = 1.
"""

from iwes_mpi.method.optimizers import optimizer_named
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.registry import SCHEDULES


def factor(schedule: str, end: float, iteration: int, iterations: int) -> float:
    """The factor of a schedule in an iteration, of so many iterations that it takes; after them it stays.

    Raises
    ------
    WrongInput
        If there is no such schedule.
    """
    return float(SCHEDULES.module(schedule).factor(end, min(1.0, iteration / iterations)))


def sigma_at(config: Config, iteration: int) -> float:
    """Standard deviation of the perturbations in an iteration."""
    return config.sigma * factor(config.sigma_schedule, config.sigma_end, iteration, config.schedule_iterations)


def learning_rate_at(config: Config, iteration: int, d: int) -> float:
    """The optimizer's learning rate in an iteration, for d parameters."""
    rate = config.learning_rate
    if rate is None:
        length = config.step_in_sigma * sigma_at(config, iteration)
        rate = optimizer_named(config.optimizer).rate(length, d, config.n_pairs)
    return rate * factor(config.learning_rate_schedule, config.learning_rate_end, iteration, config.schedule_iterations)
