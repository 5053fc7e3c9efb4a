"""The live view: what it says of a run in every state, the curve in text, and that it leaves the run alone."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import launch
import numpy as np
import pytest
from rich.console import Console
from synthetic import make_run, open_log, rows

from iwes_mpi import open_run, watch
from iwes_mpi.files import progress
from iwes_mpi.files.reader import is_being_written
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import text_plot
from iwes_mpi.shown import view as seen


def shown(view, run_dir, width=100, height=30, ascii_only=False):
    """A frame as plain text."""
    console = Console(width=width, height=height, highlight=False)
    with console.capture() as capture:
        console.print(seen.frame(view, run_dir, "env_steps", 5, width, height, ascii_only))
    return capture.get()


# -- states --------------------------------------------------------------------------------------------------


def test_a_run_from_before_its_start_to_its_end(tmp_path):
    run_dir = tmp_path / "run"
    view = seen.look(run_dir)
    assert (view.state, view.run) == ("waiting", None)
    assert "does not exist yet" in view.text
    config = Config(iterations=3, iw_updates=1)
    log = open_log(run_dir, config)
    try:
        (run_dir / "log.h5").rename(run_dir / "later")
        assert "has no log yet" in seen.look(run_dir, view).text
        (run_dir / "later").rename(run_dir / "log.h5")
        view = seen.look(run_dir, view)
        assert (view.state, view.text) == ("running", "running its first iteration: compiling")
        assert "iteration 0 of 3" in shown(view, run_dir)
        log.append(rows(config, 0))
        log.append(rows(config, 1))
        view = seen.look(run_dir, view)
        assert view.state == "running"
        assert "about 0:00:01 left" in shown(view, run_dir)
    finally:
        log.close()
    view = seen.look(run_dir, view)
    assert view.state == "stopped"
    assert "--resume" in view.text
    make_run(tmp_path / "whole", 3, iterations=3)
    view = seen.look(tmp_path / "whole")
    assert (view.state, view.text) == ("finished", "finished: 3 iterations in 0:00:06")
    make_run(tmp_path / "steps", 3, max_env_steps=6000)
    assert seen.look(tmp_path / "steps").state == "finished"
    make_run(tmp_path / "part", 3, max_env_steps=6001)
    assert seen.look(tmp_path / "part").state == "stopped"


def test_episodes_of_a_long_iteration_are_told_of(tmp_path, monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    config, run_dir = Config(iterations=3), tmp_path / "run"
    log = open_log(run_dir, config)
    told = progress.Progress(run_dir)

    def episodes(iteration, done, later):
        now.s += later
        told.episodes(iteration, done, 120)
        return seen.look(run_dir).text

    try:
        assert episodes(0, 0, 0.0) == "running its first iteration: episode 0 of 120", "compiling is over"
        assert episodes(0, 30, 0.5) == "running its first iteration: episode 0 of 120", "not more than once a second"
        assert episodes(0, 37, 0.6) == "running its first iteration: episode 37 of 120"
        log.append(rows(config, 0))
        told.over()
        assert episodes(1, 2, 0.4) == "running", "the note is of the iteration before"
        assert episodes(1, 50, 0.7) == "running: episode 50 of 120"
        for damaged in (b"iteration 1 episode 5", b"\x1b[2J", b"", b"iteration 1 episode 5 of 9\n" * 99):
            (run_dir / "progress").write_bytes(damaged)
            assert seen.look(run_dir).text == "running"
        told.close()
        assert not (run_dir / "progress").exists()
        os.mkfifo(run_dir / "progress")
        assert seen.look(run_dir).text == "running", "nobody waits for a pipe"
        nowhere = progress.Progress(tmp_path / "gone")
        nowhere.episodes(0, 1, 2)
        nowhere.close()
    finally:
        log.close()


@pytest.mark.slow
def test_a_run_notes_its_episodes_and_leaves_no_note(tmp_path):
    """Seen from within, by the hook of the last iteration: its own note is still there."""
    (tmp_path / "spy.py").write_text(
        "import pathlib\nhere = pathlib.Path(__file__).parent\n"
        "def spy(row): (here / 'seen').write_text((here / 'run/progress').read_text())\n"
    )
    outcome = launch.train(
        1, *launch.SMALL, "--run-dir", str(tmp_path / "run"), "--iterations", "1", "--on-iteration", "spy:spy",
        PYTHONPATH=launch.python_path(tmp_path),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "seen").read_text().startswith("iteration 0 episode ")
    assert not (tmp_path / "run" / "progress").exists()


def test_a_killed_run_is_told_from_a_stopped_one(tmp_path):
    run_dir = tmp_path / "run"
    assert launch.plain("log_writer.py", str(run_dir), "5", "synthetic", "killed", timeout=60).code == -signal.SIGKILL
    assert is_being_written(run_dir / "log.h5")
    view = seen.look(run_dir, None, 1000)
    assert view.state == "running", "it may still be"
    later = seen.look(run_dir, view, 1119)
    assert later.state == "running", "an iteration takes 1 s, but two minutes of silence are nothing"
    later = seen.look(run_dir, later, 1121)
    assert later.state == "silent"
    assert "at least 0:02:01" in later.text
    assert "killed" in later.text
    assert "after 5 iterations of 1 s" in later.text
    assert later.run is view.run, "an unchanged log is not read again"


def test_silence_is_measured_by_the_length_of_iterations(tmp_path):
    config = Config()
    log = open_log(tmp_path / "run", config)
    for i in range(3):
        log.append(rows(config, i, wall_time=600.0 * (i + 1)))
    view = seen.look(tmp_path / "run", None, 0)
    view = seen.look(tmp_path / "run", view, 5999)
    assert view.state == "running"
    view = seen.look(tmp_path / "run", view, 6001)
    assert (view.state, "of 0:10:00" in view.text) == ("silent", True)
    log.append(rows(config, 3))
    assert seen.look(tmp_path / "run", view, 6002).state == "running", "it was not dead"
    log.close()


@pytest.mark.parametrize("skew", [-86400, -600, 0, 250, 86400])
def test_who_follows_a_run_times_its_silence_whatever_the_clock_of_the_log_says(tmp_path, skew):
    """The log's clock is `skew` seconds behind (or ahead); a run of 1 s per iteration goes on, then is killed."""
    config = Config()
    log = open_log(tmp_path / "run", config)
    file = tmp_path / "run" / "log.h5"
    began = time.time() - skew
    view, states = None, []
    for i in range(4):
        log.append(rows(config, i))
        os.utime(file, (began + 100 * i, began + 100 * i))
        for now in (100 * i, 100 * i + 99):
            view = seen.look(tmp_path / "run", view, now)
            states.append(view.state)
    if skew <= 300:
        assert states[:2] == 2 * ["running"], "clocks that differ by minutes do no harm even at the first look"
    assert states[2:] == 6 * ["running"]
    assert seen.look(tmp_path / "run", view, 300 + 119).state == "running"
    assert seen.look(tmp_path / "run", view, 300 + 121).state == "silent"
    log.close()


