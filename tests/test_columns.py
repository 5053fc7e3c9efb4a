"""Columns: one declaration makes what is written, its description in the file, and what is read."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from committed import SLIM_TABLES
from fakes import build, rugged

from iwes_mpi.files import checkpoint, columns, reader
from iwes_mpi.files.checkpoint import Checkpoint
from iwes_mpi.files.columns import TABLES, IterationRow, UpdateRow, rows_of
from iwes_mpi.files.log import FORMAT, LOG, LogWriter
from iwes_mpi.files.reader import read_table
from iwes_mpi.files.run import open_run
from iwes_mpi.method.estimator import Estimate
from iwes_mpi.method.phases import Phase
from iwes_mpi.method.report import Population, Report, Update

DATA = Path(__file__).parents[1] / "analysis" / "data"


def report(iteration=4, **changes):
    """What an iteration might have done: two pairs and three evaluation episodes, one of each invalid."""
    population = Population(
        starts=np.array([3, 9]),
        returns=np.array([[1.0, 4.0], [np.nan, 10.0]]),
        lengths=np.array([[5, 6], [1, 8]]),
        observed=np.zeros((0, 3)),
        eval_returns=np.array([2.0, -np.inf, 8.0]),
        eval_lengths=np.array([1, 2, 3]),
        ran=np.ones((2, 2), dtype=bool),
    )
    updates = [
        Update(iteration, 0, 0.0, Estimate(np.ones(2), 1.0, 1.0, 1.0, 0.25), 0.5, 0.125, True),
        Update(iteration, 1, 2.5, Estimate(None, 0.0, 0.5, 0.75, 0.125), np.nan, 0.0, False),
    ]
    facts = {
        "iteration": iteration, "env_steps": 100, "episodes": 20, "population": population, "updates": updates,
        "sigma": 0.02, "update_norm": 0.1, "theta_norm": 3.0, "theta_digest": 2**64 - 1, "ranks": 6,
        "eval_env_steps": 60, "episode_cap": 8, "returns": population.returns, "kept_samples": 0.25,
        "seconds": {phase: 1.5 + i for i, phase in enumerate(Phase)}, "wall_time": 77.0,
    }  # fmt: skip
    return Report(**(facts | changes))


# -- values --------------------------------------------------------------------------------------------------


def test_rows_tell_what_an_iteration_did():
    """Every column of both tables, worked out by hand."""
    row, updates = rows_of(report())
    assert dataclasses.asdict(row) == {
        "iteration": 4, "env_steps": 100, "episodes": 20, "wall_time": 77.0,
        "eval_env_steps": 60, "episode_cap": 8, "kept_samples": 0.25,
        "return_mean": 5.0, "return_std": math.sqrt(14), "return_median": 4.0, "return_min": 1.0, "return_max": 10.0,
        "episode_length_mean": 5.0, "eval_return_median": 5.0, "eval_return_mean": 5.0, "eval_return_std": 3.0,
        "eval_episodes": 2, "grad_norm": 0.5, "update_norm": 0.1, "theta_norm": 3.0, "sigma": 0.02, "updates": 1,
        "theta_digest": 2**64 - 1, "time_rollouts": 1.5, "time_idle": 2.5, "time_weights": 3.5, "time_comm": 4.5,
        "time_update": 5.5, "time_io": 6.5, "invalid_episodes": 2, "ranks": 6,
    }  # fmt: skip
    assert dataclasses.asdict(updates[0]) == {
        "iteration": 4, "k": 0, "ess": 1.0, "kl": 0.0, "mean_weight": 1.0, "max_weight": 1.0, "clipped_share": 0.25,
        "grad_norm": 0.5, "update_norm": 0.125, "accepted": 1, "stop": 0,
    }  # fmt: skip
    assert math.isnan(updates[1].grad_norm)
    assert (updates[1].k, updates[1].ess, updates[1].kl, updates[1].accepted) == (1, 0, 2.5, 0)
    assert rows_of(report()).smallest_ess == 0


def test_rows_of_an_iteration_without_anything_valid():
    empty = report().population._replace(
        returns=np.full((2, 2), np.nan), eval_returns=np.zeros(0), eval_lengths=np.zeros(0, dtype=np.int64)
    )
    row, updates = rows_of(report(population=empty, returns=empty.returns, updates=[]))
    for name in ("mean", "std", "median", "min", "max"):
        assert math.isnan(getattr(row, f"return_{name}"))
    assert math.isnan(row.eval_return_median)
    assert math.isnan(row.grad_norm)
    assert (row.eval_episodes, row.updates, row.invalid_episodes) == (0, 0, 4)
    assert updates == []
    assert math.isnan(rows_of(report(updates=[])).smallest_ess)


def test_an_update_that_a_rule_ended_before_its_estimate():
    (update,) = rows_of(report(updates=[Update(4, 1, 99.0)])).updates
    assert update.kl == 99
    assert all(math.isnan(x) for x in (update.ess, update.mean_weight, update.max_weight, update.clipped_share))
    assert (update.accepted, update.update_norm) == (0, 0)


# -- one declaration -----------------------------------------------------------------------------------------


def written(path, reports, tables=None):
    """A log of some reports; returns its path and its writer's tables."""
    log = LogWriter(path, {"format": FORMAT}, tables)
    for made in reports:
        log.append(rows_of(made))
    found = log.tables()
    log.close()
    return found


