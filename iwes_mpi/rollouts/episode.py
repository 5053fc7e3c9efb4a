"""What every kind of rollout takes and gives."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.policy.parameters import Parameters


class EpisodeTask(NamedTuple):
    """One episode to run."""

    theta: NDArray[np.float32]  # (d,) the policy's parameters
    normalizer: NDArray[np.float64]  # of observations, from `ObsStats.normalizer`
    rng: np.random.Generator  # draws the environment's seed first, then the action noise
    action_noise: float  # deviation; 0 for a deterministic policy
    observe: bool  # whether to take statistics of the observations
    evaluation: bool = False  # in the environment as it is, without `train_env_kwargs`
    cap: int = 0  # steps after which the episode is cut; 0 for none


class Episode(NamedTuple):
    """What came of an episode."""

    total_reward: float  # the return; not finite if the episode was invalid
    length: int  # environment steps
    obs_stats: NDArray[np.float64] | None  # packed statistics (`obs_stats.pack`); None unless asked for


class Unsupported(ValueError):
    """An environment cannot run natively; the message says why."""


class EpisodeRunner(Protocol):
    """Runs episodes of one environment. An implementation holds the environment and its working memory."""

    description: str  # what runs the environment, for people
    limit: int  # steps of the longest episode, the time limit

    @property
    def network(self) -> Parameters:
        """What theta is: the parameters of a network that fits the environment, or an objective's own."""
        ...

    def run(self, task: EpisodeTask) -> Episode:
        """Run one episode from reset to its end.

        The result depends on the task alone, not on the episodes before it.
        """
        ...

    def rehearse(self, task: EpisodeTask) -> None:
        """Compile, or load, all that `run` needs for such a task, at next to no cost."""
        ...

    def close(self) -> None:
        """Release the environment."""
        ...


class EnvironmentRunner(EpisodeRunner, Protocol):
    """An `EpisodeRunner` of an environment that takes a seed: the first draw of an episode's generator."""

    seed_bound: int  # of the seeds that the environment gets; from `seeds.seed_bound`
