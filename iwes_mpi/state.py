"""The state of a run between two iterations: what a checkpoint holds, and all it needs to hold."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iwes_mpi import obs_stats, optimizers, policy
from iwes_mpi.obs_stats import ObsStats
from iwes_mpi.optimizers import OptimizerState
from iwes_mpi.seeding import Stream, generator


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


def initial_state(seed: int, network: policy.Layout) -> State:
    """The state a run starts from: it depends on the seed and the policy's shape alone."""
    theta = policy.initial_parameters(network, generator(seed, Stream.INITIALISATION))
    return State(0, theta, optimizers.initial_state(theta.size), obs_stats.initial_stats(int(network.sizes[0])))


def digest(theta: NDArray[np.float64]) -> int:
    """The first 8 bytes of BLAKE2b over theta's bytes, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(theta.astype("<f8").tobytes()).digest()[:8], "little")
