"""Environments that take no seeds of 63 bits get smaller ones, the same on all ranks; all others get what they got."""

from pathlib import Path
from typing import Any

import gymnasium
import launch
import numpy as np
import pytest
from environments import Drift, Legacy
from same_bits import assert_same_bits

from iwes_mpi import evaluate
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.mpi.world import World
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.rollouts.seeds import SEED_BOUND, seed_bound
from iwes_mpi.settings.config import Config


class Picky(Drift):
    """Drift that takes seeds below `bound` alone, and notes those that it was given."""

    def __init__(self, bound: int):
        super().__init__()
        self.bound = bound
        self.given: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is not None
        self.given.append(seed)
        if seed >= self.bound:
            raise OverflowError("Python int too large to convert to C int")
        return super().reset(seed=seed)


@pytest.mark.parametrize("bound", [2**63, 2**32, 2**31])
def test_the_bound_is_found(bound: int) -> None:
    env = Picky(bound)
    assert seed_bound(env) == bound
    assert max(seed for seed in env.given if seed < bound) == bound - 1, "the largest that it will get was tried"


@pytest.mark.parametrize("ending", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_environment_that_takes_no_seed_at_all_shows_its_error_in_the_first_episode(ending: type) -> None:
    class Broken(Drift):
        def reset(self, **given: Any) -> Any:
            raise ending("no reset")

    assert seed_bound(Broken()) == SEED_BOUND


def test_what_is_gymnasiums_own_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gymnasium.make("CartPole-v1")
    monkeypatch.setattr(type(env.unwrapped), "reset", None)
    assert seed_bound(env) == SEED_BOUND


def test_episodes_start_from_the_seed_modulo_the_bound() -> None:
    """Held to NumPy's global generator itself, behind all wrappers that Gymnasium has."""
    seen = []
    gymnasium.register("Wrapped-v0", entry_point=lambda: gymnasium.make("Legacy-v0"), max_episode_steps=50)
    try:
        runner: Any = open_runner(Config(env_id="environments:Wrapped-v0", hidden_sizes=()))
    finally:
        del gymnasium.registry["Wrapped-v0"]
    reset = runner.env.reset
    runner.env.reset = lambda **given: seen.append(reset(**given)) or seen[-1]
    theta = np.zeros(runner.network.n_parameters, dtype=np.float32)
    task = EpisodeTask(theta, np.eye(2, 3), generator(1, Stream.SCORE_EPISODE), 0.0, False)
    runner.run(task)
    runner.close()
    drawn = int(generator(1, Stream.SCORE_EPISODE).integers(2**63))
    assert drawn >= 2**32
    np.random.seed(drawn % 2**32)  # noqa: NPY002
    expected = np.random.default_rng(int(np.random.randint(2**31))).normal(size=3)  # noqa: NPY002
    np.testing.assert_array_equal(seen[0][0], expected)


def test_population_and_evaluation_get_seeds_of_one_bound() -> None:
    for kwargs in ({"bound": 2**63}, {"bound": 2**32}):
        gymnasium.register("Picky-v0", entry_point=Picky, max_episode_steps=9, kwargs={"bound": 2**63})
        try:
            runner: Any = open_runner(Config(env_id="Picky-v0", env_kwargs=kwargs, train_env_kwargs={"bound": 2**32}))
        finally:
            del gymnasium.registry["Picky-v0"]
        assert [each.seed_bound for each in (runner, runner._training, runner._evaluation)] == [2**32] * 3
        runner.close()


@pytest.mark.slow
def test_the_same_bits_on_one_and_three_ranks_and_a_film_of_what_was_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    for ranks in (1, 3):
        run_dir = tmp_path / f"run{ranks}"
        outcome = launch.train(
            ranks,
            *launch.SMALL,
            "--env-id",
            "environments:Legacy-v0",
            "--iterations",
            "2",
            "--run-dir",
            str(run_dir),
            timeout=280,
        )
        assert outcome.code == 0, outcome.err
    assert_same_bits(tmp_path / "run3", tmp_path / "run1")
    film = tmp_path / "film.gif"
    assert evaluate.evaluate(world, [str(run_dir), "--trust", "--episodes", "2", "--video", str(film)]) == 0
    out, err = capsys.readouterr()
    assert film.exists()
    assert "does not repeat itself" not in out + err
    assert Legacy.__name__ + "-v0" in out
