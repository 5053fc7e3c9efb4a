"""What breaks on a cluster: signals, crashes, bad environments, full disks, two jobs. Nothing hangs or is lost."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import launch
import numpy as np
import pytest
from same_bits import assert_same_bits

from iwes_mpi import open_run
from iwes_mpi.files.checkpoint import CURRENT
from iwes_mpi.mpi.faults import Neighbor
from iwes_mpi.mpi.group import alone
from iwes_mpi.mpi.last_words import LastWords

pytestmark = pytest.mark.mpi

TOLD = 10.0  # s within which a failure must end all ranks


def faulty(fault: str, **options: object) -> list[str]:
    """Settings of a small run whose environment does `fault`."""
    kwargs = json.dumps({"fault": fault, **options})
    return [*launch.SMALL, "--env-id", "environments:Faulty-v0", "--env-kwargs", kwargs, "--min-env-steps", "0"]


SAID = {
    "raise": "ArithmeticError: the environment gave up",
    "late": "ArithmeticError: after 1000 episodes",
    "reject": "ValueError: action",
    "other shape": "gave an observation of shape (4,)",
    "exit": "SystemExit",
    "segfault": "Fatal Python error: Segmentation fault",
    "kill": "",
}
CRASHES = ("segfault", "kill")


@pytest.mark.parametrize(
    ("launcher", "fault"),
    [("mpirun", fault) for fault in SAID] + [("mpiexec", fault) for fault in ("raise", *CRASHES)],
)
def test_a_failing_rank_ends_all(launcher: str, fault: str, tmp_path: Path) -> None:
    since = tmp_path / "since"
    endless = ["--n-pairs", "700", "--iterations", "none", "--run-dir", str(tmp_path / "run")]
    outcome = launch.train(3, *faulty(fault, rank=1, since=str(since)), *endless, timeout=90, launcher=launcher)
    assert time.time() - since.stat().st_mtime < TOLD
    assert outcome.code not in (0, 2, 75)
    assert SAID[fault] in outcome.err
    if fault not in CRASHES:
        assert outcome.err.count("iwes_mpi: rank 1 of 3 failed:") == 1
        assert outcome.err.count("Traceback (most recent call last)") == 1


def test_a_fault_that_all_ranks_have_is_one_traceback(tmp_path: Path) -> None:
    outcome = launch.train(3, *faulty("raise"), "--run-dir", str(tmp_path / "run"), timeout=60)
    assert outcome.code not in (0, 2, 75)
    assert outcome.err.count("failed:\n") == 1, outcome.err
    assert outcome.err.count("Traceback") == 1
    assert outcome.err.count(SAID["raise"]) == 1


@pytest.mark.parametrize("where", ["all", "root"])
def test_theta_that_diverges_is_said_once(where: str, tmp_path: Path) -> None:
    """A step that is too large is no fault of the program: one line which names the setting, and no checkpoint."""
    huge = ["--optimizer", "sgd", "--learning-rate", "1e200", "--shaping", "none", "--weights-on", where]
    outcome = launch.train(3, *launch.SMALL, *huge, "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 1
    told = [line for line in outcome.err.splitlines() if "iwes_mpi" in line]
    assert len(told) == 1, outcome.err
    assert "theta is no longer finite in iteration 0: --learning-rate 1e+200 is too large" in told[0]
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err
    kept = open_run(tmp_path / "run")
    assert kept.iterations.empty
    assert np.isfinite(kept.theta).all()


def test_a_rank_that_cannot_speak_ends_all_the_same() -> None:
    """Nobody reads its output any more, or a signal has come in the midst of a print."""
    begin = time.monotonic()
    outcome = launch.program(3, "mute.py", timeout=60)
    assert outcome.code not in (0, 2, 75)
    assert time.monotonic() - begin < 2 * TOLD  # from the launch on


class _Pair:
    """A world of this process and another, as its `Neighbor` sees it; abort is only noted down."""

    rank, size = 0, 2

    def __init__(self, other: int):
        space = os.stat("/proc/self/ns/pid").st_ino
        comm = SimpleNamespace(allgather=lambda mine: [mine, (1, other, space)])
        self.node = SimpleNamespace(rank=0, size=2, comm=comm, rest_until_all=lambda: None)
        self.last_words = LastWords(alone())
        self.aborted = threading.Event()

    def abort(self, code: int) -> None:
        self.aborted.set()


def test_a_rank_that_dies_is_noticed_whatever_the_launcher(capfd: pytest.CaptureFixture[str]) -> None:
    """With srun, which leaves the others waiting: tests/test_slurm.py."""
    for leaving, said in ((False, False), (False, True), (True, False)):
        with subprocess.Popen(["sleep", "60"]) as other:
            world = _Pair(other.pid)
            neighbor = Neighbor(world)  # type: ignore[arg-type]
            assert not world.aborted.wait(0.3)
            if leaving:
                neighbor.leave()
            if said:  # why the job ends: by the other rank
                assert world.last_words.be_first()
            other.kill()
        assert world.aborted.wait(Neighbor.PATIENCE + (0.5 if leaving else 10)) is not leaving
        told = "iwes_mpi: rank 1 of 2 died without a word"
        assert capfd.readouterr().err.count(told) == (not leaving and not said)
        world.last_words.free()


def test_a_rank_that_is_dead_before_it_is_watched_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["true"]) as other:
        other.wait()
        world = _Pair(other.pid)
        Neighbor(world)  # type: ignore[arg-type]
        assert world.aborted.wait(Neighbor.PATIENCE + 10)
    assert "iwes_mpi: rank 1 of 2 died without a word" in capfd.readouterr().err
    world.last_words.free()


@pytest.mark.parametrize("fault", ["nan reward", "infinite reward", "nan observation", "infinite observation"])
def test_invalid_episodes_are_counted_and_never_reach_theta(fault: str, tmp_path: Path) -> None:
    outcome = launch.train(2, *faulty(fault, share=0.5), "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    run = open_run(tmp_path / "run")
    assert np.isfinite(run.theta).all()
    assert (run.iterations["invalid_episodes"] > 0).all()
    assert np.isfinite(run.iterations[["return_mean", "return_min", "theta_norm"]]).all(axis=None)


def test_a_population_without_valid_episodes_leaves_theta_alone(tmp_path: Path) -> None:
    outcome = launch.train(2, *faulty("nan reward"), "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    iterations = open_run(tmp_path / "run").iterations
    assert (iterations["updates"] == 0).all()
    assert iterations["theta_digest"].nunique() == 1


def test_endless_episodes_end_at_the_time_limit(tmp_path: Path) -> None:
    outcome = launch.train(2, *faulty("endless"), "--max-episode-steps", "70", "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert open_run(tmp_path / "run").iterations["episode_length_mean"].iloc[0] == 70


def test_an_environment_that_prints_megabytes_stops_nothing(tmp_path: Path) -> None:
    outcome = launch.train(2, *faulty("print"), "--iterations", "1", "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err[-2000:]
    assert len(outcome.out) > 20_000_000


# -- signals -------------------------------------------------------------------------------------------------

# Episodes of about a second in a population of several: a signal meets it in its middle.
SLOW = [
    *("--env-id", "environments:Drift-v0", "--hidden-sizes", "--n-pairs", "9"),
    *("--min-env-steps", "0", "--n-eval", "0", "--noise-table-size", "20000", "--iterations", "1"),
]


def slowly(marker: Path, sleep: float = 0.03) -> list[str]:
    """Settings of the slow run that touches `marker` when its episodes have begun."""
    return [*SLOW, "--env-kwargs", json.dumps({"sleep": sleep, "marker": str(marker)})]


@pytest.fixture(scope="module")
def slow_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slow run, left alone."""
    run_dir = tmp_path_factory.mktemp("slow") / "whole"
    assert launch.train(4, *slowly(run_dir.parent / "begun"), "--run-dir", str(run_dir)).code == 0
    return run_dir


