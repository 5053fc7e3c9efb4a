"""What every kind of rollout takes and gives, and the choice between them."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import Config
from iwes_mpi.policy import Layout


class EpisodeTask(NamedTuple):
    """One episode to run."""

    theta: NDArray[np.float32]  # (d,) the policy's parameters
    normaliser: NDArray[np.float64]  # (2, obs_size) mean and inverse deviation of observations
    rng: np.random.Generator  # draws the environment's seed first, then the action noise
    action_noise: float  # deviation; 0 for a deterministic policy
    observe: bool  # whether to take statistics of the observations


class Episode(NamedTuple):
    """What came of an episode."""

    total_reward: float  # the return; not finite if the episode was invalid
    length: int  # environment steps
    obs_stats: NDArray[np.float64] | None  # packed statistics (`obs_stats.pack`); None unless asked for


class EpisodeRunner(Protocol):
    """Runs episodes of one environment. An implementation holds the environment and its working memory."""

    network: Layout  # the policy's shape that fits the environment
    description: str  # what runs the environment, for people

    def run(self, task: EpisodeTask) -> Episode:
        """Run one episode from reset to its end.

        The result depends on the task alone, not on the episodes before it.
        """
        ...

    def close(self) -> None:
        """Release the environment."""
        ...


def open_runner(config: Config) -> EpisodeRunner:
    """The runner for a configuration's environment.

    Raises
    ------
    ConfigError
        If the environment cannot be made or is not of a supported kind.
    """
    from iwes_mpi.rollouts.gym_env import GymRunner

    return GymRunner(config)
