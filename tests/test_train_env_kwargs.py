"""``--train-env-kwargs``: the population learns from one reward, evaluation tells of another."""

import numpy as np
import pytest

from iwes_mpi.method.es import EvolutionStrategies
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import initial_state
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

SMALL = {"hidden_sizes": (4,), "n_pairs": 3, "min_env_steps": 0, "n_eval": 3, "eval_every": 1}
NO_BONUS = {"healthy_reward": 0}


def population_of(world, **settings):
    """The first population of a run, and its runner's description."""
    config = Config(**SMALL | settings)
    runner = open_runner(config)
    noise = NoiseTable(world, 0, 20_000)
    state = initial_state(0, runner.network, config.optimizer)
    population = EvolutionStrategies(config, world, runner, noise, state, StopFlag(world, None)).iterate().population
    description = runner.description
    runner.close()
    return population, description


@pytest.mark.slow
@pytest.mark.parametrize("rollouts", ["native", "gymnasium"])
def test_population_without_survival_bonus_evaluation_with_it(world, rollouts):
    settings = {"env_id": "Hopper-v5", "rollouts": rollouts}
    plain, _ = population_of(world, **settings)
    trained, description = population_of(world, **settings, train_env_kwargs=NO_BONUS)
    assert "healthy_reward" in description
    np.testing.assert_array_equal(trained.eval_returns, plain.eval_returns)
    np.testing.assert_array_equal(trained.lengths, plain.lengths)
    # The bonus is 1 in every step in which the Hopper is healthy: all but the one that ends its episode.
    np.testing.assert_allclose(plain.returns - trained.returns, plain.lengths - 1, atol=1e-9)
    other, _ = population_of(world, **settings, env_kwargs=NO_BONUS, train_env_kwargs={"healthy_reward": 1})
    np.testing.assert_array_equal(other.returns, plain.returns)
    np.testing.assert_allclose(plain.eval_returns - other.eval_returns, plain.eval_lengths - 1, atol=1e-9)


def test_they_go_over_env_kwargs():
    config = Config(
        env_id="Hopper-v5", hidden_sizes=(4,), env_kwargs={"forward_reward_weight": 0, "ctrl_cost_weight": 0},
        train_env_kwargs=NO_BONUS,
    )  # fmt: skip
    runner = open_runner(config)
    theta, normalizer = np.zeros(runner.network.n_parameters, dtype=np.float32), np.eye(2, 11)
    for evaluation in (False, True):
        rng = generator(0, Stream.SCORE_EPISODE)
        episode = runner.run(EpisodeTask(theta, normalizer, rng, 0.01, False, evaluation))
        assert episode.total_reward == (episode.length - 1 if evaluation else 0)
    runner.close()


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"exclude_current_positions_from_observation": False}, "observation space must not change"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, part):
    with pytest.raises(WrongInput, match=rf"^train_env_kwargs: .*{part}") as error:
        open_runner(Config(env_id="Hopper-v5", train_env_kwargs=kwargs))
    assert "\n" not in str(error.value)


def test_an_action_space_that_changes_is_refused():
    with pytest.raises(WrongInput, match=r"^train_env_kwargs: the action space must not change"):
        open_runner(Config(env_id="pictured:Actions-v0", train_env_kwargs={"n": 3}))


def test_it_changes_results():
    assert Config().differences(Config(train_env_kwargs=NO_BONUS)) == ["train_env_kwargs"]
