"""What is said of a run's settings and figures: the formula against samples, and when which sentence comes."""

import math
from types import SimpleNamespace

import launch
import numpy as np
import pytest
from synthetic import rows

from iwes_mpi.method.trial import Trial
from iwes_mpi.policy import network
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.sources import load_preset, preset_names
from iwes_mpi.shown import diagnosis, dry_run

PARAMETERS = {"quickstart": 108, "paper-ant": 11_848, "paper-ant-256": 96_520, "paper-ant-512": 324_104,
              "paper-humanoid": 27_345, "reference-es": 11_848, "hopper": 36, "halfcheetah": 108, "swimmer": 18,
              "inverted-double-pendulum": 10, "inverted-pendulum": 5, "pusher": 168, "reacher": 22,
              "walker2d": 108, "ant": 848, "humanoid": 5933}  # fmt: skip


# -- the formula ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "ess"), [(0.0, 1.0), (0.5, 0.93), (1.0, 0.78), (2.0, 0.43), (3.0, 0.19)])
def test_ess_where_theta_moved_independently(r: float, ess: float) -> None:
    assert round(diagnosis.expected_ess(r, 1.0), 2) == ess
    assert diagnosis.expected_ess(r, 1.0, math.inf) == pytest.approx(math.exp(-(r**2)))


@pytest.mark.parametrize("clip", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("r", "spread"), [(0.7, 1.0), (0.4, 6.0), (1.5, 2.0)])
def test_ess_of_samples(clip: float, r: float, spread: float) -> None:
    x = -(r**2) / 2 + math.sqrt(spread) * r * np.random.default_rng(1).standard_normal(200_000)
    c = np.minimum(clip, np.exp(x))
    assert diagnosis.expected_ess(r, spread, clip) == pytest.approx(c.mean() ** 2 / (c**2).mean(), rel=0.02)


def test_ess_comes_down_to_zero_without_overflow() -> None:
    for spread in (1.0, 5.0, 1000.0):
        found = [diagnosis.expected_ess(r, spread) for r in np.geomspace(0.01, 1000, 200)]
        assert all(0 <= ess <= 1 for ess in found)
        assert max(np.diff(found)) < 1e-3, "nowhere does it rise, or jump up"


# -- before the first iteration ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_not_warned_of(name: str) -> None:
    assert diagnosis.beforehand(Config(**load_preset(name)), PARAMETERS[name], 4) == []


@pytest.mark.parametrize(
    ("settings", "d", "ranks", "named"),
    [
        ({"learning_rate": 0.01, "sigma": 0.02, "n_pairs": 5000, "min_ess": 0.0}, 4600, 4, ["be of no use", "34"]),
        ({"learning_rate": 0.01, "sigma": 0.02, "n_pairs": 5000}, 4600, 4, ["not be made", "34", "step_in_sigma"]),
        # Few samples for many parameters: half of them count, along whose noise theta moved, and it means nothing.
        ({"learning_rate": 0.01, "sigma": 0.02, "n_pairs": 10}, 4610, 4, ["not be made", "34", "step_in_sigma"]),
        ({"learning_rate": 0.01, "sigma": 0.02, "n_pairs": 100}, 4610, 4, ["not be made", "34"]),
        ({"learning_rate": 0.05, "sigma": 0.02, "n_pairs": 10, "min_ess": 0.0}, 4610, 4, ["be of no use", "1.7e+02"]),
        ({"n_pairs": 10, "clip": math.inf}, 30_000, 4, ["population of 10 pairs is so small", "n_pairs", "30000"]),
        ({"n_pairs": 3, "iw_updates": 0}, 30, 8, ["2 of 8 ranks without work", "n_pairs"]),
        ({"n_pairs": 4, "min_env_steps": 9}, 30, 80, []),
        ({"n_pairs": 1}, 30, 1, ["1 pair is too small to be weighed", "n_pairs", "iw_updates"]),
        ({}, 108, 20, []),
        ({"learning_rate": 5.0, "iw_updates": 0}, 108, 2, []),
        ({"learning_rate": 5.0, "optimizer": "sgd"}, 108, 2, []),  # its steps are as long as the gradient
    ],
)  # fmt: skip
def test_what_is_known_before(settings: dict[str, object], d: int, ranks: int, named: list[str]) -> None:
    found = diagnosis.beforehand(Config(**settings), d, ranks)
    assert len(found) == bool(named)
    assert all(name in found[0] for name in named)
    assert all("\n" not in text for text in found)


# -- while it goes on ----------------------------------------------------------------------------------------


def test_a_flat_reward_is_told_of_at_the_beginning_only() -> None:
    config = Config(iw_updates=0)

    def told(*deviations: float) -> list[int]:
        noticed = diagnosis.Diagnosis(config, 9)
        found = [
            noticed(rows(config, i, return_std=s, return_min=-200 - s, return_max=-200 + s, return_mean=-200))
            for i, s in enumerate(deviations)
        ]
        assert all("`sigma`" in text and "-200" in text for text in found if text)
        return [i for i, text in enumerate(found) if text]

    assert told(0, 0, 0, 0, 0) == [2]
    assert told(0, 1, 0, 0, 0, 0) == []
    assert told(1, 1, 1, 0, 0, 0) == [], "a task that is solved"
    assert diagnosis.flat_reward(np.array([5.0, 5, 5, np.nan, 5])) is not None
    assert diagnosis.flat_reward(np.array([5.0, 5, 5])) is None
    assert diagnosis.flat_reward(np.array([5.0, 5, 5, 6])) is None


