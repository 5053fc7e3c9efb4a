"""`maximize` and `AskTell`: the bits of one another on any number of ranks, restarts, failures; the page's examples."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import numpy as np
import pytest

import iwes_mpi
from iwes_mpi.files.reader import LogError
from iwes_mpi.method import room

PAGE = (launch.ROOT / "docs" / "objectives.md").read_text("utf-8")
EXAMPLES = {name: text for text, name in re.findall(r"```python\n(# (\w+)\.py\n.*?)```", PAGE, flags=re.DOTALL)}
SMALL = {"n_pairs": 6, "sigma": 0.1, "seed": 7, "noise_table_size": 50_000}


def rugged(theta, rng):
    """Random, and of any size."""
    return float(np.cos(3 * theta.astype(float)).sum() + 0.1 * rng.standard_normal())


def digests(run_dir):
    return iwes_mpi.open_run(run_dir).iterations["theta_digest"].tolist()


# -- examples ------------------------------------------------------------------------------------------------


def example(name, folder):
    """The example as it stands on the page, as a file in a folder."""
    path = folder / f"{name}.py"
    path.write_text(EXAMPLES[name])
    return path


def started(path, ranks):
    """An example started as the page says, in its folder."""
    command = launch.command(ranks, str(path)) if ranks else [sys.executable, str(path)]
    return subprocess.Popen(
        command, cwd=path.parent, env=launch.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finished(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return launch.Outcome(process.returncode, out, err)


@pytest.mark.mpi
@pytest.mark.slow
def test_rosenbrock_has_the_same_bits_on_any_ranks_and_after_a_kill(tmp_path):
    found = {}
    for ranks in (0, 2, 5):  # 0: without mpirun
        (tmp_path / str(ranks)).mkdir()
        outcome = finished(started(example("rosenbrock", tmp_path / str(ranks)), ranks))
        assert (outcome.code, outcome.err) == (0, "")
        found[ranks] = digests(tmp_path / str(ranks) / "runs/rosenbrock")
    assert len(found[0]) == 60
    assert found[0] == found[2] == found[5]
    said = re.search(r"^(-\d+) after 6000 evaluations", outcome.out, re.MULTILINE)
    assert float(said[1]) > -300_000, "it began at -403,596"

    killed = tmp_path / "killed"
    killed.mkdir()
    path = example("rosenbrock", killed)
    process = started(path, 2)
    log = killed / "runs/rosenbrock/log.h5"
    deadline = time.monotonic() + 60
    while rows(log) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    launch.kill_tree(process.pid)
    finished(process)
    assert rows(log) < 60, "it was over before it could be killed"
    outcome = finished(started(path, 2))
    assert outcome.code == 0
    assert "Resuming" in outcome.out
    assert digests(killed / "runs/rosenbrock") == found[0]


def rows(log):
    try:
        return len(iwes_mpi.open_run(log.parent).iterations)
    except LogError:
        return 0


@pytest.mark.slow
def test_the_other_examples_do_what_they_say(tmp_path):
    assert set(EXAMPLES) == {"rosenbrock", "pole", "simulator", "ask_tell"}
    said = {}
    for name in ("pole", "simulator", "ask_tell"):
        outcome = finished(started(example(name, tmp_path), 0))
        assert (outcome.code, outcome.err) == (0, ""), name
        said[name] = outcome.out.splitlines()[-1]
    assert int(re.fullmatch(r"upright for (\d+) of 200 steps", said["pole"])[1]) > 190
    found = re.fullmatch(r"maximum near \[ *(\S+) +(\S+?) *\]", said["simulator"])
    np.testing.assert_allclose([float(found[1]), float(found[2])], [3, -1], atol=0.5)
    assert float(said["ask_tell"].partition(" at ")[0]) > -0.3
    assert not (tmp_path / "runs").exists(), "without run_dir nothing is written"


# -- the same bits -------------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"iw_updates": 0, "optimizer": "sgd", "learning_rate": 0.1},
    {"common_random_numbers": True, "reuse_batches": 2, "center": True, "clip": float("inf")},
    {"importance_mixing": 0.3, "iw_updates": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings), "defaults"))
def test_ask_tell_has_the_bits_of_maximize(settings):
    told = []
    result = iwes_mpi.maximize(
        rugged, np.full(9, 0.2), iterations=4, display="none", on_iteration=told.append, **SMALL, **settings
    )
    es = iwes_mpi.AskTell(np.full(9, 0.2), **SMALL, **settings)
    for row in told:
        candidates = es.ask()
        assert candidates.dtype == np.float32
        assert (candidates == es.ask()).all(), "the same until they are told of"
        found = es.tell([rugged(theta, es.rng(i)) for i, theta in enumerate(candidates)]).iteration
        assert (found.theta_digest, found.return_mean) == (row.theta_digest, row.return_mean)
    assert es.theta.tobytes() == result.theta.tobytes()
    assert result.theta.dtype == np.float64
    assert (result.finished, result.iterations, result.exit_code, result.rank) == (True, 4, 0, 0)
    assert result.best_return == max(row.return_max for row in told)
    assert result.mean_return == told[-1].return_mean
    assert result.evaluations == told[-1].episodes


def test_candidates_are_mirrored_around_theta():
    es = iwes_mpi.AskTell([1.0, -2.0, 3.0], **SMALL)
    candidates = es.ask().astype(float)
    np.testing.assert_allclose((candidates[::2] + candidates[1::2]) / 2, [[1.0, -2.0, 3.0]] * 6, atol=1e-6)
    assert 0.05 < (candidates - es.theta).std() < 0.15


@pytest.mark.slow
def test_ask_tell_needs_no_mpi():
    text = "import sys, iwes_mpi; e = iwes_mpi.AskTell([0, 1], noise_table_size=1000); e.tell(e.ask()[:, 0]); " \
        "print([name for name in ('mpi4py', 'h5py', 'gymnasium') if name in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


# -- runs ----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_to_the_bits_of_one_left_alone(tmp_path):
    def run(where, iterations, **more):
        return iwes_mpi.maximize(
            rugged, np.zeros(5), run_dir=where, iterations=iterations, display="none", **SMALL, **more
        )  # fmt: skip

    whole = run(tmp_path / "whole", 5)
    first = run(tmp_path / "parts", 2)
    assert run(tmp_path / "parts", 2, resume="always").best_return == first.best_return
    again = run(tmp_path / "parts", 5, resume="auto")
    assert again.theta.tobytes() == whole.theta.tobytes()
    assert (again.best_return, again.mean_return) == (whole.best_return, whole.mean_return)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    run_ = iwes_mpi.open_run(tmp_path / "parts")
    assert run_.config.env_id == "test_objectives.rugged"
    with pytest.raises(iwes_mpi.WrongInput, match="maximizes an objective"):
        run_.policy()
    with pytest.raises(iwes_mpi.WrongInput, match=r"^theta0: the run in .* began at another theta0"):
        iwes_mpi.maximize(rugged, np.ones(5), run_dir=tmp_path / "parts", resume="auto", **SMALL)
    with pytest.raises(iwes_mpi.WrongInput, match=r"^objective: is .*lambda.* but the run"):
        iwes_mpi.maximize(lambda theta, rng: 0, np.zeros(5), run_dir=tmp_path / "parts", resume="auto", **SMALL)


def test_nan_counts_as_the_worst_and_theta_may_be_kept_and_changed():
    seen = []

    def objective(theta, rng):
        seen.append(theta)
        value = float(theta[0])
        theta[:] = 99
        return np.float32(value) if value > 0 else np.nan

    row = []
    result = iwes_mpi.maximize(objective, [0.0], iterations=1, on_iteration=row.append, display="none", **SMALL)
    assert row[0].invalid_episodes == 6, "one of each pair"
    assert result.theta[0] > 0
    assert len({id(theta) for theta in seen}) == len(seen)


def test_the_signal_handler_from_before_is_given_back():
    before, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        iwes_mpi.maximize(rugged, [0.0, 1.0], iterations=1, display="none", **SMALL)
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_stop_is_told(tmp_path):
    def objective(theta, rng):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    result = iwes_mpi.maximize(objective, [0.0], run_dir=tmp_path, display="none", **SMALL)
    assert (result.finished, result.exit_code, result.iterations) == (False, 75, 0)


# -- wrong input ---------------------------------------------------------------------------------------------

WRONG = [
    ({"theta0": [[1.0]]}, r"theta0: must have the shape \(d,\)"),
    ({"theta0": []}, "theta0: must have the shape"),
    ({"theta0": 3.0}, "theta0: must have the shape"),
    ({"theta0": ["a"]}, "theta0: must be a vector of numbers"),
    ({"theta0": [1, [2]]}, "theta0: must be a vector of numbers"),
    ({"theta0": [True]}, "theta0: must be a vector of numbers"),
    ({"theta0": None}, "theta0: must be a vector of numbers"),
    ({"theta0": [0.0, np.nan]}, "theta0: must be finite, in float32 too, got nan at index 1"),
    ({"theta0": [1e300]}, "theta0: must be finite"),
    ({"sigma": -1}, "sigma: must be positive"),
    ({"seed": -1}, "seed: must lie between"),
    ({"env_id": "Ant-v5"}, "env_id: is not a setting of"),
    ({"hidden_sizes": [4]}, "hidden_sizes: is not a setting of"),
    ({"min_env_steps": 5}, "min_env_steps: is not a setting of"),
    ({"n_pair": 5}, "n_pair: is not a setting of .*; is it n_pairs?"),
    ({"lr": 1.0}, "lr: is not a setting of .*; is it learning_rate?"),
    ({"importance_mixing": 0.1, "cross_fit": True}, "importance_mixing: cannot be combined with cross_fit"),
    ({"noise_table_size": 1}, "noise_table_size: 1 numbers are too few"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_refused(arguments, message):
    arguments = {"theta0": [0.0, 0.0], "iterations": 0} | arguments
    for refuses in (lambda **given: iwes_mpi.maximize(rugged, **given), only_updates):
        with pytest.raises(iwes_mpi.WrongInput, match=f"^{message}") as caught:
            refuses(**arguments)
        assert "\n" not in str(caught.value)


def test_a_population_that_cannot_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 9 * 128)
    for refuses in (lambda **given: iwes_mpi.maximize(rugged, **given), only_updates):
        with pytest.raises(iwes_mpi.WrongInput, match=r"^n_pairs: 10 need .* at most 9 fit$"):
            refuses(theta0=[0.0], iterations=0, n_pairs=10, noise_table_size=1000)


def only_updates(*, iterations, **arguments):
    return iwes_mpi.AskTell(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": 3}, "objective: must be a function"),
        ({"resume": "yes"}, "resume: must be one of"),
        ({"resume": "auto"}, "resume: needs run_dir"),
        ({"on_iteration": 3}, "on_iteration: must be a function"),
        ({"tensorboard": True}, "tensorboard: needs run_dir"),
        ({"stop_at_return": 1, "n_eval": 0}, "stop_at_return: needs evaluations"),
    ],
)
def test_wrong_arguments_of_maximize_are_refused(arguments, message):
    with pytest.raises(iwes_mpi.WrongInput, match=f"^{message}"):
        iwes_mpi.maximize(**{"objective": rugged, "theta0": [0.0]} | arguments)


@pytest.mark.parametrize("value", [None, "3", [1.0, 2.0], True, 1j, np.zeros(2)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(iwes_mpi.WrongInput, match=r"^objective: returned .*, not a number"):
        iwes_mpi.maximize(lambda theta, rng: value, [0.0], iterations=1, display="none", **SMALL)
    es = iwes_mpi.AskTell([0.0], **SMALL)
    es.ask()
    with pytest.raises(iwes_mpi.WrongInput, match=r"^returns: returned .*, not a number"):
        es.tell([value] * 12)


def test_tell_comes_after_ask_with_a_number_for_each_candidate():
    es = iwes_mpi.AskTell([0.0], **SMALL)
    with pytest.raises(iwes_mpi.WrongInput, match=r"^tell: comes after ask"):
        es.tell([0.0] * 12)
    es.ask()
    with pytest.raises(iwes_mpi.WrongInput, match=r"^returns: must be 12 numbers, one for each candidate, got 3"):
        es.tell([0.0] * 3)
    es.tell(np.arange(12))
    with pytest.raises(iwes_mpi.WrongInput, match=r"^tell: comes after ask"):
        es.tell([0.0] * 12)


def test_a_run_that_diverges_is_an_exception():
    with pytest.raises(iwes_mpi.RunFailed, match="theta is no longer finite in iteration 0: learning_rate") as caught:
        iwes_mpi.maximize(rugged, [0.0], iterations=3, learning_rate=1e308, optimizer="sgd", display="none",
                          shaping="none", **SMALL)  # fmt: skip
    assert caught.value.exit_code == 1


FAILING = """
import sys
import iwes_mpi
def objective(theta, rng):
    return {body}