@pytest.mark.parametrize(("table", "row"), [("iterations", IterationRow), ("updates", UpdateRow)])
def test_producer_file_and_reader_have_the_same_columns(tmp_path, table, row):
    """The fields of the row, in their order; each with unit and meaning in the file, and its type when read."""
    names = [field.name for field in dataclasses.fields(row)]
    assert list(TABLES[table]) == names
    written(tmp_path / LOG, [report(0), report(1)])
    with h5py.File(tmp_path / LOG) as file:
        assert set(file[table]) == set(names)
        for name, column in TABLES[table].items():
            assert file[table][name].dtype == column.dtype
            assert file[table][name].attrs["units"] == column.units != ""
            assert file[table][name].attrs["long_name"] == column.long_name != ""
            blank = file[table][name].fillvalue
            assert blank == column.blank or (math.isnan(blank) and math.isnan(column.blank))
    frame = read_table(tmp_path / LOG, table)
    assert list(frame.columns) == names
    produced = [rows_of(made) for made in (report(0), report(1))]
    expected = [r.iteration for r in produced] if table == "iterations" else [u for r in produced for u in r.updates]
    for name, column in TABLES[table].items():
        assert frame[name].dtype == column.dtype
        values = np.array([getattr(r, name) for r in expected], dtype=column.dtype)
        assert frame[name].to_numpy().tobytes() == values.tobytes()


@pytest.mark.parametrize(("dtype", "blank"), [("f8", math.nan), ("i8", -1), ("u8", 0), ("u1", 0)])
def test_blanks(dtype, blank):
    column = columns.Column(dtype, "1", "what it is")
    found = column.blanks(3)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.full(3, blank, dtype=dtype))


# -- a column that is added ----------------------------------------------------------------------------------


@pytest.fixture
def wider(monkeypatch):
    """Columns of each kind are added: nothing is done but to declare their fields."""

    @dataclass(frozen=True)
    class WiderIteration(IterationRow):
        return_range: float = columns._column(
            "return", "largest less smallest return", lambda r: float(np.ptp(r.population.returns[:1]))
        )
        samples: int = columns._count("episodes", "samples of the iteration", lambda r: r.population.returns.size)
        flag: int = columns._column("1", "a flag", lambda r: 1, "u1")

    @dataclass(frozen=True)
    class WiderUpdate(UpdateRow):
        nats: float = columns._column("nats", "twice the KL divergence", lambda u: 2 * u.kl)

    monkeypatch.setattr(columns, "IterationRow", WiderIteration)
    monkeypatch.setattr(columns, "UpdateRow", WiderUpdate)
    monkeypatch.setitem(TABLES, "iterations", columns._columns(WiderIteration))
    monkeypatch.setitem(TABLES, "updates", columns._columns(WiderUpdate))


def test_a_column_that_is_added_is_written_and_read(tmp_path, wider, world, noise):
    """By a real iteration too."""
    run, _ = build(world, noise, rugged, iw_updates=2, learning_rate=0.01)
    made = [report(0), dataclasses.replace(run.iterate(), iteration=1)]
    written(tmp_path / LOG, made)
    frame = read_table(tmp_path / LOG, "iterations")
    assert frame["return_range"].tolist() == [3.0, np.ptp(made[1].population.returns[:1])]
    assert frame["samples"].tolist() == [4, 60]
    assert frame["flag"].tolist() == [1, 1]
    updates = read_table(tmp_path / LOG, "updates")
    assert updates["nats"].tolist() == (2 * updates["kl"]).tolist()
    with h5py.File(tmp_path / LOG) as file:
        assert file["iterations/samples"].attrs["long_name"] == "samples of the iteration"
        assert file["iterations/samples"].attrs["units"] == "episodes"


