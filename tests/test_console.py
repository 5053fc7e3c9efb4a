"""What the bar says about pace and time left, on a clock of our own."""

from types import SimpleNamespace

import pytest
from synthetic import rows

from iwes_mpi.settings.config import Config
from iwes_mpi.shown import console


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.s)
    return clock


def bar_and_step(now, capsys, state, **limits):
    """A bar for a run at `state`, and a function that ends an iteration and returns what is shown then."""
    bar = console.Bar(Config(**limits), state, width=200)

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
