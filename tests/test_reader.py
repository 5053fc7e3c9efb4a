"""The log of a run of 100 iterations on two ranks, read through `open_run`, is what its console printed."""

import re

import launch
import numpy as np
import pandas as pd
import pytest

from iwes_mpi import open_run

LINE = re.compile(
    r"iteration +(?P<iteration>\d+)  env_steps +(?P<env_steps>\d+)  steps/s +(?P<rate>\d+)  "
    r"eval median +(?P<eval_return_median>[-\d.]+)  return mean +(?P<return_mean>[-\d.]+)  "
    r"updates (?P<updates>\d+)  ESS (?P<ess>[\d.]+)  time (?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)"
)
SETTINGS = [*launch.SMALL, "--min-env-steps", "0", "--iterations", "100", "--display", "lines", "--min-ess", "0.6"]

UNTIMED = ("iteration", "env_steps", "return_mean", "eval_return_median", "theta_norm", "theta_digest", "ranks")


@pytest.fixture(scope="module")
def run_and_output(tmp_path_factory):
    """The run, and what it printed."""
    run_dir = tmp_path_factory.mktemp("reader") / "run"
    outcome = launch.train(2, *SETTINGS, "--run-dir", str(run_dir), timeout=120)
    assert outcome.code == 0, outcome.err
    return open_run(run_dir), outcome.out


@pytest.mark.mpi
def test_frames_agree_with_the_console(run_and_output):
    run, out = run_and_output
    printed = [match.groupdict() for match in map(LINE.fullmatch, out.splitlines()) if match]
    assert len(printed) == 100 == len(run.iterations)
    smallest_ess = run.updates.groupby("iteration")["ess"].min()
    for line, row in zip(printed, run.iterations.itertuples(), strict=True):
        for name in ("iteration", "env_steps", "updates"):
            assert int(line[name]) == getattr(row, name), (line, name)
        for name in ("eval_return_median", "return_mean"):
            assert line[name] == f"{getattr(row, name):.2f}", (line, name)
        assert line["ess"] == f"{smallest_ess[row.iteration]:.3f}"
        assert 3600 * int(line["h"]) + 60 * int(line["m"]) + int(line["s"]) == pytest.approx(row.wall_time, abs=0.501)
    last = run.iterations.iloc[-1]
    assert f"Finished: 100 iterations, {last['env_steps']:.0f} environment steps" in out
    assert f"evaluation median {last['eval_return_median']:.1f}." in out


@pytest.mark.mpi
def test_a_reader_during_the_whole_run_sees_whole_rows_and_disturbs_nothing(run_and_output, tmp_path):
    alone, _ = run_and_output
    lengths = []
    with launch.started(2, *("-m", "iwes_mpi.train"), *SETTINGS, "--run-dir", str(tmp_path)) as process:
        while process.poll() is None:
            if not (tmp_path / "log.h5").exists():
                continue
            run = open_run(tmp_path)
            lengths.append(len(run.iterations))
            for table, names in ((run.iterations, UNTIMED), (run.updates, alone.updates.columns)):
                expected = getattr(alone, "iterations" if table is run.iterations else "updates")[: len(table)]
                pd.testing.assert_frame_equal(table[list(names)], expected[list(names)])
            assert set(run.updates["iteration"]) == set(run.iterations["iteration"])
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5, "the reader was too slow to see the log grow"
    assert list(open_run(tmp_path).iterations["theta_digest"]) == list(alone.iterations["theta_digest"])


@pytest.mark.mpi
def test_frames_agree_with_each_other(run_and_output):
    run, _ = run_and_output
    iterations, updates = run.iterations, run.updates
    np.testing.assert_array_equal(iterations["iteration"], np.arange(100))
    accepted = updates.groupby("iteration")["accepted"].sum()
    np.testing.assert_array_equal(accepted, iterations["updates"])
    assert 0 < accepted.min() < accepted.max(), "the stop rule was at work in some iterations"
    assert (updates[updates["k"] == 0]["ess"] == 1).all()
    assert (iterations["episodes"].diff().dropna() == 26).all()
    assert (iterations["ranks"] == 2).all()
    assert run.attrs["ranks"] == 2
    assert run.config.n_pairs == 13
    assert iterations["theta_digest"].nunique() == 100
    assert run.checkpoint.state.iteration == 100
    assert float(np.linalg.norm(run.theta)) == pytest.approx(iterations["theta_norm"].iloc[-1])
    assert run.checkpoint.state.env_steps == iterations["env_steps"].iloc[-1]
