"""Checkpoints are written as often as they are cheap, by a clock that the test turns."""

import pytest

from iwes_mpi.files.pace import SHARE, Pace


def simulate(pace: Pace, iterations: int, seconds: float, cost: float, begin: float = 0.0) -> tuple[list[int], float]:
    """Iterations of so many seconds, and checkpoints of `cost` seconds: after which there is one, and when all ends."""
    clock, written = begin, []
    for iteration in range(1, iterations + 1):
        clock += seconds
        if pace.due(iteration, clock):
            pace.wrote(clock, clock + cost)
            clock += cost
            written.append(iteration)
    return written, clock


def test_a_cheap_one_follows_every_iteration() -> None:
    written, _ = simulate(Pace(0, 300, 0), 50, seconds=1.0, cost=0.0099)
    assert written == list(range(1, 51))


@pytest.mark.parametrize("seconds", [0.003, 0.1, 0.7])
def test_they_cost_no_more_than_their_share(seconds: float) -> None:
    """And hardly less, once the first has shown what they cost."""
    cost = 0.1
    written, _ = simulate(Pace(0, 1e9, 0), 20_000, seconds, cost)
    assert len(written) > 5
    writing = (len(written) - 1) * cost
    assert 0.9 * SHARE < writing / (writing + seconds * (written[-1] - written[0])) <= SHARE


def test_a_dear_one_is_written_in_time_all_the_same() -> None:
    written, _ = simulate(Pace(0, 300, 0), 100, seconds=20.0, cost=30.0)
    assert written == [1, *range(16, 101, 15)]


def test_the_cost_is_followed_when_it_changes() -> None:
    """One slow write, as of a busy disk, is soon forgotten; a file that grows is written less often."""
    pace = Pace(0, 1e9, 0)
    pace.wrote(0, 0.01)
    pace.wrote(0, 1.0)
    first, _ = simulate(pace, 1000, seconds=1.0, cost=0.009)
    assert first[0] > 30
    assert first[-100:] == list(range(901, 1001))
    pace = Pace(0, 1e9, 0)
    _, end = simulate(pace, 1000, seconds=1.0, cost=0.01)
    grown, _ = simulate(pace, 1000, seconds=1.0, cost=0.05, begin=end)
    assert grown[-1] - grown[-2] == 5


@pytest.mark.parametrize("cost", [0.0, 50.0])
def test_a_number_of_iterations_is_kept_to(cost: float) -> None:
    written, _ = simulate(Pace(7, 1e9, 0), 30, seconds=1.0, cost=cost)
    assert written == [7, 14, 21, 28]
