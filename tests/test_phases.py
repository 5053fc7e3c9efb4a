"""Where the time goes: every moment in one phase, by a clock of the test's own, and by the real one."""

import time

import numpy as np
import pytest
from fakes import build, rugged

from iwes_mpi.files.columns import TABLES, rows_of
from iwes_mpi.method import phases as phases_module
from iwes_mpi.method.phases import Phase, Phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""

    class Clock:
        now = 1000.0

        def pass_(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(phases_module.time, "perf_counter", lambda: clock.now)
    return clock


def taken(phases):
    """What was taken, without the phases in which no time was spent."""
    return {phase: seconds for phase, seconds in phases.take().items() if seconds}


# -- a clock of the test's own -------------------------------------------------------------------------------


def test_an_inner_phase_pauses_the_outer(clock):
    phases = Phases()
    with phases(Phase.WEIGHTS):
        clock.pass_(1)
        with phases(Phase.COMM):
            clock.pass_(10)
            with phases(Phase.IDLE):
                clock.pass_(100)
            clock.pass_(20)
        clock.pass_(2)
    assert taken(phases) == {Phase.WEIGHTS: 3, Phase.COMM: 30, Phase.IDLE: 100}


def test_time_in_no_phase_is_the_updates(clock):
    phases = Phases()
    clock.pass_(1)
    with phases(Phase.ROLLOUTS):
        clock.pass_(10)
    clock.pass_(2)
    with phases(Phase.UPDATE):
        clock.pass_(4)
    assert taken(phases) == {Phase.UPDATE: 7, Phase.ROLLOUTS: 10}


def test_a_phase_inside_itself_is_counted_once(clock):
    phases = Phases()
    with phases(Phase.COMM), phases(Phase.COMM):
        clock.pass_(5)
    assert taken(phases) == {Phase.COMM: 5}


def test_a_phase_that_ends_with_an_error_ends(clock):
    phases = Phases()

    def fail():
        with phases(Phase.WEIGHTS), phases(Phase.COMM):
            clock.pass_(3)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    clock.pass_(4)
    assert taken(phases) == {Phase.COMM: 3, Phase.UPDATE: 4}


def test_what_is_taken_is_gone(clock):
    """And it may be taken inside a phase, which goes on."""
    phases = Phases()
    with phases(Phase.ROLLOUTS):
        clock.pass_(1)
        assert taken(phases) == {Phase.ROLLOUTS: 1}
        clock.pass_(2)
    clock.pass_(8)
    first = phases.take()
    assert first[Phase.ROLLOUTS] == 2
    assert first[Phase.UPDATE] == 8
    assert taken(phases) == {}
    assert list(first) == list(Phase), "every phase is there, in their order, for ranks to add them up"
    clock.pass_(1)
    assert first[Phase.UPDATE] == 8, "what was taken does not change any more"


def test_any_nesting_adds_up(clock):
    """A random tree of phases and pauses, against a plain stack."""
    rng = np.random.default_rng(1)
    phases, expected = Phases(), dict.fromkeys(Phase, 0.0)

    def visit(phase, depth):
        for _ in range(rng.integers(1, 5)):
            seconds = int(rng.integers(1, 100))
            clock.pass_(seconds)
            expected[phase] += seconds
            if depth < 5 and rng.random() < 0.6:
                inner = list(Phase)[rng.integers(len(Phase))]
                with phases(inner):
                    visit(inner, depth + 1)

    start = clock.now
    for _ in range(20):
        visit(Phase.UPDATE, 0)
    found = phases.take()
    assert found == expected
    assert sum(found.values()) == clock.now - start


def test_every_phase_is_a_column():
    """Its name makes the column, and its meaning says what the column holds."""
    times = [name for name in TABLES["iterations"] if name.startswith("time_")]
    assert times == [f"time_{phase}" for phase in Phase]
    for phase in Phase:
        column = TABLES["iterations"][f"time_{phase}"]
        assert column.units == "s"
        assert column.long_name.startswith(phase.meaning)
        assert phase.label


# -- the real clock, over whole iterations -------------------------------------------------------------------


class SlowGroup:
    """The group of one rank whose exchanges take a while."""

    def __init__(self, world, seconds):
        self.rank, self.size, self.slice = world.rank, world.size, world.slice
        self._world, self._seconds = world, seconds

    def sum_integers(self, values):
        time.sleep(self._seconds)
        self._world.sum_integers(values)

    def maximum(self, value):
        time.sleep(self._seconds)
        return self._world.maximum(value)


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((111, 512, 512, 8), {"iw_updates": 3, "obs_stat_probability": 1.0}),
        ((111, 512, 512, 8), {"iw_updates": 3, "clip": np.inf, "center": True, "n_pairs": 12}),
        ((111, 64, 64, 8), {"iw_updates": 3, "obs_stat_probability": 1.0, "n_pairs": 200, "optimizer": "sgd"}),
        ((376, 64, 64, 17), {"iw_updates": 0, "obs_stat_probability": 1.0, "min_env_steps": 2000, "l2": 0.1}),
        ((5, 7, 3), {"iw_updates": 20, "n_pairs": 500, "weight_kernel": "precomputed"}),
    ],
    ids=["512 units, all observed", "two passes, centered", "sgd, many pairs", "several blocks", "small"],
)
def test_phases_of_an_iteration_add_up_to_its_time(world, noise, sizes, settings):
    """Within 1 % of a clock around it. What is left over is the exchange of these very times."""
    run, _ = build(world, noise, rugged, sizes, **{"learning_rate": 1e-4, **settings})
    run.iterate()  # compiles
    shares = []
    for _ in range(3):
        begin = time.perf_counter()
        run.phases.take()
        report = run.iterate()
        elapsed = time.perf_counter() - begin
        row = rows_of(report).iteration
        times = [getattr(row, f"time_{phase}") for phase in Phase]
        assert all(seconds >= 0 for seconds in times)
        assert row.updates == 1 + settings["iw_updates"]
        shares.append(sum(times) / elapsed)
    assert max(shares) < 1.000_01
    assert sorted(shares)[1] > 0.99, shares  # the median: a machine that is busy elsewhere may stop us in between


def test_time_goes_to_the_phase_that_spends_it(world, noise):
    """Known pauses: in episodes, between ranks, and in the exchange of sums inside the weights."""

    def objective(theta, rng):
        time.sleep(0.002)
        return rugged(theta, rng)

    run, _ = build(world, noise, objective, iw_updates=2, learning_rate=1e-3, clip=np.inf)
    run.iterate()  # compiles
    run.phases.take()
    slow = SlowGroup(world, 0.05)
    run.learner._updater._estimator._group = slow
    for sums in run.learner._updater._estimator._sums.values():
        sums._group = slow
    with run.phases(Phase.IO):
        time.sleep(0.04)
    seconds = run.iterate().seconds
    assert 62 * 0.002 <= seconds[Phase.ROLLOUTS] < 62 * 0.002 + 0.4
    # Three sums, and the largest weight at each of the two updates away from the center.
    assert 5 * 0.05 <= seconds[Phase.COMM] < 5 * 0.05 + 0.4
    assert 0.04 <= seconds[Phase.IO] < 0.4
    assert seconds[Phase.WEIGHTS] < 0.2, "waiting for other ranks is not computing"
