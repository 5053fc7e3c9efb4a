"""What an iteration did: the facts from which the log's rows are made."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.estimator import Estimate
from iwes_mpi.method.phases import Phase


class Population(NamedTuple):
    """The evaluated samples of one iteration, the same on every rank."""

    starts: NDArray[np.int64]  # (n_pairs,) where each epsilon starts in the noise table
    ran: NDArray[np.bool_]  # (n_pairs, 2) whether there was an episode: always, but with importance mixing
    returns: NDArray[np.float64]  # (n_pairs, 2) of theta + sigma·epsilon and theta − sigma·epsilon; may be NaN
    lengths: NDArray[np.int64]  # (n_pairs, 2) environment steps; 0 where there was no episode
    observed: NDArray[np.float64]  # (episodes, 1 + 2·obs_size) packed statistics, in sample order
    eval_returns: NDArray[np.float64]  # (n_eval,)
    eval_lengths: NDArray[np.int64]  # (n_eval,)


class Stop(IntEnum):
    """Why an update was the last one from its population. The numbers are those of the log."""

    NOT = 0  # it was not the last
    UPDATES = 1  # all 1 + K are made
    ESS = 2  # not made: the effective sample size is too small
    KL = 3  # made, and brought back to the bound of the trust region
    OVERLAP = 4  # not made: no weight is left


@dataclass
class Update:
    """One optimizer update that was made, or tried."""

    iteration: int
    k: int  # 0 for the plain ES update, then 1, 2 … for importance-weighted ones
    kl: float  # nats, r²/2: from the population's search distribution to theta's, before the update
    estimate: Estimate | None = None  # None if a rule ended the updates before there was one
    grad_norm: float = np.nan
    update_norm: float = 0.0
    accepted: bool = False  # whether theta moved
    stop: Stop = Stop.NOT


@dataclass
class Report:
    """What an iteration did."""

    iteration: int
    episode_cap: int  # steps after which population episodes were cut; 0 for none
    population: Population
    returns: NDArray[np.float64]  # of the samples in use: the population's, or those of the set of importance mixing
    kept_samples: float  # share of the samples in use that importance mixing has kept from before
    updates: list[Update]  # empty on ranks that take no part in them
    sigma: float
    update_norm: float  # distance theta moved
    theta_norm: float
    theta_digest: int
    env_steps: int = 0  # of population episodes, cumulative
    episodes: int = 0  # of the population, cumulative
    eval_env_steps: int = 0  # of evaluation episodes, cumulative
    ranks: int = 1
    seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))  # mean over ranks
    wall_time: float = field(default=np.nan)  # s, cumulative over restarts; rank 0 fills it in
