"""Whole training runs under real MPI: the same bits at any number of ranks, through kills and restarts."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import launch
import numpy as np
import pytest
from same_bits import assert_same_bits

from iwes_mpi import open_run

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, uninterrupted."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    outcome = launch.train(1, *launch.SMALL, "--run-dir", str(run_dir))
    assert outcome.code == 0, outcome.err
    iterations = open_run(run_dir).iterations
    assert len(iterations) == 4
    assert iterations["theta_digest"].nunique() == 4
    assert iterations["episodes"].iloc[-1] > 4 * 2 * 13, "the test wants extra blocks of pairs"
    return run_dir


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_the_number_of_ranks_changes_no_bit(ranks: int, reference: Path, tmp_path: Path) -> None:
    outcome = launch.train(ranks, *launch.SMALL, "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert (open_run(tmp_path / "run").iterations["ranks"] == ranks).all()
    assert_same_bits(tmp_path / "run", reference)


def test_the_schedule_changes_no_bit(reference: Path, tmp_path: Path) -> None:
    for ranks, schedule in ((1, "static"), (4, "static"), (4, "dynamic")):
        run_dir = tmp_path / f"{schedule}-{ranks}"
        outcome = launch.train(
            ranks, *launch.SMALL, "--run-dir", str(run_dir), "--schedule", schedule, MPIR_CVAR_NUM_CLIQUES="2"
        )
        assert outcome.code == 0, outcome.err
        assert_same_bits(run_dir, reference)


def test_more_ranks_than_work(tmp_path: Path) -> None:
    little = [*launch.SMALL, "--n-pairs", "1", "--min-env-steps", "0", "--n-eval", "0", "--iterations", "2"]
    for ranks in (1, 5):
        outcome = launch.train(ranks, *little, "--run-dir", str(tmp_path / str(ranks)))
        assert outcome.code == 0, outcome.err
    assert_same_bits(tmp_path / "5", tmp_path / "1")


@pytest.mark.parametrize("where", ["all", "node", "root"])
def test_where_weights_are_computed_changes_no_bit(where: str, reference: Path, tmp_path: Path) -> None:
    # Two nodes are simulated with MPICH; with Open MPI all ranks share the one node.
    outcome = launch.train(
        4, *launch.SMALL, "--run-dir", str(tmp_path / "run"), "--weights-on", where, MPIR_CVAR_NUM_CLIQUES="2"
    )
    assert outcome.code == 0, outcome.err
    assert open_run(tmp_path / "run").attrs["nodes"] == (1 if launch.is_open_mpi() else 2)
    assert_same_bits(tmp_path / "run", reference)


@pytest.mark.parametrize(
    "extra",
    [
        ["--env-id", "Hopper-v5", "--min-env-steps", "0"],
        ["--env-id", "environments:Choice-v0", "--optimizer", "sgd", "--shaping", "standardize"],
        ["--clip", "inf", "--center", "--weight-kernel", "precomputed", "--common-random-numbers"],
        ["--clip", "3", "--weight-kernel", "density-ratio", "--min-ess", "0.5", "--shaping", "none"],
    ],
    ids=lambda extra: extra[1],
)
def test_other_settings_on_three_ranks(extra: list[str], tmp_path: Path) -> None:
    for ranks in (1, 3):
        outcome = launch.train(ranks, *launch.SMALL, *extra, "--run-dir", str(tmp_path / str(ranks)))
        assert outcome.code == 0, outcome.err
    assert_same_bits(tmp_path / "3", tmp_path / "1")


def test_resuming_on_other_ranks_changes_no_bit(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = launch.train(2, *launch.SMALL, "--iterations", "2", "--run-dir", str(run_dir))
    assert first.code == 0, first.err
    second = launch.train(3, "--resume", "--run-dir", str(run_dir), "--iterations", "4")
    assert second.code == 0, second.err
    assert_same_bits(run_dir, reference)


def test_the_population_is_logged_when_it_is_asked_for(tmp_path: Path) -> None:
    """Switched off and on again on resume: blanks stand where nothing was logged."""
    run_dir = str(tmp_path / "run")
    little = [*launch.SMALL, "--min-env-steps", "0", "--iterations", "1", "--log-population"]
    assert launch.train(2, *little, "--run-dir", run_dir).code == 0
    for limit, switch in (("2", "--no-log-population"), ("3", "--log-population")):
        outcome = launch.train(2, "--resume", "--run-dir", run_dir, "--iterations", limit, switch)
        assert outcome.code == 0, outcome.err
    run = open_run(run_dir)
    assert run.population is not None
    returns, lengths = run.population["returns"], run.population["lengths"]
    assert returns.shape == lengths.shape == (3, 13, 2)
    assert np.isnan(returns).all(axis=(1, 2)).tolist() == [False, True, False]
    assert (lengths == -1).all(axis=(1, 2)).tolist() == [False, True, False]
    np.testing.assert_allclose(returns[[0, 2]].mean(axis=(1, 2)), run.iterations["return_mean"].iloc[[0, 2]])


def test_wall_time_stops_early_with_a_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    outcome = launch.train(
        2, *launch.SMALL, "--iterations", "none", "--max-wall-time", "10", "--run-dir", str(run_dir), timeout=60
    )
    assert outcome.code == 75, outcome.err
    run = open_run(run_dir)
    assert run.checkpoint.state.iteration == len(run.iterations) > 0


def kill_repeatedly(run_dir: Path, settings: list[str], kills: int, seed: int) -> None:
    """Start and SIGKILL all ranks of a run `kills` times, on other numbers of ranks each time.

    The first comes when the run has logged a row. The others come a random time after the launch, up to one and a
    half times what that took, so that start-up, checkpoints and log rows are all hit.
    """
    rng = random.Random(seed)
    start_up = 60.0
    for number in range(kills):
        begin = time.monotonic()
        with launch.started(
            rng.choice((1, 2, 3)), "-m", "iwes_mpi.train", *settings, "--run-dir", str(run_dir), "--resume", "auto",
            output=subprocess.PIPE,
        ) as process:  # fmt: skip
            patience = 60.0 if number == 0 else rng.uniform(0.3, 1.5 * start_up)
            while time.monotonic() < begin + patience:
                assert process.poll() is None, f"restart {number} failed: {process.communicate()}"
                if number == 0 and (run_dir / "log.h5").exists() and len(open_run(run_dir).iterations) > 0:
                    start_up = time.monotonic() - begin
                    break
                time.sleep(0.01)
            launch.send(launch.ranks_of(process.pid), signal.SIGKILL)
            process.communicate(timeout=60)


@pytest.mark.timeout(3600)
def test_kills_change_no_bit(tmp_path: Path) -> None:
    """Killed 20 times (or IWES_KILLS times), and resumed to the end: the log of a run that was left alone."""
    run_dir = tmp_path / "killed"
    settings = [*launch.SMALL, "--min-env-steps", "0", "--checkpoint-every", "7", "--display", "none"]
    kill_repeatedly(run_dir, [*settings, "--iterations", "none"], int(os.environ.get("IWES_KILLS", "20")), seed=1)
    limit = str(open_run(run_dir).checkpoint.state.iteration + 10)
    resumed = launch.train(2, "--resume", "--run-dir", str(run_dir), "--iterations", limit)
    assert resumed.code == 0, resumed.err
    whole = launch.train(2, *settings, "--iterations", limit, "--run-dir", str(tmp_path / "whole"), timeout=1500)
    assert whole.code == 0, whole.err
    assert_same_bits(run_dir, tmp_path / "whole")
    assert list(open_run(run_dir).iterations["iteration"]) == list(range(int(limit)))


def test_updates_of_no_use_are_told_of_once(tmp_path: Path) -> None:
    settings = [*launch.SMALL, "--min-env-steps", "0", "--iterations", "6", "--display", "lines"]
    for rate, told in (("0.001", 0), ("1", 1)):
        outcome = launch.train(1, *settings, "--learning-rate", rate, "--run-dir", str(tmp_path / rate))
        assert outcome.code == 0, outcome.err
        smallest = open_run(tmp_path / rate).updates["ess"].min()
        assert (smallest < 0.1) == bool(told)
        assert outcome.out.count("warning: ") == told
        assert outcome.out.count("warning: steps are so long that weighted updates will be of no use") == told


@pytest.mark.slow
def test_a_small_task_learns_with_nothing_but_its_name(tmp_path: Path) -> None:
    """InvertedPendulum from 30 steps of balance, about, to 900 of 1,000."""
    limits = ["--stop-at-return", "900", "--max-env-steps", "400000", "--display", "none"]
    run_dir = tmp_path / "run"
    outcome = launch.train(2, "--env-id", "InvertedPendulum-v5", *limits, "--run-dir", str(run_dir), timeout=300)
    assert outcome.code == 0, outcome.err
    scores = open_run(run_dir).iterations["eval_return_mean"].dropna()
    assert scores.iloc[0] < 300
    assert scores.iloc[-3:].mean() >= 900
