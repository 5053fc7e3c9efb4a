"""The state of a run between two iterations: what a checkpoint holds, and all it needs to hold."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.optimizers import OptimizerState, optimizer_named
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import obs_stats
from iwes_mpi.policy.obs_stats import ObsStats
from iwes_mpi.policy.parameters import Parameters


@dataclass
class Drawn:
    """A population that may be used again: where it was drawn, and what it returned."""

    center: NDArray[np.float64]  # (d,)
    sigma: float
    starts: NDArray[np.int64]  # (n_pairs,)
    returns: NDArray[np.float64]  # (n_pairs, 2) may be NaN
    used: NDArray[np.bool_] | None = None  # (n_pairs, 2) whether a member is in use (`mixing`); None: all are

    @property
    def returns_in_use(self) -> NDArray[np.float64]:
        """Returns (samples,) of the members in use, in order."""
        return self.returns.ravel() if self.used is None else self.returns[self.used]


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
    eval_env_steps: int = 0  # of evaluation episodes, cumulative
    eval_episodes: int = 0  # cumulative
    episode_cap: int = 0  # steps after which population episodes are cut; 0 for none
    # (2, evaluations) since the cap has changed: return per step of the population's episodes, of whole ones
    history: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))
    # The mean returns of the last evaluations, up to three, the newest last: for the return at which a run ends
    recent_evaluations: list[float] = field(default_factory=list)
    # The last populations that may be used again, the newest last. With importance mixing: those of which something is
    # in use, and the newest in any case, for it tells which distribution the set in use counts as drawn from.
    drawn: list[Drawn] = field(default_factory=list)


def initial_state(seed: int, shape: Parameters, optimizer: str, episode_cap: int = 0, whiten: bool = False) -> State:
    """The state a run starts from: it depends on the seed, on what theta is and on the settings named alone."""
    theta = shape.initial_parameters(generator(seed, Stream.INITIALIZATION))
    start = optimizer_named(optimizer).init(theta.size)
    stats = obs_stats.initial_stats(shape.obs_size, whiten)
    return State(0, theta, start, stats, episode_cap=episode_cap)


def digest(theta: NDArray[np.float64]) -> int:
    """The first 8 bytes of BLAKE2b over theta's bytes, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(theta.astype("<f8").tobytes()).digest()[:8], "little")
