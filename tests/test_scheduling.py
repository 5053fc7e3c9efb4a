"""Who gets which work, with a reserve and without; the logged idle time is the time that ranks wait; the model."""

import importlib
import json
import math
from pathlib import Path

import launch
import numpy as np
import pytest

from iwes_mpi import open_run
from iwes_mpi.method.es import tendency
from iwes_mpi.mpi.queue import Choice

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ROUNDS = [[3, 20], [0, 7], [30, 0], [1, 1], [0, 0], [5, 40]]
NEVER = 99  # more ranks than any test has: no reserve


def probe(ranks: int, schedule: str, reserve_from: int, event: str = "nothing") -> launch.Outcome:
    """Hand out all rounds on two nodes."""
    arguments = (schedule, str(reserve_from), event, *(json.dumps([0, *lengths]) for lengths in ROUNDS))
    return launch.program(ranks, "queue_probe.py", *arguments, MPIR_CVAR_NUM_CLIQUES="2")


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("schedule", "reserve_from", "ranks"),
    [
        ("static", NEVER, 1), ("static", NEVER, 3), ("static", NEVER, 6), ("dynamic", NEVER, 3),
        ("dynamic", NEVER, 6), ("dynamic", 2, 1), ("dynamic", 2, 2), ("dynamic", 2, 3), ("dynamic", 2, 4),
    ],
)  # fmt: skip
def test_every_item_is_handed_out_once(schedule: str, reserve_from: int, ranks: int) -> None:
    outcome = probe(ranks, schedule, reserve_from)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    for number, lengths in enumerate(ROUNDS):
        items = sorted((which, i) for _, taken in found for _, which, i in taken[number])
        assert items == [(which, i) for which, length in enumerate(lengths) for i in range(length)]
        for _, taken in found:
            assert taken[number] == sorted(taken[number], key=lambda item: item[1:]), (
                "the first list's items come first"
            )
    sizes = {node: sum(of == node for of, _ in found) for node, _ in found}
    if schedule == "dynamic" and len(sizes) == 2:
        own = (
            math.ceil(0.75 * 45) if reserve_from <= ranks else 45
        )  # of the last round's items, one by one to all ranks
        by_item = {5 * which + i: node for node, taken in found for _, which, i in taken[-1]}
        positions = [node for node in sorted(sizes) for _ in range(sizes[node])]
        assert [by_item[item] for item in range(own)] == [positions[item % ranks] for item in range(own)]