def test_updates_of_no_use_are_told_of_once() -> None:
    useless, good = Config(iw_updates=9), Config(iw_updates=1)  # of the made-up rows the ESS falls with k
    noticed = diagnosis.Diagnosis(useless, 50)
    assert noticed.beforehand(1) == []
    found = [
        noticed(rows(config, i, return_std=1.0)) for i, config in enumerate([useless, useless, good, *6 * [useless]])
    ]
    assert [i for i, text in enumerate(found) if text] == [5]
    long = Config(iw_updates=9, learning_rate=9.0)
    noticed = diagnosis.Diagnosis(long, 50)
    assert len(noticed.beforehand(1)) == 1
    assert not any(noticed(rows(long, i, return_std=1.0)) for i in range(9)), "it was said before"


def test_updates_that_are_never_made_are_told_of_once() -> None:
    config = Config(iw_updates=3)

    def told(updates: list[int], config: Config = config) -> list[int]:
        noticed = diagnosis.Diagnosis(config, 50)
        assert noticed.beforehand(1) == []
        found = [noticed(rows(config, i, return_std=1.0, updates=n)) for i, n in enumerate(updates)]
        assert all("no importance-weighted update" in text and "`n_pairs`" in text for text in found if text)
        return [i for i, text in enumerate(found) if text]

    assert told([1, 1, 1, 1, 1, 1, 1]) == [4]
    assert told([1, 1, 1, 1, 2, 1, 1, 1, 1, 2]) == []
    assert told([1] * 9, Config(iw_updates=0)) == []


# -- dry run -------------------------------------------------------------------------------------------------


def test_a_forecast_by_hand() -> None:
    runner = SimpleNamespace(network=network.layout(3, (4,), 2), limit=1000, description="Somewhere")
    config = Config(n_pairs=10, min_env_steps=3000, n_eval=5, iw_updates=3, hidden_sizes=(4,), iterations=7)
    trial = Trial(50.0, 80.0, 1e-3, 1e-4, np.zeros(0))
    place = dry_run.Place(ranks=4, nodes=2, ranks_per_node=2, rank_bytes=10**8)
    state = SimpleNamespace(theta=np.zeros(26), episode_cap=60, iteration=0, env_steps=0)
    found = dry_run.forecast(config, trial, runner, state, place)
    assert (found.episodes, found.steps, found.most_steps) == (
        60,
        3000,
        4200,
    )  # three blocks of 20 episodes of 50 steps
    assert found.evaluation_steps == 400
    assert found.evaluation_every == pytest.approx(400 * 9 / 3000)  # then they are a tenth of all
    assert found.episode_seconds == pytest.approx(1e-3 * (3000 / 4 + 400 / 1.2 / 4))
    assert found.update_seconds == pytest.approx(1e-4 * 4 * 30 / 4)
    text = dry_run.report(config, trial, runner, state, 1_000_000, place)
    assert "3 observations, 2 actions" in text
    assert "1,000,000 numbers, 4 MB, once on each node" in text
    assert "204 MB on a node with 2 ranks" in text
    assert "for 7 iterations (`iterations`), 21,000 steps" in text
    assert "untrained policy" in text
    state = SimpleNamespace(theta=np.zeros(26), episode_cap=60, iteration=5, env_steps=15_000)
    text = dry_run.report(config, trial, runner, state, 1_000_000, place)
    assert "with the policy as it is" in text
    assert "what is left" in text
    assert "for 2 iterations (`iterations`), 6,000 steps" in text
    over = Config(n_pairs=10, min_env_steps=3000, hidden_sizes=(4,), iterations=9, max_env_steps=15_000)
    assert "nothing: the run is over by its limit (`max_env_steps`)" in dry_run.report(
        over, trial, runner, state, 1_000_000, place
    )
    state = SimpleNamespace(theta=np.zeros(26), episode_cap=60, iteration=0, env_steps=0)
    assert "none (`n_eval` 0)" in dry_run.report(Config(n_eval=0), trial, runner, state, 10, place)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path) -> None:
    """On two ranks: what it prints, once; and a warning of what is known beforehand."""
    run_dir = tmp_path / "run"
    outcome = launch.train(2, *launch.SMALL, "--dry-run", "--learning-rate", "9", "--run-dir", str(run_dir))
    assert outcome.code == 0, outcome.err
    assert not list(tmp_path.iterdir())
    assert outcome.out.count("Dry run: nothing is written.") == 1
    for name in (
        "environment",
        "policy",
        "population",
        "noise table",
        "memory",
        "steps",
        "time",
        "evaluation",
        "whole run",
    ):
        assert outcome.out.count(f"\n  {name} ") == 1, name
    assert "d = 32 parameters" in outcome.out
    assert "20,000 numbers, 80 kB" in outcome.out
    assert outcome.out.count("warning: steps are so long") == 1
    assert "`" not in outcome.out