def wait_for(path: Path, process: subprocess.Popen[str], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_to_stop_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    """A run that is done says so by its exit code, also if a time limit ends while its ranks leave."""
    with launch.started(2, "-m", "iwes_mpi.train", *launch.SMALL, "--run-dir", str(tmp_path / "run")) as process:
        assert process.stdout is not None
        assert any("Finished" in line for line in process.stdout)
        while process.poll() is None:
            launch.send(launch.ranks_of(process.pid), signal.SIGTERM)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGUSR1, 2)], ids=["TERM", "INT", "USR1"]
)
def test_a_signal_to_one_rank_stops_all_in_the_middle_of_a_population(
    number: int, rank: int, slow_reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with launch.started(
        3, "-m", "iwes_mpi.train", *slowly(tmp_path / "begun"), "--run-dir", str(run_dir), MPIR_CVAR_NUM_CLIQUES="2"
    ) as process:
        wait_for(tmp_path / "begun", process)
        time.sleep(0.5)
        ranks = sorted(launch.ranks_of(process.pid))
        assert len(ranks) == 3
        begin = time.monotonic()
        os.kill(ranks[rank], number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert time.monotonic() - begin < 60 * 0.03 + 5
    # The unfinished population is dropped, and is the same on resume.
    assert open_run(run_dir).iterations.empty
    assert launch.train(4, "--resume", "--run-dir", str(run_dir)).code == 0
    assert_same_bits(run_dir, slow_reference)


@pytest.mark.parametrize(("delay", "number"), [(0.0, signal.SIGUSR1), (0.7, signal.SIGHUP)], ids=["USR1", "HUP"])
def test_a_signal_while_the_run_gets_ready_stops_it_too(
    delay: float, number: int, slow_reference: Path, tmp_path: Path
) -> None:
    """From the moment on that a rank's Python has read the first lines of the program."""
    settings = [*slowly(tmp_path / "begun"), "--resume", "auto", "--run-dir", str(tmp_path / "run")]
    with launch.started(3, "-m", "iwes_mpi.train", *settings) as process:
        deadline = time.monotonic() + 60
        while len(ranks := [rank for rank in launch.ranks_of(process.pid) if catches(rank, number)]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(sorted(ranks)[1], number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert out.count("Stopped") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "begun").exists()
    resumed = launch.train(4, *settings)
    assert resumed.code == 0, resumed.err
    assert_same_bits(tmp_path / "run", slow_reference)


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def test_wall_time_ends_in_the_middle_of_a_population(slow_reference: Path, tmp_path: Path) -> None:
    limit, sleep = 12, 0.06
    begin = time.monotonic()
    settings = [*slowly(tmp_path / "begun", sleep), "--max-wall-time", str(limit), "--run-dir", str(tmp_path / "run")]
    outcome = launch.train(2, *settings)
    assert time.monotonic() - begin < limit + 60 * sleep + 5  # from the launch on
    assert outcome.code == 75, outcome.err
    assert (tmp_path / "begun").exists()
    assert open_run(tmp_path / "run").iterations.empty, "a population takes 17 s at least"
    resumed = launch.train(4, "--resume", "--run-dir", str(tmp_path / "run"), "--max-wall-time", "none")
    assert resumed.code == 0, resumed.err
    assert_same_bits(tmp_path / "run", slow_reference)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    slower = slowly(tmp_path / "begun", sleep=1.0)
    with launch.started(2, "-m", "iwes_mpi.train", *slower, "--run-dir", str(tmp_path / "run")) as process:
        wait_for(tmp_path / "begun", process)
        time.sleep(0.5)
        begin = time.monotonic()
        for _ in range(2):
            launch.send(launch.ranks_of(process.pid), signal.SIGINT)
            time.sleep(0.5)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - begin < TOLD  # episodes last up to a minute
        assert process.returncode not in (0, 2, 75)
        assert "interrupted again" in err


# -- the run directory -----------------------------------------------------------------------------------------


def segments_of(process: int) -> set[Path]:
    """The files of MPICH's in shared memory that a process has mapped."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {Path(line.split()[5]) for line in lines if "/dev/shm/mpich_shm_" in line and not line.endswith("(deleted)")}


def test_two_jobs_on_one_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    endless = [*slowly(tmp_path / "begun"), "--iterations", "none", "--run-dir", str(run_dir)]
    with launch.started(2, "-m", "iwes_mpi.train", *endless) as first:
        wait_for(run_dir / CURRENT, first)
        second = launch.train(2, "--resume", "--run-dir", str(run_dir))
        assert second.code == 2
        assert f"--run-dir: {run_dir} is in use by process" in second.err
        ranks = launch.ranks_of(first.pid)
        left = {path for rank in ranks for path in segments_of(rank)}
        launch.send(ranks, signal.SIGKILL)
        first.wait(timeout=30)
        for path in left:  # as if a minute had gone by
            if path.exists():
                os.utime(path, (time.time() - 60, time.time() - 60))
        third = launch.train(2, "--resume", "--run-dir", str(run_dir), "--iterations", "0")
        assert third.code == 0, third.err  # the dead job's lock is gone
        assert launch.is_open_mpi() or left, "MPICH has its files in shared memory"
        assert not [path for path in left if path.exists()], "and what it left of them is gone too"


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert launch.train(2, *launch.SMALL, "--run-dir", str(tmp_path / "whole")).code == 0
    half = [*launch.SMALL, "--iterations", "2", "--checkpoint-every", "1"]
    assert launch.train(2, *half, "--run-dir", str(run_dir)).code == 0
    current = run_dir / CURRENT
    current.write_bytes(current.read_bytes()[:-100])
    (run_dir / "log.h5").write_bytes(b"lost too")
    outcome = launch.train(2, "--resume", "--run-dir", str(run_dir), "--iterations", "4")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("checkpoint.h5 is damaged: its checksum does not match; using checkpoint-previous.h5") == 1
    assert outcome.out.count("log.h5 cannot be read") == 1
    assert_same_bits(run_dir, tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


# Settings under which every iteration asks for room.
GROWING = [*launch.SMALL, "--min-env-steps", "0", "--log-population", "--display", "none"]


@pytest.fixture(scope="module")
def growing_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a run, left alone."""
    run_dir = tmp_path_factory.mktemp("growing") / "whole"
    assert launch.train(2, *GROWING, "--iterations", "8", "--run-dir", str(run_dir)).code == 0
    return run_dir


def assert_told_once(outcome: launch.Outcome, told: str) -> None:
    """The run ended with the code of a failed storage and one line, and nothing else was printed by its libraries."""
    assert outcome.code == 74, outcome.err
    lines = [line for line in outcome.err.splitlines() if "iwes_mpi" in line]
    assert len(lines) == 1, outcome.err
    assert f"error: {told}; the run stopped at its last good checkpoint" in lines[0]
    for noise in ("Traceback", "HDF5", "Exception ignored", "Segmentation", "signal"):
        assert noise not in outcome.err


@pytest.mark.parametrize("check", [True, False], ids=["noticed before", "in the midst of a write"])
def test_a_full_disk_stops_the_run_and_loses_nothing(check: bool, small_disk: Path, tmp_path: Path) -> None:
    run_dir = small_disk / "run"
    program = ["-m", "iwes_mpi.train"] if check else [str(launch.PROGRAMS / "filling_disk.py")]
    settings = [*GROWING, "--checkpoint-every", "1"]
    with launch.started(2, *program, *settings, "--iterations", "none", "--run-dir", str(run_dir)) as process:
        wait_for(run_dir / "checkpoint-previous.h5", process)
        with open(small_disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 12))
        _, err = process.communicate(timeout=60)
    # With the check too it may fill up between check and write; without, something was being written for sure.
    names = [run_dir / CURRENT, run_dir / "log.h5", *([run_dir] if check else [])]
    name = next((name for name in names if f"error: {name}: " in err), names[-1])
    assert_told_once(launch.Outcome(process.returncode, "", err), f"{name}: No space left on device")

    kept = open_run(run_dir)
    reached = kept.checkpoint.state.iteration
    assert len(kept.iterations) >= reached > 0

    refused = launch.train(2, "--resume", "--run-dir", str(run_dir))
    assert refused.code == 2
    assert f"{run_dir}: No space left on device" in refused.err

    (small_disk / "ballast").unlink()
    limit = ["--iterations", str(reached + 3)]
    resumed = launch.train(2, "--resume", "--run-dir", str(run_dir), *limit)
    assert resumed.code == 0, resumed.err
    whole = launch.train(2, *settings, *limit, "--run-dir", str(tmp_path / "whole"))
    assert whole.code == 0, whole.err
    assert_same_bits(run_dir, tmp_path / "whole")


@pytest.mark.parametrize(
    ("writing", "room"),
    [("log.h5", 0), ("log.h5", 9_000), ("log.h5", 40_000), (CURRENT, -1)],
    ids=["at once", "in a chunk", "later", "in a checkpoint"],
)
def test_a_quota_met_in_the_midst_of_a_write(writing: str, room: int, growing_reference: Path, tmp_path: Path) -> None:
    """After three iterations the kernel lets rank 0's files grow by `room` bytes, or no file reach a checkpoint's size.

    HDF5 then fails somewhere inside, tries again when the file is closed, and when the process ends.
    """
    run_dir = tmp_path / "run"
    every = "3" if writing == CURRENT else "2"
    settings = [*GROWING, "--checkpoint-every", every, "--iterations", "8"]
    outcome = launch.program(2, "quota.py", writing, str(room), *settings, "--run-dir", str(run_dir))
    assert_told_once(outcome, f"{run_dir / writing}: {os.strerror(errno.EFBIG)}")
    assert_resumes_with_the_same_bits(run_dir, growing_reference, rows=3)


def test_a_log_that_cannot_be_begun(growing_reference: Path, tmp_path: Path) -> None:
    """On resume the log is written anew, beside the old one: that stays."""
    run_dir = tmp_path / "run"
    shutil.copytree(growing_reference, run_dir)
    outcome = launch.program(2, "quota_at_once.py", "--resume", "--run-dir", str(run_dir), "--iterations", "9")
    assert outcome.code == 2, outcome.err
    told = [line for line in outcome.err.splitlines() if "iwes_mpi" in line]
    assert told == [f"iwes_mpi.train: error: --run-dir: {run_dir / 'log.h5'}: File too large"]
    assert_same_bits(run_dir, growing_reference)


def assert_resumes_with_the_same_bits(run_dir: Path, reference: Path, rows: int) -> None:
    """At least the first `rows` rows are there, as is a checkpoint; the run goes on like one that was left alone."""
    kept, whole = open_run(run_dir), open_run(reference)
    assert rows <= len(kept.iterations) < 8
    assert list(kept.iterations["theta_digest"]) == list(whole.iterations["theta_digest"][: len(kept.iterations)])
    assert kept.checkpoint.state.iteration >= 0
    resumed = launch.train(2, "--resume", "--run-dir", str(run_dir), "--iterations", "8")
    assert resumed.code == 0, resumed.err
    assert_same_bits(run_dir, reference)
    ended = open_run(run_dir)
    assert ended.population is not None
    assert whole.population is not None
    for name, values in whole.population.items():
        np.testing.assert_array_equal(ended.population[name], values)


@pytest.mark.parametrize(
    ("kind", "stopped", "number"),
    [("save", "stopped", errno.EROFS), ("append", "going", errno.EDQUOT)],
)
def test_a_file_system_that_fails_while_running(
    kind: str, stopped: str, number: int, growing_reference: Path, tmp_path: Path
) -> None:
    """Quota and read-only file systems: 74 and one line, not the 75 that promises a checkpoint."""
    arguments = [kind, str(number), stopped, *GROWING, "--iterations", "8", "--run-dir", str(tmp_path / "run")]
    outcome = launch.program(2, "failing_files.py", *arguments)
    assert_told_once(outcome, f"the file: {os.strerror(number)}")
    assert_resumes_with_the_same_bits(tmp_path / "run", growing_reference, rows=1)


@pytest.mark.parametrize("rollouts", ["native", "gymnasium"])
def test_unstable_physics_is_counted_and_leaves_no_file(
    rollouts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo would add to MUJOCO_LOG.TXT in the working directory: its instabilities, and notes about the model."""
    work, model, run_dir = tmp_path / "work", tmp_path / "model.xml", tmp_path / "run"
    work.mkdir()
    monkeypatch.chdir(work)
    text = (Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml").read_text()
    assert "settotalmass" in text, "the test wants a model that MuJoCo has something to say about"
    model.write_text(text.replace('timestep="0.01"', 'timestep="0.1"').replace('gear="120"', 'gear="1e9"'))
    cheetah = ["--env-id", "HalfCheetah-v5", "--min-env-steps", "0", "--rollouts", rollouts, "--iterations", "2"]
    for kwargs, share in (({}, 0.0), ({"xml_file": str(model)}, 1.0)):
        settings = [*launch.SMALL, *cheetah, "--max-episode-steps", "50", "--env-kwargs", json.dumps(kwargs)]
        outcome = launch.train(2, *settings, "--run-dir", str(run_dir))
        assert outcome.code == 0, outcome.err
        assert outcome.err == ""
        assert (open_run(run_dir).iterations["invalid_episodes"] == share * (2 * 13 + 3)).all()
        if not kwargs:
            film = ["--episodes", "1", "--video", str(tmp_path / "film.gif")]
            filmed = launch.run(2, "-m", "iwes_mpi.evaluate", str(run_dir), *film)
            assert filmed.code == 0 or "cannot render off screen here" in filmed.err, filmed.err
        shutil.rmtree(run_dir)
    assert not list(work.iterdir())