def test_the_first_look_goes_by_the_time_of_the_log(tmp_path):
    log = open_log(tmp_path / "run", Config())
    log.append(rows(Config(), 0))
    for age, state in ((-200, "running"), (400, "running"), (440, "silent"), (7500, "silent")):
        os.utime(tmp_path / "run" / "log.h5", (time.time() - age,) * 2)
        view = seen.look(tmp_path / "run")
        assert view.state == state
    assert "at least 2:00:00" in view.text, "less the five minutes by which clocks may differ"
    log.close()


def test_a_long_first_iteration_is_thought_of(tmp_path):
    log = open_log(tmp_path / "run", Config())
    view = seen.look(tmp_path / "run", None, 0)
    assert view.state == "running"
    view = seen.look(tmp_path / "run", view, 600)
    assert view.state == "silent"
    assert "first iteration is long" in view.text
    log.close()


def test_a_moment_in_which_a_log_cannot_be_read_is_no_news(tmp_path, monkeypatch):
    log = open_log(tmp_path / "run", Config())
    log.append(rows(Config(), 0))
    view = seen.look(tmp_path / "run", None, 0)

    def fails(_):
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(seen, "is_being_written", fails)
        view = seen.look(tmp_path / "run", view, 100)
        assert view.state == "unreadable"
    assert seen.look(tmp_path / "run", view, 119).state == "running"
    assert seen.look(tmp_path / "run", view, 121).state == "silent"
    log.close()


def test_what_cannot_be_read_just_now_leaves_the_last_frame(tmp_path):
    run_dir = make_run(tmp_path / "run", 4)
    view = seen.look(run_dir)
    whole = (run_dir / "log.h5").read_bytes()
    (run_dir / "log.h5").write_bytes(whole[:3000])
    broken = seen.look(run_dir, view)
    assert broken.state == "unreadable"
    assert broken.run is view.run
    assert "iteration" in shown(broken, run_dir)
    (run_dir / "log.h5").write_bytes(whole)
    assert seen.look(run_dir, broken).state == "stopped"
    assert seen.look(run_dir, seen.View("unreadable", "", None, None)).state == "stopped"


# -- the frame -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(("width", "height"), [(140, 50), (100, 30), (80, 24), (40, 20)])
def test_a_frame_fits_its_terminal(tmp_path, width, height, ascii_only):
    run_dir = make_run(tmp_path / "run", 30, iw_updates=2, iterations=100)
    text = shown(seen.look(run_dir), run_dir.relative_to(tmp_path), width, height, ascii_only)
    lines = text.splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert not ascii_only or all(line.isascii() for line in lines)
    last = open_run(run_dir).iterations.iloc[-1]
    assert f"{last['eval_return_median']:.2f}" in lines[-1]
    assert "iteration 30 of 100" in " ".join(text.split())


