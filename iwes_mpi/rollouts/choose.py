"""The choice of what runs an environment's episodes."""

import dataclasses
import json
from typing import Any

import gymnasium

from iwes_mpi.rollouts.environments import is_mujoco, make_env
from iwes_mpi.rollouts.episode import EnvironmentRunner, Episode, EpisodeTask, Unsupported
from iwes_mpi.rollouts.gym_runner import GymRunner
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput


def open_runner(config: Config, bound: int | None = None) -> EnvironmentRunner:
    """The runner for a configuration's environment, of the kind that its setting ``rollouts`` asks for.

    Parameters
    ----------
    config : Config
    bound : int, optional
        Below which the environment is seeded. If not given, the environment is asked.

    Raises
    ------
    WrongInput
        If the environment cannot be made or is not of a supported kind, or cannot run natively but must; or if its
        spaces are others with ``train_env_kwargs``.
    """
    env = make_env(config)
    evaluation = _runner(config, env, bound)
    if not config.train_env_kwargs:
        return evaluation
    try:
        train_env = make_env(dataclasses.replace(config, env_kwargs=config.env_kwargs | config.train_env_kwargs))
        training = _runner(config, train_env, bound)
    except WrongInput as error:
        evaluation.close()
        raise WrongInput("train_env_kwargs", error.problem, detail=error.detail) from None
    runner = TrainingRunner(training, evaluation, config)
    for what in ("observation_space", "action_space"):
        mine, other = getattr(train_env, what), getattr(env, what)
        if mine != other:
            runner.close()
            raise WrongInput(
                "train_env_kwargs", f"the {what.replace('_', ' ')} must not change: {mine} instead of {other}"
            )
    return runner


class TrainingRunner:
    """Runs population episodes in one environment and evaluation episodes in another with the same spaces.

    Parameters
    ----------
    training, evaluation : EnvironmentRunner
        Both get the smaller bound of the seeds that they take.
    config : Config
        Whose ``train_env_kwargs`` make the difference.
    """

    def __init__(self, training: EnvironmentRunner, evaluation: EnvironmentRunner, config: Config):
        self._training, self._evaluation = training, evaluation
        self.seed_bound = min(training.seed_bound, evaluation.seed_bound)
        training.seed_bound = evaluation.seed_bound = self.seed_bound
        self.network, self.limit = training.network, evaluation.limit
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


def _runner(config: Config, env: gymnasium.Env[Any, Any], bound: int | None) -> EnvironmentRunner:
    """The runner for an environment; closes it if there is none. Raises WrongInput."""
    if config.rollouts != "gymnasium":
        try:
            if not is_mujoco(env):
                raise Unsupported("it is not a MuJoCo environment")
            from iwes_mpi.rollouts.native import NativeRunner

            return NativeRunner(config, env)
        except Unsupported as reason:
            if config.rollouts == "native":
                env.close()
                raise WrongInput("rollouts", f"{config.env_id} cannot run natively: {reason}") from None
    return GymRunner(config, env, timed=False, bound=bound)
