"""The log: what is appended is what is read, whole rows only, while it is written, after a kill, and damaged."""

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

import iwes_mpi
from iwes_mpi.files.columns import TABLES
from iwes_mpi.files.log import LogWriter
from iwes_mpi.files.provenance import provenance
from iwes_mpi.files.reader import LogError, empty_population, read_table

# FIXME runlog.recorded_config
from iwes_mpi.files.record import CONFIG, write_config
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

CONFIG = Config(n_pairs=3, seed=2**64 - 1)


def row_of(table: str, iteration: int) -> dict[str, float]:
    """A row whose every value follows from the iteration."""
    return {name: (iteration * 7 + k) % 200 for k, name in enumerate(TABLES[table])} | {"iteration": iteration}


def write(path: Path, rows: int, **options: object) -> LogWriter:
    log = LogWriter(path, provenance(CONFIG, "an MPI", 4, 2), **options)
    for iteration in range(rows):
        returns = np.arange(6.0).reshape(3, 2) + iteration
        log.append(row_of("iterations", iteration), [row_of("updates", iteration)] * 2, (returns, returns.astype("i8")))
    return log


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "log.h5", 5, population=empty_population(0)).close()
    run = iwes_mpi.open_run(tmp_path)
    assert run.config == CONFIG
    assert run.attrs["seed"] == 2**64 - 1
    assert {"mujoco", "numpy", "mpi", "numba"} <= set(json.loads(run.attrs["versions"]))
    for table, frame in (("iterations", run.iterations), ("updates", run.updates)):
        for iteration, found in zip(frame["iteration"], frame.to_dict("records"), strict=True):
            assert found == row_of(table, iteration)
    assert list(run.updates["iteration"]) == [i for i in range(5) for _ in range(2)]
    assert run.population is not None
    assert run.population["returns"].shape == (5, 3, 2)
    assert run.population["returns"][4, 2, 1] == 9.0


def test_theta_digests_keep_all_64_bits(tmp_path: Path) -> None:
    log = write(tmp_path / "log.h5", 0)
    log.append(row_of("iterations", 0) | {"theta_digest": 2**64 - 1}, [], ())
    log.close()
    assert iwes_mpi.open_run(tmp_path).iterations["theta_digest"].iloc[0] == 2**64 - 1


def test_every_column_says_what_it_is(tmp_path: Path) -> None:
    import h5py

    write(tmp_path / "log.h5", 1, population=empty_population(0)).close()
    with h5py.File(tmp_path / "log.h5") as file:
        assert file.attrs["format"] == "iwes-mpi/1"
        for group in file.values():
            for name, dataset in group.items():
                assert dataset.attrs["units"], name
                assert dataset.attrs["long_name"], name


def test_readers_see_whole_rows_only(tmp_path: Path) -> None:
    """A reader that opens the log again and again during a whole run never meets half a row."""
    writer = subprocess.Popen([sys.executable, __file__, str(tmp_path / "log.h5"), "400"], env=launch.environment())
    seen = []
    try:
        while writer.poll() is None or not seen or seen[-1] < 400:
            if not (tmp_path / "log.h5").exists():
                continue
            run = iwes_mpi.open_run(tmp_path)
            for found in run.iterations.tail(3).to_dict("records"):
                assert found == row_of("iterations", found["iteration"])
            seen.append(len(run.iterations))
            assert len(run.updates) == 2 * seen[-1]
            assert run.updates.empty or run.updates.iloc[-1].to_dict() == row_of("updates", seen[-1] - 1)
    finally:
        writer.kill()
        writer.wait()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5, "the reader was too slow to see the log grow"


def test_a_killed_writer_leaves_a_log_that_reads(tmp_path: Path) -> None:
    rng = random.Random(3)
    for attempt in range(8):
        path = tmp_path / str(attempt)
        path.mkdir()
        writer = subprocess.Popen([sys.executable, __file__, str(path / "log.h5"), "100000"], env=launch.environment())
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
    write(path, 4).close()
    data = path.read_bytes()
    name = data.index(b"format")
    for damaged in (data[:2000], data[: name + 3], data[: len(data) // 2], data[:name] + b"x" + data[name + 1 :]):
        path.write_bytes(damaged)
        said = said_of(path)
        assert said.startswith("cannot be read: it is damaged or cut short (")
        assert "'" not in said.replace("Can't", "")
    log = write(path, 4)
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


_READ_MUTATIONS = """
import random, sys, warnings
from pathlib import Path
import iwes_mpi
from iwes_mpi.files.reader import LogError
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = (folder / "log.h5").read_bytes()
place = folder / sys.argv[2]
place.mkdir()
for number in range(first, last):
    rng = random.Random(number)
    mutated = bytearray(data)
    if number % 10 == 0:
        mutated = mutated[: rng.randrange(len(data))]
    else:
        for _ in range(rng.choice((1, 1, 3, 30))):
            mutated[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    (place / "log.h5").write_bytes(mutated)
    print(number, flush=True)
    try:
        run = iwes_mpi.open_run(place)
        run.iterations, run.updates, run.config
    except LogError as error:
        assert "\\n" not in str(error), error
"""


@pytest.mark.timeout(280)
def test_mutated_logs_load_or_give_one_line(tmp_path: Path) -> None:
    """Random bytes changed, or cut off: a valid load or a LogError, never another exception or a crash."""
    write(tmp_path / "log.h5", 4).close()
    for first in range(0, 1000, 500):
        reader = subprocess.run(
            [sys.executable, "-c", _READ_MUTATIONS, str(tmp_path), str(first), str(first + 500)],
            capture_output=True, text=True, env=launch.environment(), timeout=130,
        )  # fmt: skip
        assert reader.returncode == 0, f"mutation {reader.stdout.split()[-1]}: {reader.stderr[-2000:]}"


def test_logs_cut_short_load_or_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every tenth byte: whole rows from the first on, or a LogError."""
    monkeypatch.setattr(runlog, "_ROWS_PER_CHUNK", 4)  # a small file
    monkeypatch.setattr(runlog, "_READ_ATTEMPTS", 1)  # no writer to wait for
    path = tmp_path / "log.h5"
    write(path, 4).close()
    data = path.read_bytes()
    refused: list[str] = []
    for length in range(0, len(data), 10):
        path.write_bytes(data[:length])
        try:
            run = iwes_mpi.open_run(tmp_path)
            found = run.iterations.to_dict("records")
            assert run.config == CONFIG
        except LogError as error:
            refused.append(str(error))
        else:
            assert found == [row_of("iterations", iteration) for iteration in range(len(found))]
    assert len(refused) > 0.9 * len(data) / 10
    assert not any("\n" in message for message in refused)
    assert all("cut short" in message for message in refused[1:]), "of 0 bytes nobody can tell"


def test_a_damaged_config_loads_or_gives_one_line(tmp_path: Path) -> None:
    """Cut off at every tenth byte, and with random bytes changed."""
    write_config(tmp_path, CONFIG)
    path = tmp_path / CONFIG
    data, rng = path.read_bytes(), random.Random(7)
    refused: list[str] = []
    for number in range(1000 + len(data) // 10):
        mutated = bytearray(data) if number < 1000 else bytearray(data[: 10 * (number - 1000)])
        for _ in range(rng.choice((1, 1, 3, 30)) if number < 1000 else 0):
            mutated[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(mutated)
        try:
            runlog.recorded_config(tmp_path)
        except WrongInput as error:
            refused.append(str(error))
    assert len(refused) > 500
    assert not any("\n" in message for message in refused)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2])).close()
