"""Episode schedules: after how many steps population episodes are cut, one a file (`--episode-schedule`).

Short episodes give more samples per environment step; evaluation episodes are always whole. A schedule is a module
with a function ``next_cap(facts)``: the cap of the next iteration from what every rank knows after this one, so that
it is the same on all of them.

What happens when the cap changes: ranks are taken within a population, whose episodes all have one cap, so they and
the importance weights of its updates do not notice. Populations of another cap are no longer reused
(``--reuse-batches``), for their returns cannot be compared. The optimizer's moments stay.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.settings.registry import EPISODE_SCHEDULES


class Facts(NamedTuple):
    """What a schedule may decide by; the same on every rank."""

    cap: int  # steps after which this iteration's population episodes were cut
    first: int  # the cap that a run starts with
    lengths: NDArray[np.int64]  # (episodes,) of this iteration's population episodes
    env_steps: int  # of population episodes so far
    budget: int  # of population steps by which a schedule by budget lets episodes be whole
    limit: int  # the longest whole episode seen, or the time limit if it is known
    growth: float  # the factor by which a cap grows
    # (2, evaluations) of the last evaluated centers since the cap has changed, in order: return per step of the
    # population's cut episodes, and of the center's whole episodes
    history: NDArray[np.float64]

    def shrunk(self) -> int:
        """The next smaller cap."""
        return max(self.first, min(self.cap - 1, round(self.cap / self.growth)))

    def grown(self) -> int:
        """The next larger cap."""
        return min(self.limit, max(self.cap + 1, round(self.growth * self.cap)))


def next_cap(schedule: str, facts: Facts) -> int:
    """The cap of the next iteration.

    Raises
    ------
    WrongInput
        If there is no such schedule.
    """
    return int(EPISODE_SCHEDULES.module(schedule).next_cap(facts))