iwes_mpi.maximize(objective, [0.0, 1.0], n_pairs=50, noise_table_size=1000, display="none", {more})
"""


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "more", "code", "said"),
    [
        ("0.0", "sigma=0", 2, "iwes_mpi.maximize: error: sigma: must be positive and finite, got 0.0"),
        ("'x' if iwes_mpi.running.maximize._world().rank == 1 else 0", "iterations=9", 2,
         "iwes_mpi.maximize: error: objective: returned 'x' (str), not a number"),
        ("1 / 0 if iwes_mpi.running.maximize._world().rank == 1 else 0", "iterations=9", 1,
         "ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_what_goes_wrong_on_a_rank_ends_all(tmp_path, body, more, code, said):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(body=body, more=more))
    outcome = launch.run(3, str(script), timeout=60)
    assert outcome.code == code
    assert outcome.err.count(said) == 1
    assert ("Traceback" in outcome.err) == (code == 1)


def test_the_log_of_a_run_with_files_is_that_of_training(tmp_path):
    iwes_mpi.maximize(rugged, [0.0, 0.0], run_dir=tmp_path, iterations=2, log_population=True, display="none", **SMALL)
    run = iwes_mpi.open_run(tmp_path)
    assert run.population["returns"].shape == (2, 6, 2)
    assert run.iterations["env_steps"].tolist() == [12, 24]
    assert run.attrs["command"].startswith("python ")
    assert run.theta.size == 2
    assert Path(tmp_path / "config.toml").exists()