def test_a_population_without_evaluation_and_rows_without_numbers(tmp_path):
    run_dir = make_run(tmp_path / "run", 5, n_eval=0)
    assert "population mean (return)" in shown(seen.look(run_dir), run_dir)
    assert text_plot.text_plot(np.array([np.nan]), np.array([1.0]), 40, 8)[0] == "(nothing to draw yet)"


def test_time_left():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"wall_time": [30.0, 32, 34, 36], "env_steps": [100, 200, 300, 400]})
    assert seen.remaining(Config(iterations=10), table) == 12
    assert seen.remaining(Config(max_env_steps=1000), table) == 12
    assert seen.remaining(Config(max_env_steps=1000, iterations=5), table) == 2
    assert np.isnan(seen.remaining(Config(), table))
    assert np.isnan(seen.remaining(Config(iterations=10), table.iloc[:0]))
    assert np.isnan(seen.remaining(Config(iterations=10), table.iloc[:1])), "half a minute of compiling is no pace"


# -- the curve -----------------------------------------------------------------------------------------------


def test_dots_of_a_straight_line():
    canvas = text_plot.dots(np.arange(8.0), np.arange(8.0), 8, 8)
    np.testing.assert_array_equal(canvas, np.eye(8, dtype=bool)[::-1])
    flat = text_plot.dots(np.arange(3.0), np.full(3, 7.0), 6, 5)
    np.testing.assert_array_equal(flat, np.arange(5)[:, None] == np.full(6, 2))


def test_a_peak_among_many_points_is_not_lost():
    y = np.zeros(100_000)
    y[54_321] = 1
    lines = text_plot.text_plot(np.arange(100_000.0), y, 60, 10, ascii_only=True)
    assert next(line.index("*", 6) for line in lines if "*" in line) == pytest.approx(6 + 0.54 * 54, abs=2)
    assert len(lines) == 10


def test_braille_and_stars_show_the_same_curve():
    x = np.linspace(0, 1, 200)
    braille = text_plot.text_plot(x, x**2, 50, 12)
    stars = text_plot.text_plot(x, x**2, 50, 12, ascii_only=True)
    filled = [[not (c.isspace() or c == "\u2800") for c in line[6:].ljust(44)] for line in braille[:-2]]
    starred = [[c == "*" for c in line[6:].ljust(44)] for line in stars[:-2]]
    assert np.mean(np.array(filled) == np.array(starred)) > 0.95
    assert len(stars) == len(braille) == 12
    assert stars[-1].split() == braille[-1].split() == ["0", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (12_500, "12.5k"), (-2e6, "-2M"), (3.21e9, "3.21G"), (0.5, "0.5")],
)
def test_short_numbers(value, text):
    assert text_plot.si(value) == text


# -- the program ---------------------------------------------------------------------------------------------


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "iwes_mpi.watch", *arguments], capture_output=True, text=True, timeout=60, check=False,
        env=launch.environment(COLUMNS="90", LINES="30", PYTHONUTF8="1"),
    )  # fmt: skip


@pytest.mark.slow
def test_following_ends_with_the_run(tmp_path):
    """In a pipe: a frame whenever there is news, from before the start to the end; then it ends by itself."""
    command = [sys.executable, "-m", "iwes_mpi.watch", "run", "--interval", "0.1"]
    environment = launch.environment(COLUMNS="90", LINES="30", PYTHONUTF8="1")
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "run: waiting: run does not exist yet\n"
        make_run(tmp_path / "run", 2, iterations=2)
        out, _ = watcher.communicate(timeout=60)
    finally:
        watcher.kill()
        watcher.communicate()
    assert watcher.returncode == 0
    assert "finished: 2 iterations" in out


@pytest.mark.slow
def test_the_run_is_not_touched(tmp_path):
    run_dir = make_run(tmp_path / "run", 3)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.iterdir()}
    (run_dir / "log.h5").chmod(0o444)
    os.chmod(run_dir, 0o555)
    try:
        outcome = program(str(run_dir), "--once")
    finally:
        os.chmod(run_dir, 0o755)
    assert outcome.returncode == 0, outcome.stderr
    assert "stopped after 3 iterations" in " ".join(outcome.stdout.split())
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.iterdir()} == before


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, named in (
        (["--once"], "run"),
        ([str(file)], "not a run directory"),
        ([str(tmp_path), "--interval", "0"], "--interval"),
        ([str(tmp_path), "--interval", "nan"], "--interval"),
        ([str(tmp_path), "--rows", "0"], "--rows"),
        ([str(tmp_path), "--x", "time"], "--x"),
    ):
        with pytest.raises(WrongInput) as error:
            watch.main(arguments)
        assert named in watch.build_parser().describe(error.value).lower()
    outcome = program(str(file))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1)
