"""The log: what is appended is what is read, whole rows only, while it is written, after a kill, and damaged."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import numpy as np
import pytest
from synthetic import NUMBERED, numbered_log, numbered_row, numbered_rows

import iwes_mpi
from iwes_mpi.files import log as files_log
from iwes_mpi.files import reader, record
from iwes_mpi.files.behind import WriteBehind
from iwes_mpi.files.reader import LogError, empty_population, read_table
from iwes_mpi.settings.wrong_input import WrongInput


def test_round_trip(tmp_path: Path) -> None:
    numbered_log(tmp_path / "log.h5", 5, population=empty_population(0)).close()
    run = iwes_mpi.open_run(tmp_path)
    assert run.config == NUMBERED
    assert run.attrs["seed"] == 2**64 - 1
    assert {"mujoco", "numpy", "mpi", "numba"} <= set(json.loads(run.attrs["versions"]))
    for table, frame in (("iterations", run.iterations), ("updates", run.updates)):
        for iteration, found in zip(frame["iteration"], frame.to_dict("records"), strict=True):
            assert found == numbered_row(table, iteration)
    assert list(run.updates["iteration"]) == [i for i in range(5) for _ in range(2)]
    assert reader.completed_iterations(tmp_path / "log.h5") == 5
    assert run.population is not None
    assert run.population["returns"].shape == (5, 3, 2)
    assert run.population["returns"][4, 2, 1] == 9.0


def test_theta_digests_keep_all_64_bits(tmp_path: Path) -> None:
    log = numbered_log(tmp_path / "log.h5", 0)
    log.append(numbered_rows(0, 0, theta_digest=2**64 - 1))
    log.close()
    assert iwes_mpi.open_run(tmp_path).iterations["theta_digest"].iloc[0] == 2**64 - 1


def test_every_column_says_what_it_is(tmp_path: Path) -> None:
    import h5py

    numbered_log(tmp_path / "log.h5", 1, population=empty_population(0)).close()
    with h5py.File(tmp_path / "log.h5") as file:
        assert file.attrs["format"] == "iwes-mpi/1"
        for group in file.values():
            for name, dataset in group.items():
                assert dataset.attrs["units"], name
                assert dataset.attrs["long_name"], name


def test_rows_are_written_behind_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing within the delay, all of it soon after, in one batch; and at once before a checkpoint and at the end."""
    monkeypatch.setattr(WriteBehind, "DELAY", 0.5)
    log = numbered_log(tmp_path / "log.h5", 0)
    batches: list[int] = []
    extend = log.extend
    monkeypatch.setattr(log, "extend", lambda rows: (batches.append(len(rows)), extend(rows)))
    behind = WriteBehind(log)
    for iteration in range(20):
        behind.append(numbered_rows(iteration))
    deadline = time.monotonic() + 20
    while len(iwes_mpi.open_run(tmp_path).iterations) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(batches) <= 3
    behind.append(numbered_rows(20))
    behind.sync()
    assert len(iwes_mpi.open_run(tmp_path).iterations) == 21
    behind.append(numbered_rows(21))
    assert behind.tables()["iterations"]["iteration"].tolist() == list(range(22))
    behind.append(numbered_rows(22))
    behind.close()
    run = iwes_mpi.open_run(tmp_path)
    for found in run.iterations.to_dict("records"):
        assert found == numbered_row("iterations", found["iteration"])
    assert list(run.updates["iteration"]) == [i for i in range(23) for _ in range(2)]


def test_a_batch_that_cannot_be_written_is_told_by_the_next_call(tmp_path: Path) -> None:
    room = [True]

    def ready() -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    behind = WriteBehind(numbered_log(tmp_path / "log.h5", 2), ready)
    room[0] = False
    behind.append(numbered_rows(2))
    for call in (behind.sync, lambda: behind.append(numbered_rows(3)), behind.tables, behind.close):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            call()
    assert len(iwes_mpi.open_run(tmp_path).iterations) == 2


def start_writer(run_dir: Path, n_rows: int) -> subprocess.Popen[bytes]:
    """A process that writes a log."""
    program = str(launch.PROGRAMS / "log_writer.py")
    command = [sys.executable, program, str(run_dir), str(n_rows), "numbered", "close"]
    return subprocess.Popen(command, env=launch.environment())


@pytest.mark.slow
def test_readers_see_whole_rows_only(tmp_path: Path) -> None:
    """A reader that opens the log again and again during a whole run never meets half a row."""
    writer = start_writer(tmp_path, 400)
    seen = []
    try:
        while writer.poll() is None or not seen or seen[-1] < 400:
            if not (tmp_path / "log.h5").exists():
                continue
            run = iwes_mpi.open_run(tmp_path)
            for found in run.iterations.tail(3).to_dict("records"):
                assert found == numbered_row("iterations", found["iteration"])
            seen.append(len(run.iterations))
            assert len(run.updates) == 2 * seen[-1]
            assert run.updates.empty or run.updates.iloc[-1].to_dict() == numbered_row("updates", seen[-1] - 1)
    finally:
        writer.kill()
        writer.wait()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5, "the reader was too slow to see the log grow"


