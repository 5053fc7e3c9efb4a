"""What every kind of rollout takes and gives, and the choice between them."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import Config, ConfigError
from iwes_mpi.policy import Layout

if TYPE_CHECKING:
    import gymnasium

SEED_BOUND = 2**63  # environments are seeded with the first draw of an episode's generator, below this


class EpisodeTask(NamedTuple):
    """One episode to run."""

    theta: NDArray[np.float32]  # (d,) the policy's parameters
    normaliser: NDArray[np.float64]  # (2, obs_size) mean and inverse deviation of observations
    rng: np.random.Generator  # draws the environment's seed first, then the action noise
    action_noise: float  # deviation; 0 for a deterministic policy
    observe: bool  # whether to take statistics of the observations
    evaluation: bool = False  # in the environment as it is, without --train-env-kwargs


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
        If the environment cannot be made or is not of a supported kind, or cannot run natively but must; or if its
        spaces are others with ``train_env_kwargs``.
    """
    from iwes_mpi.rollouts.gym_env import make_env

    env = make_env(config)
    evaluation = _runner(config, env)
    if not config.train_env_kwargs:
        return evaluation
    try:
        train_env = make_env(dataclasses.replace(config, env_kwargs=config.env_kwargs | config.train_env_kwargs))
        training = _runner(config, train_env)
    except ConfigError as error:
        evaluation.close()
        raise ConfigError("--train-env-kwargs", str(error).partition(": ")[2]) from None
    runner = TrainingRunner(training, evaluation, config)
    for what in ("observation_space", "action_space"):
        mine, other = getattr(train_env, what), getattr(env, what)
        if mine != other:
            runner.close()
            raise ConfigError(
                "--train-env-kwargs", f"the {what.replace('_', ' ')} must not change: {mine} instead of {other}"
            )
    return runner


class TrainingRunner:
    """Runs population episodes in one environment and evaluation episodes in another with the same spaces.

    Parameters
    ----------
    training, evaluation : EpisodeRunner
    config : Config
        Whose ``train_env_kwargs`` make the difference.
    """

    def __init__(self, training: EpisodeRunner, evaluation: EpisodeRunner, config: Config):
        self._training, self._evaluation = training, evaluation
        self.network = training.network
        self.description = f"{training.description}, trained with {json.dumps(config.train_env_kwargs)}"

    def run(self, task: EpisodeTask) -> Episode:
        """Run one episode in the environment that the task asks for; see `EpisodeRunner`."""
        return (self._evaluation if task.evaluation else self._training).run(task)

    def rehearse(self, task: EpisodeTask) -> None:
        """Rehearse in both; see `EpisodeRunner`."""
        self._training.rehearse(task)
        self._evaluation.rehearse(task)

    def close(self) -> None:
        """Release both environments."""
        self._training.close()
        self._evaluation.close()


def _runner(config: Config, env: "gymnasium.Env[Any, Any]") -> EpisodeRunner:
    """The runner for an environment; closes it if there is none. Raises ConfigError."""
    from iwes_mpi.rollouts.gym_env import GymRunner, is_mujoco

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
