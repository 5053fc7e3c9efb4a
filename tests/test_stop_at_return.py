"""--stop-at-return: a run ends once three evaluations in a row reach a return, at the same iteration on any ranks."""

import io
from pathlib import Path

import h5py
import launch
import numpy as np
import pytest

import iwes_mpi
from iwes_mpi.files import checkpoint
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import finished
from iwes_mpi.settings.wrong_input import WrongInput

DRIFT = [
    *("--env-id", "environments:Drift-v0", "--hidden-sizes", "--n-pairs", "6", "--min-env-steps", "0"),
    *("--n-eval", "3", "--eval-every", "2", "--sigma", "0.2", "--learning-rate", "0.05", "--l2", "0"),
    *("--noise-table-size", "20000", "--train-episode-steps", "20", "--episode-schedule", "budget"),
    *("--episode-budget", "9000", "--seed", "1", "--display", "none"),
]


def go(ranks: int, run_dir: Path, *arguments: str) -> iwes_mpi.Run:
    outcome = launch.train(ranks, *DRIFT, "--run-dir", str(run_dir), *arguments)
    assert outcome.code == 0, outcome.err
    return iwes_mpi.open_run(run_dir)


def scores(run: iwes_mpi.Run) -> np.ndarray:
    """The evaluations' mean returns."""
    return run.iterations["eval_return_mean"].dropna().to_numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> iwes_mpi.Run:
    """A run that goes on."""
    return go(1, tmp_path_factory.mktemp("goal") / "whole", "--iterations", "30")


@pytest.fixture(scope="module")
def goal(whole: iwes_mpi.Run) -> tuple[float, int]:
    """A return that it reaches on its way, and the iterations that it takes."""
    evaluated = np.flatnonzero(whole.iterations["eval_return_mean"].notna())
    means = [scores(whole)[i : i + 3].mean() for i in range(len(evaluated) - 2)]
    best = int(np.argmax(means))
    assert best > 0, "it is to be reached, but not at once"
    return float(means[best]) - 1e-9, int(evaluated[best + 2]) + 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_ends_where_its_goal_is_reached(
    tmp_path: Path, ranks: int, whole: iwes_mpi.Run, goal: tuple[float, int]
) -> None:
    target, iterations = goal
    run = go(ranks, tmp_path / "run", "--iterations", "30", "--stop-at-return", repr(target))
    assert len(run.iterations) == iterations
    assert run.finished
    assert list(run.iterations["theta_digest"]) == list(whole.iterations["theta_digest"][:iterations])
    np.testing.assert_array_equal(run.checkpoint.state.recent_evaluations, scores(run)[-3:])


def test_a_goal_is_reached_across_a_stop(tmp_path: Path, goal: tuple[float, int]) -> None:
    target, iterations = goal
    limited = ("--iterations", str(iterations - 2), "--stop-at-return", repr(target))
    run = go(1, tmp_path / "run", *limited)
    assert len(run.iterations) == iterations - 2
    run = go(3, tmp_path / "run", "--resume", "--iterations", "30")
    assert len(run.iterations) == iterations
    again = go(1, tmp_path / "run", "--resume", "--iterations", "30")
    assert len(again.iterations) == iterations, "it has ended"
    farther = go(1, tmp_path / "run", "--resume", "--iterations", "30", "--stop-at-return", repr(target + 10))
    assert len(farther.iterations) == 30
    assert farther.finished


def test_a_checkpoint_without_the_last_evaluations_is_read(tmp_path: Path, whole: iwes_mpi.Run) -> None:
    image = io.BytesIO((whole.path / "checkpoint.h5").read_bytes())
    with h5py.File(image, "r+") as file:
        assert file["recent_evaluations"].shape == (3,)
        del file["recent_evaluations"]
    content = image.getvalue()[checkpoint._USER_BLOCK :]
    found = checkpoint.decode(checkpoint._header(checkpoint.VERSION, content) + content, "x")
    assert found.state.recent_evaluations == []
    np.testing.assert_array_equal(found.state.theta, whole.theta)


@pytest.mark.parametrize(
    ("goal", "evaluations", "ended"),
    [
        (2.0, [], False),
        (2.0, [9, 9], False),
        (2.0, [1, 2, 3], True),
        (2.0, [9, 1, 2, 2.9], False),
        (2.0, [-9, 1, 2, 3], True),
        (-4.0, [-4, -4, -4], True),
        (None, [9, 9, 9], False),
    ],
)
def test_the_mean_of_the_last_three_decides(goal: float | None, evaluations: list[float], ended: bool) -> None:
    assert finished(Config(stop_at_return=goal), 5, 500, evaluations) == ended


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"stop_at_return": float("inf")}, "must be finite, got inf"),
        ({"stop_at_return": "high"}, "must be a number, got 'high'"),
    ],
)
def test_a_goal_without_sense_is_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(WrongInput) as caught:
        Config(**settings)
    assert (caught.value.setting, caught.value.problem) == ("stop_at_return", problem)


def test_a_goal_without_evaluations_is_refused(tmp_path: Path) -> None:
    arguments = ("--run-dir", str(tmp_path / "run"), "--stop-at-return", "3", "--n-eval", "0")
    outcome = launch.train(1, *DRIFT, *arguments)
    assert (outcome.code, outcome.err) == (
        2, "iwes_mpi.train: error: --stop-at-return: needs evaluations, but --n-eval is 0\n"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
