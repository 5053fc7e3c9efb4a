"""The state of a run between two iterations: what a checkpoint holds, and all it needs to hold."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.optimizers import OptimizerState, optimizer_named
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.policy.obs_stats import ObsStats


@dataclass
class State:
    """The whole truth of a run between two iterations."""

    iteration: int  # iterations completed
    theta: NDArray[np.float64]  # (d,)
    optimizer: OptimizerState
    obs: ObsStats
    env_steps: int = 0  # of population episodes, cumulative
    episodes: int = 0  # of the population, cumulative
    wall_time: float = 0.0  # s, cumulative over restarts


def initial_state(seed: int, layout: network.Layout, optimizer: str) -> State:
    """The state a run starts from: it depends on the seed, the policy's shape and the kind of optimizer alone."""
    theta = network.initial_parameters(layout, generator(seed, Stream.INITIALIZATION))
    start = optimizer_named(optimizer).init(theta.size)
    return State(0, theta, start, obs_stats.initial_stats(int(layout.sizes[0])))


def digest(theta: NDArray[np.float64]) -> int:
    """The first 8 bytes of BLAKE2b over theta's bytes, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(theta.astype("<f8").tobytes()).digest()[:8], "little")