@pytest.mark.mpi
@pytest.mark.parametrize(("nodes", "ranks"), [(1, 3), (2, 4)])
def test_second_members_come_by_how_long_the_first_lasted(nodes: int, ranks: int) -> None:
    rounds = [[-1, 3, 120], [1, 0, 120], [0, 5, 20], [-1, 1, 2], [1, 2, 0]]
    arguments = ("dynamic", "2", "nothing", *map(json.dumps, rounds))
    outcome = launch.program(ranks, "queue_probe.py", *arguments, MPIR_CVAR_NUM_CLIQUES=str(nodes))
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    for number, (sign, *lengths) in enumerate(rounds):
        items = [(which, i) for _, taken in found for _, which, i in taken[number]]
        assert sorted(items) == [(which, i) for which, length in enumerate(lengths) for i in range(length)]
        if not sign:
            continue
        for _, taken in found:
            order = [(which, i % 2 if which else 0) for _, which, i in taken[number]]
            assert order == sorted(order), "first members come before second ones"
        begun = sorted((when, i // 2) for _, taken in found for when, which, i in taken[number] if which and i % 2)
        firsts = [sign * (1 + 37 * pair % 101) for _, pair in begun]
        half = len(firsts) // 2
        if half > 5:  # in order but for what was not known yet, and for ranks that take items at the same time
            assert np.mean(firsts[:half]) > np.mean(firsts[half:]) + 5


def test_what_is_left_is_chosen_by_what_is_known() -> None:
    choice = Choice(10, 4, -1)
    choice.learn(np.array([1, 3]), np.array([7, 5]))
    assert choice.take(2).tolist() == [13, 11], "short firsts first; those that still run are long"
    choice.learn(np.array([2]), np.array([900]))
    assert choice.take(2).tolist() == [12]
    assert [choice.take(2).tolist() for _ in range(2)] == [[10], []]
    choice = Choice(10, 4, 1)
    choice.learn(np.array([1, 3]), np.array([7, 5]))
    choice.drop(np.array([10]))
    assert choice.take(1).tolist() == [12, 11, 13]
    assert Choice(10, 4, None).take(2).tolist() == [10, 11], "as they come"


def test_how_lengths_of_pairs_hang_together() -> None:
    rng = np.random.default_rng(0)
    first, noise = rng.exponential(100, (2, 400))
    assert tendency(np.stack([first, first + noise], axis=1)) == 1
    assert tendency(np.stack([first, noise - first], axis=1)) == -1
    assert tendency(np.full((400, 2), 1000)) == 0, "all alike"
    assert tendency(np.empty((0, 2), np.int64)) == 0, "none"
    unrelated = [tendency(rng.exponential(100, (400, 2))) != 0 for _ in range(200)]
    assert 0.01 < np.mean(unrelated) < 0.1, "two standard deviations: 0.046"


@pytest.mark.mpi
def test_a_stop_ends_the_queue_soon_and_on_all_ranks() -> None:
    outcome = probe(4, "dynamic", 2, "stop")  # while the last rank works on its first item of the third round
    assert outcome.code == 0, outcome.err
    assert "not matched" not in outcome.out + outcome.err, "messages were left under way"
    for _, taken in json.loads(outcome.out):
        assert len(taken[2]) < 15
        assert taken[3:] == [[], [], []]


@pytest.mark.mpi
def test_a_rank_that_fails_ends_those_that_wait_for_the_reserve() -> None:
    outcome = probe(4, "dynamic", 2, "fail")
    assert outcome.code != 0
    assert "this rank fails" in outcome.err


@pytest.mark.mpi
def test_a_reserve_changes_no_bit(tmp_path: Path) -> None:
    digests = []
    for ranks in (1, 4):  # alone there is none
        run_dir = tmp_path / str(ranks)
        outcome = launch.program(
            ranks, "with_reserve.py", *launch.SMALL, "--run-dir", str(run_dir), MPIR_CVAR_NUM_CLIQUES="2"
        )
        assert outcome.code == 0, outcome.err
        digests.append(open_run(run_dir).iterations["theta_digest"].tolist())
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


@pytest.mark.mpi
@pytest.mark.parametrize("schedule", ["dynamic", "static"])
def test_idle_time_is_the_time_ranks_wait(schedule: str, tmp_path: Path) -> None:
    """Against the waiting that follows from how long each rank's episodes took, with other known delays on rank 0."""
    ranks, iterations, estimate_takes, row_takes = 3, 3, 0.25, 0.15
    outcome = launch.program(
        ranks, "idle_probe.py", str(estimate_takes), str(row_takes),
        *("--env-id", "sleeper:Sleeper-v0", "--env-kwargs", '{"unit": 0.0006}', "--n-pairs", "6", "--n-eval", "1"),
        *("--eval-every", "1", "--min-env-steps", "0", "--iterations", str(iterations), "--noise-table-size", "100000"),
        *("--schedule", schedule, "--weights-on", "root", "--iw-updates", "1", "--run-dir", str(tmp_path / "run")),
        PYTHONPATH=launch.python_path(BENCHMARKS), timeout=200,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    busy = np.array([json.loads(line) for line in outcome.out.splitlines() if line.startswith("[")])
    assert busy.shape == (iterations, ranks)
    others = (ranks - 1) / ranks  # rank 0 does not wait for what only it does
    expected = (busy.max(axis=1, keepdims=True) - busy).mean(axis=1) + others * 2 * estimate_takes
    expected[1:] += others * row_takes
    table = open_run(tmp_path / "run").iterations
    np.testing.assert_allclose(table["time_idle"].sum(), expected.sum(), rtol=0.1, atol=0.1)
    np.testing.assert_allclose(table["time_rollouts"].sum(), busy.mean(axis=1).sum(), rtol=0.05, atol=0.1)
    # No time is left out: the phases add up to the wall clock (estimates and rows were slow outside the phases' sight)
    unseen = (2 * estimate_takes + row_takes) / ranks
    phases = table.filter(like="time_").sum(axis=1).to_numpy()[1:] + unseen
    np.testing.assert_allclose(phases.sum(), np.diff(table["wall_time"]).sum(), rtol=0.1, atol=0.15)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/model.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("model")


def test_the_model_hands_out_work_as_slices_or_to_whoever_is_free(model) -> None:
    population = np.array([[3.0, 1.0], [1.0, 1.0], [5.0, 2.0]])
    evaluation = np.array([2.0, 4.0])
    assert model.spans(population, evaluation, 2, 48, "static").tolist() == [2 + 5, 4 + 8]
    # Free at (2, 4); 3 → 5, 1 → 5, then 1 and 1 → 6, 6, then 5 and 2 → 11, 8
    assert sorted(model.spans(population, evaluation, 2, 48, "dynamic").tolist()) == [8, 11]
    # Pairs of 4, 2, 7: free at (2, 4) → 6, 6, 13
    assert sorted(model.spans(population, evaluation, 2, 48, "pairs").tolist()) == [6, 13]
    assert model.spans(population, evaluation, 2, 1, "dynamic").tolist() == [2 + 3 + 1 + 5, 4 + 1 + 1 + 2], "by turns"


def test_the_model_in_its_limits(model) -> None:
    rng = np.random.default_rng(0)
    work = model.Workload(rng.exponential(200, (5, 5040, 2)), 30, 1e-3, weights=1e-5, update=1e-3, io=0.01, d=11_848)
    free = model.Machine(latency=0.0, bandwidth=1e30, memory_bandwidth=1e30)
    one = model.predict(work, free, 1)
    assert one.efficiency == pytest.approx(1.0)
    assert one.time == pytest.approx(work.lengths.mean() * 1e-3 * 10_110 + 5040e-5 + 0.011, rel=1e-3)
    slow = model.Machine(latency=1.0, bandwidth=1e30, memory_bandwidth=1e30)
    rounds = 10  # of 720 ranks; Bcast, and per Allreduce two: returns, statistics, gradient, four agreements
    assert model.predict(work, slow, 720).comm == pytest.approx(rounds + 7 * 2 * rounds)
    root = model.predict(work, free, 720, weights_on="root", iw_updates=5)
    node = model.predict(work, free, 720, weights_on="node", iw_updates=5)
    everywhere = model.predict(work, free, 720, weights_on="all", iw_updates=5)
    assert root.weights == pytest.approx(48 * node.weights)
    assert node.weights == pytest.approx(15 * everywhere.weights)
    assert model.predict(work, free, 720, "static").efficiency < everywhere.efficiency
    crowd = model.predict(work, free, 100_000, repeats=1)
    assert crowd.rollouts + crowd.idle >= 1e-3 * work.lengths[0].max()
    assert crowd.efficiency == pytest.approx(one.time / (100_000 * crowd.time), rel=0.1)


def test_the_model_has_nodes_ask_for_more(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.queue, "FEWEST_RANKS", 4)
    # Items 0, 2 are node 0's, 1, 3, 5 node 1's by turns of 4 ranks: 0 1 | 2 3; the last two of eight are the reserve
    population = np.array([[8.0, 8.0], [1.0, 1.0], [8.0, 8.0], [2.0, 2.0]])
    busy = model.spans(population, np.zeros(0), 4, 2, "dynamic")
    # Node 1's ranks are free at 1 and 1, ask, and run both of the reserve; rank 0 takes one of node 0's four
    assert busy.sum() == population.sum()
    assert sorted(busy[2:]) == [3.0, 3.0]
    assert sorted(busy[:2]) == [16.0, 16.0]


def test_queues_of_episodes_keep_720_ranks_busy(model) -> None:
    """The figures that decided for single episodes and a reserve, halfway through learning and early."""
    for kind, expected in (("mixed", (0.82, 0.89, 0.927)), ("early", (0.68, 0.765, 0.78))):
        work = model.simulated(kind, 5040, 0)
        found = [work.busy_share(720, schedule, 48, repeats=10) for schedule in ("pairs", "nodes", "dynamic")]
        assert found == pytest.approx(expected, abs=0.01)
        assert found[-1] == pytest.approx(work.busy_share(720, "nodes", 720, repeats=10), abs=0.01), "as one queue"
