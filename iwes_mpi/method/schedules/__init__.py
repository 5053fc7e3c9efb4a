"""Schedules: how sigma and the learning rate change over the iterations, one a file (`--sigma-schedule`).

A schedule is a module with a function ``value(first, last, t)`` that goes from `first` at t = 0 to `last` at t = 1.
"""

from iwes_mpi.settings.registry import SCHEDULES


def scheduled(schedule: str, first: float, last: float, iteration: int, iterations: int) -> float:
    """A scheduled value in an iteration, of so many iterations that the schedule takes; after them it stays.

    Raises
    ------
    WrongInput
        If there is no such schedule.
    """
    t = min(1.0, iteration / iterations)
    return SCHEDULES.module(schedule).value(first, last, t)  # type: ignore[no-any-return]
