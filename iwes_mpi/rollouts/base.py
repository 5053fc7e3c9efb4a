"""What every kind of rollout takes and gives, and the choice between them."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import Config, ConfigError
from iwes_mpi.policy import Layout

SEED_BOUND = 2**63  # environments are seeded with the first draw of an episode's generator, below this


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


class Unsupported(ValueError):
    """An environment cannot run natively; the message says why."""


class EpisodeRunner(Protocol):
    """Runs episodes of one environment. An implementation holds the environment and its working memory."""

    network: Layout  # the policy's shape that fits the environment
    description: str  # what runs the environment, for people

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


def open_runner(config: Config) -> EpisodeRunner:
    """The runner for a configuration's environment, of the kind that its setting ``rollouts`` asks for.

    Raises
    ------
    ConfigError
        If the environment cannot be made or is not of a supported kind, or cannot run natively but must.
    """
    from iwes_mpi.rollouts.gym_env import GymRunner, is_mujoco, make_env

    env = make_env(config)
    if config.rollouts != "gymnasium":
        try:
            if not is_mujoco(env):
                raise Unsupported("it is not a MuJoCo environment")
            from iwes_mpi.rollouts.native import NativeRunner

            return NativeRunner(config, env)
        except Unsupported as reason:
            if config.rollouts == "native":
                env.close()
                raise ConfigError("--rollouts", f"{config.env_id} cannot run natively: {reason}") from None
    return GymRunner(config, env)