def narrow_log(path):
    """A log and its tables from before the columns were added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "IterationRow", IterationRow)
        patch.setattr(columns, "UpdateRow", UpdateRow)
        patch.setitem(TABLES, "iterations", columns._columns(IterationRow))
        patch.setitem(TABLES, "updates", columns._columns(UpdateRow))
        return written(path, [report(0), report(1)])


def assert_blank(frames):
    iterations, updates = frames
    assert np.isnan(iterations["return_range"]).all()
    assert (iterations["samples"] == -1).all()
    assert (iterations["flag"] == 0).all()
    assert np.isnan(updates["nats"]).all()
    assert iterations["samples"].dtype == np.int64
    assert iterations["return_mean"].tolist() == [5, 5]


def test_a_log_without_the_column_reads_blank(tmp_path, wider):
    narrow_log(tmp_path / LOG)
    assert_blank([read_table(tmp_path / LOG, table) for table in ("iterations", "updates")])


def test_a_checkpoint_without_the_column_goes_on_with_it(tmp_path, wider, world, noise):
    """Its rows have blanks there, also once they are in a new log; rows to come have values."""
    tables = narrow_log(tmp_path / LOG)
    run, _ = build(world, noise, rugged)
    (tmp_path / checkpoint.CURRENT).write_bytes(
        checkpoint.encode(Checkpoint(run.state, run.config, {"format": FORMAT}, tables))
    )
    found = checkpoint.load_newest(tmp_path)
    assert "samples" not in found.tables["iterations"]
    widened = written(tmp_path / LOG, [report(2)], found.tables)
    frames = [read_table(tmp_path / LOG, table) for table in ("iterations", "updates")]
    assert_blank([frames[0][:2], frames[1][:4]])
    assert frames[0]["samples"].tolist() == [-1, -1, 4]
    assert frames[0]["return_range"].tolist()[2:] == [3.0]
    assert frames[1]["nats"].tolist()[4:] == [0.0, 5.0]
    assert widened["iterations"]["samples"].tolist() == [-1, -1, 4], "and the next checkpoint has them"


def test_a_column_that_is_gone_is_passed_over(tmp_path, wider):
    """A log or checkpoint with more columns than there are now."""
    tables = written(tmp_path / LOG, [report(0)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, "iterations", columns._columns(IterationRow))
        patch.setitem(TABLES, "updates", columns._columns(UpdateRow))
        assert list(read_table(tmp_path / LOG, "iterations").columns) == list(TABLES["iterations"])
        again = written(tmp_path / "other.h5", [], tables)
        assert set(again["iterations"]) == set(TABLES["iterations"])
        assert again["iterations"]["return_mean"].tolist() == [5]


LOGS = sorted(DATA.rglob(LOG))


def test_committed_logs_open_after_a_column_is_added(wider):
    """All of them, with their values in the old columns and blanks in the new."""
    assert len(LOGS) > 10
    for path in LOGS:
        run = open_run(path.parent)
        assert run.config is not None
        iterations, updates = run.iterations, run.updates
        assert list(iterations.columns) == list(TABLES["iterations"])
        assert len(iterations) > 0
        assert iterations["iteration"].tolist() == list(range(len(iterations)))
        with h5py.File(path) as file:
            for name in ("env_steps", "return_mean", "theta_digest", "sigma", "updates"):
                if name not in file["iterations"]:  # a log that keeps the steps and evaluations alone
                    assert path.parent.parent.name in SLIM_TABLES
                    continue
                assert (iterations[name] == file["iterations"][name][: len(iterations)]).all()
        assert (iterations["samples"] == -1).all()
        assert np.isnan(updates["nats"]).all()
        if path.parent.parent.name not in SLIM_TABLES:
            assert updates["accepted"].sum() == iterations["updates"].sum()


def test_without_an_iteration_column_there_is_no_row(tmp_path):
    """`iteration` is what makes a row complete."""
    written(tmp_path / LOG, [report(0), report(1)])
    with h5py.File(tmp_path / LOG, "r+") as file:
        file["iterations/iteration"][1] = -1
    assert len(read_table(tmp_path / LOG, "iterations")) == 1
    assert reader.read_table(tmp_path / LOG, "updates")["iteration"].tolist() == [0, 0, 1, 1]