@pytest.mark.slow
def test_a_killed_writer_leaves_a_log_that_reads(tmp_path: Path) -> None:
    rng = random.Random(3)
    for attempt in range(8):
        path = tmp_path / str(attempt)
        path.mkdir()
        writer = start_writer(path, 100_000)
        while not (path / "log.h5").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        run = iwes_mpi.open_run(path)
        assert [int(i) for i in run.iterations["iteration"]] == list(range(len(run.iterations)))
        assert len(run.updates) == 2 * len(run.iterations)


def test_not_logs(tmp_path: Path) -> None:
    import h5py

    for content, said in ((b"", "cannot be read"), (b"text", "cannot be read")):
        (tmp_path / "log.h5").write_bytes(content)
        with pytest.raises(LogError, match=said):
            iwes_mpi.open_run(tmp_path)
    for name, said in (("iwes-mpi/2", r"has format iwes-mpi/2; .* reads iwes-mpi/1"), ("other", "not a log of iwes")):
        with h5py.File(tmp_path / "log.h5", "w") as file:
            file.attrs["format"] = name
        with pytest.raises(LogError, match=said):
            iwes_mpi.open_run(tmp_path)
    with pytest.raises(LogError, match="does not exist"):
        iwes_mpi.open_run(tmp_path / "nothing")


def said_of(path: Path) -> str:
    """What is said of a log that cannot be read, after its name."""
    with pytest.raises(LogError) as error:
        read_table(path, "iterations")
    return str(error.value).removeprefix(f"{path} ")


def test_what_is_damaged_is_not_taken_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "log.h5"
    numbered_log(path, 4).close()
    data = path.read_bytes()
    name = data.index(b"format")
    for damaged in (data[:2000], data[: name + 3], data[: len(data) // 2], data[:name] + b"x" + data[name + 1 :]):
        path.write_bytes(damaged)
        said = said_of(path)
        assert said.startswith("cannot be read: it is damaged or cut short (")
        assert "'" not in said.replace("Can't", "")
    log = numbered_log(path, 4)
    (tmp_path / "copy.h5").write_bytes(path.read_bytes()[:2000])
    log.close()
    said = said_of(tmp_path / "copy.h5")  # for all that the file tells, its writer may be about to write the rest
    assert said.startswith("cannot be read: it is damaged, cut short or just being written (")
    (tmp_path / "folder").mkdir()
    assert "it is" not in said_of(tmp_path / "folder")


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_what_is_something_else_is_not_taken_for_damaged(tmp_path: Path, version: str) -> None:
    import h5py

    path = tmp_path / "log.h5"
    with h5py.File(path, "w", libver=version) as file:
        file["data"] = np.arange(10000)
        file.attrs["format of"] = "something else"
    assert said_of(path) == "is not a log of iwes_mpi"
    size = path.stat().st_size
    os.truncate(path, size - 8)
    said = said_of(path)
    assert "cut short" in said
    assert str(size - 8) in said
    assert str(size) in said


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_mutated_logs_load_or_give_one_line(tmp_path: Path) -> None:
    """Random bytes changed, or cut off: a valid load or a LogError, never another exception or a crash."""
    numbered_log(tmp_path / "log.h5", 4).close()
    for first in range(0, 1000, 500):
        done = launch.plain("mutated_logs.py", str(tmp_path), str(first), str(first + 500), timeout=130)
        assert done.code == 0, f"mutation {done.out.split()[-1]}: {done.err[-2000:]}"


@pytest.mark.slow
def test_logs_cut_short_load_or_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every tenth byte: whole rows from the first on, or a LogError."""
    monkeypatch.setattr(files_log, "_ROWS_PER_CHUNK", 4)  # a small file
    monkeypatch.setattr(reader, "_READ_ATTEMPTS", 1)  # no writer to wait for
    path = tmp_path / "log.h5"
    numbered_log(path, 4).close()
    data = path.read_bytes()
    refused: list[str] = []
    for length in range(0, len(data), 10):
        path.write_bytes(data[:length])
        try:
            run = iwes_mpi.open_run(tmp_path)
            found = run.iterations.to_dict("records")
            assert run.config == NUMBERED
        except LogError as error:
            refused.append(str(error))
        else:
            assert found == [numbered_row("iterations", iteration) for iteration in range(len(found))]
    assert len(refused) > 0.9 * len(data) / 10
    assert not any("\n" in message for message in refused)
    assert all("cut short" in message for message in refused[1:]), "of 0 bytes nobody can tell"


@pytest.mark.slow
def test_a_damaged_config_loads_or_gives_one_line(tmp_path: Path) -> None:
    """Cut off at every tenth byte, and with random bytes changed."""
    record.write_config(tmp_path, NUMBERED)
    path = tmp_path / record.CONFIG
    data, rng = path.read_bytes(), random.Random(7)
    refused: list[str] = []
    for number in range(1000 + len(data) // 10):
        mutated = bytearray(data) if number < 1000 else bytearray(data[: 10 * (number - 1000)])
        for _ in range(rng.choice((1, 1, 3, 30)) if number < 1000 else 0):
            mutated[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(mutated)
        try:
            record.recorded_config(tmp_path)
        except WrongInput as error:
            refused.append(str(error))
    assert len(refused) > 500
    assert not any("\n" in message for message in refused)
