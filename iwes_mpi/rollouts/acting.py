"""The policy of a run as something that acts: what is missing in its checkpoint is asked of the environment."""

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.policy import network
from iwes_mpi.policy.policy import Policy
from iwes_mpi.rollouts.environments import actions_of, make_env
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput


def policy_of(config: Config, theta: NDArray[np.float64], normalizer: NDArray[np.float64], about: str) -> Policy:
    """The policy with parameters theta (d,), normalizer and action space as in the rollouts of a configuration.

    Raises
    ------
    WrongInput
        If the environment cannot be made, or is not the one that theta fits.
    """
    env = make_env(config)
    try:
        assert env.observation_space.shape is not None
        obs_size, (actions, size) = env.observation_space.shape[0], actions_of(env.action_space)
    finally:
        env.close()
    layout = network.layout(obs_size, config.hidden_sizes, size, config.bias, config.activation)
    try:
        return Policy(
            layout, theta.astype(np.float32), normalizer, config.obs_clip, actions, config.action_noise, about
        )
    except ValueError as error:
        raise WrongInput("env_id", f"{config.env_id} is not as it was when this policy was trained: {error}") from None
