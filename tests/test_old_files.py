"""Files of earlier versions: their checkpoints resume to the same bits, and every committed log opens.

Results on record are kept and compared as in test_golden.py, which see for ``IWES_RECORD_GOLDEN``.
"""

import gzip
import json
import os
import shutil

import golden_record
import numpy as np
import pytest
from committed import SLIM_TABLES
from golden_runs import COLD, OLD, PACKAGE, run_all

# -- the package's modules: the only place of this file that names them --------------------------------------
from iwes_mpi import open_run
from iwes_mpi.files.columns import TABLES

# ------------------------------------------------------------------------------------------------------------

CHECKPOINTS = golden_record.FOLDER.parent / "checkpoint-v1"
DATA = PACKAGE / "analysis" / "data"
LOGS = sorted(log for log in DATA.glob("*/*/log.h5") if log.parent.parent.name not in SLIM_TABLES)


def unpack(name, target):
    """A copy of an old run, as its version left it."""
    shutil.copytree(CHECKPOINTS / name, target)
    (target / "log.h5").write_bytes(gzip.decompress((target / "log.h5.gz").read_bytes()))
    (target / "log.h5.gz").unlink()
    return target


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """What came of resuming each old run to four iterations on two ranks, by name."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "runs").mkdir()
    for name in OLD:
        unpack(name, folder / "runs" / name)
    flags = ["--resume", "--iterations", "4", "--display", "none"]
    return run_all(2, {name: [flags] for name in OLD}, folder)


def digests(run):
    return [f"{digest:016x}" for digest in run.iterations["theta_digest"]]


@pytest.mark.mpi
@pytest.mark.timeout(COLD + 60)
@pytest.mark.parametrize("name", OLD)
def test_an_old_checkpoint_resumes_to_the_same_bits(name, resumed, tmp_path):
    """The bits of the run left alone; but on a machine that makes other bits of it, those on record for resuming it."""
    found, before = resumed[name], digests(open_run(unpack(name, tmp_path / "run")))
    assert len(before) == 2
    assert found["theta_digest"][:2] == before
    assert len(set(found["theta_digest"])) == 4
    whole, mine = f"checkpoint-v1, {name}", f"checkpoint-v1, {name}, resumed"
    record = golden_record.load() or {}
    if mine not in record and golden_record.recording():
        golden_record.add({mine: found})
        record = golden_record.load()
    if mine not in record or whole not in record:
        text = golden_record.missing([mine])
        if golden_record.path().exists() or os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    changed = golden_record.differences({mine: found}, record)
    assert not changed, golden_record.report(changed)
    if record[whole]["theta_digest"][:2] == before:
        assert found == record[whole]


def test_some_record_is_of_the_machine_that_wrote_them(tmp_path):
    """Else the test above would compare with no run that was left alone."""
    records = [json.loads(path.read_text())["results"] for path in golden_record.everywhere()]
    for name in OLD:
        before = digests(open_run(unpack(name, tmp_path / name)))
        assert any(record[f"checkpoint-v1, {name}"]["theta_digest"][:2] == before for record in records)


@pytest.mark.parametrize("name", OLD)
def test_an_old_run_opens(name, tmp_path):
    """What its log and checkpoint hold, without going on with it."""
    run = open_run(unpack(name, tmp_path / "run"))
    state = run.checkpoint.state
    assert state.iteration == len(run.iterations) == 2
    assert state.env_steps == run.iterations["env_steps"].iloc[-1]
    assert run.config.optimizer == name
    assert state.optimizer.step == run.updates["accepted"].sum() == run.iterations["updates"].sum()
    assert run.theta.dtype == np.float64
    for table, frame in (("iterations", run.iterations), ("updates", run.updates)):
        held = run.checkpoint.tables[table]
        assert set(frame) >= set(held), "columns that came later read blank"
        for column, values in held.items():
            assert frame[column].to_numpy().tobytes() == values.astype(frame[column].dtype).tobytes(), column
    assert run.updates["k"].max() == run.config.iw_updates
    assert state.optimizer._fields == (("step", "m", "v") if name == "adam" else ("step", "velocity"))


# The columns that the first version wrote, and no later one may forget. What is added since reads blank in old logs.
COLUMNS = {
    "iterations": "iteration env_steps episodes wall_time return_mean return_std return_median return_min return_max "
    "episode_length_mean eval_return_median eval_return_mean eval_return_std eval_episodes grad_norm update_norm "
    "theta_norm sigma updates theta_digest time_rollouts time_idle time_weights time_comm time_update time_io "
    "invalid_episodes ranks",
    "updates": "iteration k ess kl mean_weight max_weight clipped_share grad_norm update_norm accepted",
}
# Those of the logs that `analysis/collect.py --slim` left; the others read blank.
SLIM = {
    "iterations": "iteration env_steps eval_env_steps episode_cap wall_time eval_return_mean eval_episodes updates "
    "ranks",
    "updates": "",
}


def test_every_committed_log_opens():
    assert len(LOGS) > 150
    for log in LOGS:
        run, slim = open_run(log.parent), log.parent.parent.name in SLIM_TABLES
        for table, frame in (("iterations", run.iterations), ("updates", run.updates)):
            assert set(COLUMNS[table].split()) <= set(frame), log
            assert set(frame) == set(TABLES[table]), log
            assert (len(frame) > 0) == (table == "iterations" or not slim), log
            for column in COLUMNS[table].split():
                assert frame[column].dtype.newbyteorder("=") == np.dtype(TABLES[table][column].dtype), (log, column)
            for column in (SLIM if slim else COLUMNS)[table].split():
                assert not frame[column].isna().all() or column.startswith("eval_"), (log, column)
        rows, updates = run.iterations, run.updates
        assert (rows["iteration"] == np.arange(len(rows))).all(), log
        assert (rows["env_steps"].diff().dropna() > 0).all(), log
        assert run.attrs["seed"] == run.config.seed, log
        assert 1 <= rows["updates"].min() <= rows["updates"].max() <= 1 + run.config.iw_updates, log
        if slim:
            assert rows["eval_env_steps"].is_monotonic_increasing, log
            assert np.isfinite(rows["eval_return_mean"][rows["eval_episodes"] > 0]).all(), log
            continue
        assert updates["accepted"].groupby(updates["iteration"]).sum().tolist() == rows["updates"].tolist(), log
        assert rows["theta_digest"].nunique() > 1, log
        assert run.config.iw_updates >= updates["k"].max(), log
