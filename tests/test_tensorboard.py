"""``--tensorboard``: event files that hold the log's values, through restarts; a line when the extra is missing."""

import math
import struct
import sys
from pathlib import Path

import launch
import numpy as np
import pytest
from synthetic import rows
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from iwes_mpi import open_run
from iwes_mpi.files.columns import Rows
from iwes_mpi.method.state import State
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import tensorboard
from iwes_mpi.shown.console import open_display
from iwes_mpi.train import Training


def masked(data: bytes) -> int:
    """The checksum of a TFRecord."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(run_dir: Path) -> list:
    """The events of all files, in order, with their checksums verified."""
    found = []
    for path in sorted((run_dir / tensorboard.FOLDER).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,), (header_sum,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
            content, (content_sum,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert (masked(data[:8]), masked(content)) == (header_sum, content_sum)
            found.append(Event.FromString(content))
            data = data[16 + length :]
    return found


@pytest.mark.slow
def test_event_files_hold_the_log_through_a_restart(tmp_path):
    run_dir = tmp_path / "run"
    first = launch.train(2, *launch.SMALL, "--tensorboard", "--iterations", "3", "--run-dir", str(run_dir))
    assert first.code == 0, first.err
    second = launch.train(1, "--resume", "--iterations", "4", "--run-dir", str(run_dir))
    assert second.code == 0, second.err
    run = open_run(run_dir)
    found = events(run_dir)
    assert found[0].file_version == "brain.Event:2"
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts == [0, 3], "TensorBoard drops what it has from there on"
    steps = {event.step: {v.tag: v.simple_value for v in event.summary.value} for event in found if event.summary.value}
    assert sorted(steps) == [0, 1, 2, 3]
    for row in run.iterations.itertuples():
        shown = steps[row.iteration]
        for tag, value in (
            ("evaluation/eval_return_median", row.eval_return_median),
            ("population/return_mean", row.return_mean),
            ("run/env_steps", row.env_steps),
            ("time_s/time_rollouts", row.time_rollouts),
        ):
            assert shown[tag] == np.float32(value), tag
    for row in run.updates.itertuples():
        if row.k > 0:
            assert steps[row.iteration][f"ess/k{row.k}"] == np.float32(row.ess)
            assert steps[row.iteration][f"kl/k{row.k}"] == np.float32(row.kl)


def made_up(iteration: int, **settings) -> Rows:
    """The rows of an iteration of a made-up run."""
    return rows(Config(**settings), iteration)


def display(run_dir: Path):
    """The displays of a run that shows nothing but TensorBoard's scalars."""
    run_dir.mkdir(exist_ok=True)
    config = Config(tensorboard=True, display="none", run_dir=str(run_dir))
    return open_display(config, State(0, np.zeros(1), None, None), run_dir)


def test_what_is_not_a_number_is_left_out(tmp_path):
    shown = display(tmp_path)
    shown.update(made_up(0, n_eval=0))
    shown.close()
    values = {v.tag: v.simple_value for v in events(tmp_path)[-1].summary.value}
    assert "evaluation/eval_return_median" not in values
    assert all(math.isfinite(value) for value in values.values())
    assert values["run/env_steps"] == 2000


def test_two_jobs_within_a_second_do_not_share_a_file(tmp_path):
    first, second = display(tmp_path), tensorboard.Scalars(tmp_path, 5)
    first.close()
    second.close()
    assert len(list((tmp_path / tensorboard.FOLDER).iterdir())) == 2


def test_a_full_disk_stops_the_writing_not_the_run(tmp_path, capsys):
    scalars = tensorboard.Scalars(tmp_path, 0)
    scalars._writer.close()

    class Full:
        def write_event(self, event):
            raise OSError(28, "No space left on device")

    scalars._writer = Full()
    for iteration in range(3):
        scalars.update(made_up(iteration))
    scalars.close()
    assert capsys.readouterr().err.count("No space left") == 1


def test_without_the_extra_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(WrongInput, match=r"^tensorboard: needs tensorboardX .*pip install 'iwes_mpi\[tensorboard\]'"):
        Training(["--tensorboard", "--run-dir", str(tmp_path / "run")]).plan()
    assert not (tmp_path / "run").exists()
    Training(["--run-dir", str(tmp_path / "run")]).plan()
