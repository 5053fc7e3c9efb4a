"""Environments that do to a rank's process what none should: it is said, the job ends, and nothing is left behind.

What they do when they are imported or made is wrong input where it can be said in a line: `test_bad_input.py`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import launch
import numpy as np
import pytest
from misbehaving import Misbehaving

from iwes_mpi import open_run
from iwes_mpi.mpi import leftovers
from iwes_mpi.mpi.guard import wait_until_read
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.settings.config import Config

SETTINGS = [*launch.SMALL, "--min-env-steps", "0", "--iterations", "2", "--env-id", "misbehaving:Misbehaving-v0"]
SLEEPER = b"sleep\x00604.25\x00"  # the child process that Misbehaving starts


def misbehaving(**kwargs: object) -> list[str]:
    """Settings of a small run in which the environment does as it is told."""
    return [*SETTINGS, "--env-kwargs", json.dumps(kwargs)]


def sleepers() -> list[int]:
    """Child processes of environments that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == SLEEPER:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.mpi
def test_what_does_no_harm_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another directory, deaf ears for signals, threads and children that stay, a low bound of recursion."""
    monkeypatch.chdir(tmp_path)
    assert launch.train(2, *misbehaving(), "--run-dir", "plain").code == 0
    begin = time.monotonic()
    deeds = {"made": "fork and leave, another directory, other handlers", "stepped": "thread, child, recursion"}
    outcome = launch.train(2, *misbehaving(**deeds), "--run-dir", "run", "--tensorboard")
    assert outcome.code == 0, outcome.err
    assert time.monotonic() - begin < 110, "the thread sleeps for ten minutes"
    assert not sleepers()
    run, plain = open_run("run"), open_run("plain")
    assert list(run.iterations["theta_digest"]) == list(plain.iterations["theta_digest"])
    assert (tmp_path / "run" / "tensorboard").is_dir()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("deeds", "said"),
    [
        ({"stepped": "fork"}, ["the environment forked a rank, and the child goes on running the program"]),
        ({"stepped": "child, exit at once"}, ["os._exit(0) was called", "in _exit_at_once"]),
        ({"stepped": "finalize or abort"}, ["MPI.Finalize was called: it ends MPI on all ranks"]),
        ({"made": "exit at once"}, ["os._exit(0) was called"]),
    ],
    ids=["fork", "exit", "MPI", "made"],
)
def test_what_would_end_one_rank_ends_all(deeds: dict[str, str], said: list[str], tmp_path: Path) -> None:
    rank = 0 if "made" in deeds else 1
    outcome = launch.train(2, *misbehaving(**deeds, rank=rank), "--run-dir", str(tmp_path / "run"))
    assert outcome.code not in (0, 2, 75), outcome.err
    assert all(text in outcome.err for text in said), outcome.err
    assert not sleepers()
    assert not launch.is_open_mpi() or "made" in deeds or (tmp_path / "run").exists()


@pytest.mark.mpi
def test_ranks_without_a_launcher_stop(tmp_path: Path) -> None:
    """Its process on this node is killed, which would have ended them. They leave a checkpoint."""
    slow = ["--env-id", "environments:Drift-v0", "--env-kwargs", '{"sleep": 0.005}', "--iterations", "none"]
    run_dir = tmp_path / "run"
    with launch.started(2, "-m", "iwes_mpi.train", *launch.SMALL, *slow, "--run-dir", str(run_dir)) as process:
        deadline = time.monotonic() + 120
        while not (run_dir / "log.h5").exists() or not len(open_run(run_dir).iterations):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks = launch.ranks_of(process.pid)
        parents = {int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]) for rank in ranks}
        launch.send([*parents, process.pid], signal.SIGKILL)
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < deadline + 60, "they go on for ever"
            time.sleep(0.1)
    assert open_run(run_dir).checkpoint.state.iteration == len(open_run(run_dir).iterations)


@pytest.mark.parametrize(
    ("gives", "said"),
    [("complex", "an observation holds complex numbers"), ("text", "step gave 'no' for terminated; it must be true")],
)
def test_what_is_neither_number_nor_truth_is_refused(gives: str, said: str) -> None:
    runner = open_runner(Config(env_id="misbehaving:Misbehaving-v0", env_kwargs={"gives": gives}))
    theta = np.zeros(runner.network.n_parameters, np.float32)
    normalizer = np.array([[0.0] * 3, [1.0] * 3])
    with pytest.raises(RuntimeError, match=said):
        runner.run(EpisodeTask(theta, normalizer, np.random.default_rng(3), 0.0, False))
    runner.close()


@pytest.mark.parametrize("truth", [True, np.True_, 1, np.array(True), 1.0])
def test_an_end_may_be_told_in_any_kind_of_number(truth: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Misbehaving, "step", lambda self, action: (self.state, 0.0, truth, np.False_, {}))
    runner = open_runner(Config(env_id="misbehaving:Misbehaving-v0"))
    theta = np.zeros(runner.network.n_parameters, np.float32)
    normalizer = np.array([[0.0] * 3, [1.0] * 3])
    assert runner.run(EpisodeTask(theta, normalizer, np.random.default_rng(3), 0.0, False)).length == 1
    runner.close()


def test_only_what_nobody_has_is_cleared_away() -> None:
    """In a folder of shared memory: by name, by age, and by whether any process has it open or mapped."""
    folder = Path(f"/dev/shm/iwes-test-{os.getpid()}")
    folder.mkdir()
    hold = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close(); print(flush=True)"
    try:
        for name in ("mpich_shm_1a2b_0", "mpich_shm_1a2b_1", "mpich_shm_ff_0", "mpich_shm_xyz_0", "other_1_0"):
            (folder / name).write_bytes(bytes(4096))
        (folder / "mpich_shm_0_0").symlink_to(folder / "other_1_0")
        (folder / "mpich_shm_0_1").mkdir()
        for path in folder.iterdir():
            if path.name != "mpich_shm_ff_0":  # too young: its job may be about to open it
                os.utime(path, (time.time() - 60, time.time() - 60), follow_symlinks=False)
        before = {path.name for path in folder.iterdir()}
        with subprocess.Popen(
            [sys.executable, "-c", f"{hold}; input()", str(folder / "mpich_shm_1a2b_1")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert leftovers.remove_segments(folder) == ["mpich_shm_1a2b_0"]
            assert {path.name for path in folder.iterdir()} == before - {"mpich_shm_1a2b_0"}
            holder.kill()
        assert leftovers.remove_segments(folder) == ["mpich_shm_1a2b_1"]
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_an_abort_waits_until_its_words_are_read() -> None:
    """A launcher drops what it has not read when a job aborts."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"why")
        begin = time.monotonic()
        wait_until_read((writing,), patience=0.2)
        assert time.monotonic() - begin >= 0.2, "for a while, should nobody read"
        read: list[bytes] = []
        reader = threading.Timer(0.1, lambda: read.append(os.read(reading, 100)))
        reader.start()
        wait_until_read((writing,), patience=60)
        assert read == [b"why"], "no longer than that"
        reader.join()
    finally:
        os.close(reading)
        os.close(writing)
    wait_until_read((writing,), patience=60)  # it is closed
