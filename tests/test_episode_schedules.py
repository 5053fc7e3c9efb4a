"""When population episodes become longer: each rule on made-up facts."""

import numpy as np
import pytest

from iwes_mpi.method.episode_schedules import Facts, next_cap
from iwes_mpi.settings.registry import EPISODE_SCHEDULES
from iwes_mpi.settings.wrong_input import WrongInput


def facts(**changes):
    defaults = {
        "cap": 100, "first": 50, "lengths": np.full((4, 2), 60), "env_steps": 1000, "budget": 10_000, "limit": 800,
        "growth": 1.5, "history": np.zeros((2, 0)),
    }  # fmt: skip
    return Facts(**defaults | changes)


@pytest.mark.parametrize("name", EPISODE_SCHEDULES.names)
def test_no_schedule_leaves_the_limit_or_shortens(name):
    rng = np.random.default_rng(1)
    for _ in range(200):
        cap = int(rng.integers(50, 801))
        cap_next = next_cap(
            name,
            facts(
                cap=cap, lengths=rng.integers(1, cap + 1, (5, 2)), env_steps=int(rng.integers(0, 30_000)),
                growth=float(rng.uniform(1.001, 4)), history=rng.normal(size=(2, int(rng.integers(0, 20)))),
            ),
        )  # fmt: skip
        assert (50 if name == "follow" else cap) <= cap_next <= 800


def test_constant():
    assert next_cap("constant", facts(env_steps=10**9)) == 100


def test_by_budget_it_grows_by_equal_factors():
    caps = [next_cap("budget", facts(cap=50, env_steps=steps)) for steps in (0, 2500, 5000, 7500, 10_000, 20_000)]
    assert caps == [50, 100, 200, 400, 800, 800]


@pytest.mark.parametrize(("reached", "grows"), [(0, False), (3, False), (4, True), (8, True)])
def test_it_grows_once_half_of_a_population_survives(reached, grows):
    lengths = np.full(8, 60)
    lengths[:reached] = 100
    assert next_cap("survivors", facts(lengths=lengths.reshape(4, 2))) == (150 if grows else 100)
    assert next_cap("survivors", facts(cap=700, lengths=np.full((4, 2), 700))) == 800, "at most the time limit"
    assert next_cap("survivors", facts(cap=1, lengths=np.ones((4, 2)), growth=1.01)) == 2, "at least one step"


def test_it_grows_when_whole_episodes_go_another_way():
    time = np.arange(8.0)
    noise = np.array([0.1, -0.2, 0.05, 0.0, 0.2, -0.1, 0.0, 0.1])
    for cut, whole, grows in (
        (time, time + noise, False),  # they follow
        (time + noise, -time, True),  # they do not
        (-time, -time, False),  # the cut returns do not rise: no reason to change
        (time, np.full(8, np.nan), False),
    ):
        assert next_cap("agreement", facts(history=np.stack([cut, whole]))) == (150 if grows else 100)
    short = np.stack([time, -time])[:, :7]
    assert next_cap("agreement", facts(history=short)) == 100, "too few evaluations to tell"
    before = np.stack([np.concatenate([-time, time]), np.concatenate([time, -time])])
    assert next_cap("agreement", facts(history=before)) == 150, "only the last eight count"


@pytest.mark.parametrize(
    ("cut", "whole", "cap"),
    [(2.0, 0.9, 150), (2.0, 1.1, 67), (2.0, -3.0, 150), (2.0, np.nan, 150), (-1.0, -5.0, 100), (np.nan, 1.0, 100)],
)
def test_it_follows_what_whole_episodes_earn(cut, whole, cap):
    """Below half of the cut episodes' rate it grows, above it shrinks; where nothing is earned it stays."""
    assert next_cap("follow", facts(history=np.array([[9.0, cut], [9.0, whole]]))) == cap
    assert next_cap("follow", facts()) == 100, "no evaluation yet"
    assert next_cap("follow", facts(cap=51, history=np.ones((2, 1)))) == 50, "never below the first"


def test_an_unknown_one_is_refused():
    with pytest.raises(WrongInput, match="must be one of agreement, budget, constant, follow, survivors"):
        next_cap("daily", facts())
