"""What the bar says about pace and time left, on a clock of our own; and whether a person is watching."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import launch
import pytest
from synthetic import rows

from iwes_mpi.settings.config import Config
from iwes_mpi.shown import console


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.s)
    return clock


def bar_and_step(now, capsys, state, width=200, **limits):
    """A bar for a run at `state`, and a function that ends an iteration and returns what is shown then."""
    bar = console.Bar(Config(**limits), state, width=width)

    def step(seconds):
        now.s += seconds
        state.iteration += 1
        state.env_steps += 1000
        bar.update(rows(Config(), state.iteration, env_steps=state.env_steps, eval_return_median=3.0))
        return capsys.readouterr().out

    return bar, step


@pytest.mark.parametrize("limits", [{"iterations": 120}, {"max_env_steps": 120_000}])
@pytest.mark.parametrize("before", [0, 100])
def test_compiling_does_not_count_as_pace(now, capsys, limits, before):
    """Also in a resumed run, which compiles again."""
    state = SimpleNamespace(iteration=before, env_steps=1000 * before)
    bar, step = bar_and_step(now, capsys, state, **limits)
    first = step(30.0)
    assert "0.0k/s" in first
    assert "left" not in first
    second = step(2.0)
    assert "0.5k/s" in second
    assert f"{console.clock(2 * (120 - before - 2))} left" in second
    last = [step(0.5) for _ in range(12)][-1]  # the pace of late is what counts
    assert "2.0k/s" in last
    assert f"{console.clock(0.5 * (120 - state.iteration))} left" in last
    bar.close()


def test_time_left_to_a_wall_time(now, capsys):
    bar, step = bar_and_step(now, capsys, SimpleNamespace(iteration=0, env_steps=0), max_wall_time=600.0)
    step(30.0)
    assert "0:09:28 left" in step(2.0)
    bar.close()


def plain(text):
    """What a terminal shows of the last line drawn."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").strip().splitlines()[-1]


@pytest.mark.parametrize("width", [200, 120, 80, 60])
def test_a_narrow_terminal_shows_fewer_figures_but_whole_ones(now, capsys, width):
    state = SimpleNamespace(iteration=1000, env_steps=10**9)
    bar, step = bar_and_step(now, capsys, state, width=width, iterations=2000, max_env_steps=10**10)
    step(30.0)
    shown = plain(step(2.0))
    bar.close()
    assert len(shown) <= width
    assert "eval median 3.0" in shown
    assert "…" not in shown
    assert len(re.findall("[━╸╺]", shown)) >= 8, "a bar"
    by_rank = [name in shown for name in ("M steps", "left", "ESS", "k/s")]
    assert "nan" not in shown
    assert by_rank == sorted(by_rank, reverse=True)
    assert sum(by_rank) == {200: 4, 120: 4, 80: 2, 60: 0}[width]


def test_figures_give_way_by_rank():
    figures = [(2, "bb"), (1, "aa"), (4, "dd"), (3, ""), (5, "ee")]
    assert console.fit(figures, 14) == "bb  aa  dd  ee"
    assert console.fit(figures, 13) == "bb  aa  dd"
    assert console.fit(figures, 9) == "bb  aa"
    assert console.fit(figures, 1) == "aa"


def test_compiling_is_said_while_compiling_only(now, capsys):
    state = SimpleNamespace(iteration=0, env_steps=0)
    bar, step = bar_and_step(now, capsys, state, iterations=9)
    bar.note("Starting")
    assert "compiling" in plain(capsys.readouterr().out)
    now.s += 20.0
    bar.episodes(0, 40)
    assert plain(capsys.readouterr().out).endswith("episode 0 of 40")
    now.s += 0.5
    bar.episodes(7, 40)
    assert capsys.readouterr().out == "", "not more than once a second"
    now.s += 0.6
    bar.episodes(9, 40)
    assert plain(capsys.readouterr().out).endswith("episode 9 of 40")
    assert "episode" not in plain(step(3.0))
    now.s += 5.0
    bar.episodes(3, 40)
    shown = plain(capsys.readouterr().out)
    assert "episode 3 of 40" in shown
    assert "eval median 3.0" in shown, "the last iteration's figures stay"
    bar.close()


def test_few_steps_and_no_evaluation_yet(now, capsys):
    bar, _ = bar_and_step(now, capsys, SimpleNamespace(iteration=0, env_steps=0), iterations=9)
    now.s += 2.0
    bar.update(rows(Config(), 1, env_steps=4700, eval_return_median=float("nan")))
    shown = plain(capsys.readouterr().out)
    bar.close()
    assert "5k steps" in shown
    assert "eval median" not in shown


@pytest.mark.parametrize(("k", "said"), [(0, False), (2, True)])
def test_no_ess_without_weighted_updates(now, capsys, k, said):
    state = SimpleNamespace(iteration=0, env_steps=0)
    config = Config(iw_updates=k)
    for display in (console.Bar(config, state, 200), console.Lines(config, state)):
        display.update(rows(config, 1))
        display.close()
        assert ("ESS" in capsys.readouterr().out) == said


WIDTH = (
    "import sys; from iwes_mpi.shown.console import terminal_width; open(sys.argv[1], 'w').write(str(terminal_width()))"
)
WITHIN = "import os, pty, sys; os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], lambda fd: os.read(fd, 1024)))"


@pytest.mark.parametrize("ranks_get", ["a pipe", "a terminal"])
@pytest.mark.parametrize("launcher_has", ["a file", "a terminal"])
def test_the_launchers_own_output_tells_whether_a_person_is_watching(tmp_path, ranks_get, launcher_has):
    """As under MPICH, which passes its ranks' output through pipes, and Open MPI, which gives rank 0 a terminal."""
    told = tmp_path / "told"
    rank = f"'{sys.executable}' -c \"{WIDTH}\" '{told}'"
    if ranks_get == "a terminal":
        rank = f"'{sys.executable}' -c '{WITHIN}' {rank}"
    launcher = tmp_path / "mpirun"
    launcher.write_text(f"#!/bin/sh\n{rank} | cat\n" if ranks_get == "a pipe" else f"#!/bin/sh\n{rank}\ntrue\n")
    launcher.chmod(0o755)
    command = [str(launcher)]
    if launcher_has == "a terminal":
        ours, theirs = pty.openpty()
        subprocess.run(["stty", "-F", os.ttyname(theirs), "cols", "91"], check=True)
        subprocess.run(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=launch.environment(), timeout=60, check=True
        )
        os.close(ours)
        os.close(theirs)
        assert told.read_text() == "91"
    else:
        with (tmp_path / "out").open("w") as out:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, env=launch.environment(), timeout=60, check=True
            )
        assert told.read_text() == "None"


def test_without_a_launcher_the_own_output_tells(tmp_path):
    told = tmp_path / "told"
    command = [sys.executable, "-c", WIDTH, str(told)]
    for extra, expected in (({}, "77"), ({"OMPI_COMM_WORLD_SIZE": "2"}, "None")):
        ours, theirs = pty.openpty()
        subprocess.run(["stty", "-F", os.ttyname(theirs), "cols", "77"], check=True)
        subprocess.run(command, stdout=theirs, env=launch.environment(**extra), timeout=60, check=True)
        os.close(ours)
        os.close(theirs)
        assert Path(told).read_text() == expected, extra
