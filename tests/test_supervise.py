"""iwes_mpi.supervise: what it starts again, what not, and that no bit depends on it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import launch
import pytest
import stalled
from same_bits import assert_same_bits

from iwes_mpi import open_run, supervise

# Stands for a run: notes its arguments and whatever signal it gets, then ends with the next of the codes in a file.
FAKE = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
with open(folder / "calls", "a") as file:
    print(*sys.argv[2:], file=file)
def note(number, frame):
    (folder / "signal").write_text(str(number))
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, note)
code, *rest = (folder / "codes").read_text().split()
(folder / "codes").write_text(" ".join(rest) or code)
if code == "wait":
    (folder / "waiting").touch()
    time.sleep(60)
if code == "orphan":
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (folder / "left").write_text(str(left.pid))
    code = 1
os.kill(os.getpid(), -int(code)) if int(code) < 0 else sys.exit(int(code))
"""


class Fake:
    """A supervised stand-in for a run."""

    def __init__(self, folder: Path, codes: str):
        self.folder = folder
        (folder / "fake.py").write_text(FAKE)
        (folder / "codes").write_text(codes)
        (folder / "run").mkdir()

    def command(self, *options: str, given: tuple[str, ...] = ("--run-dir", "run")) -> list[str]:
        """The command line of its supervisor."""
        fake = [sys.executable, str(self.folder / "fake.py"), str(self.folder)]
        return [sys.executable, "-m", "iwes_mpi.supervise", *options, "--", *fake, *given]

    def run(self, *options: str, given: tuple[str, ...] = ("--run-dir", "run")) -> subprocess.CompletedProcess[str]:
        """Supervise it to its end."""
        return subprocess.run(
            self.command(*options, given=given), cwd=self.folder, env=launch.environment(), capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """Supervise it in the background."""
        process = subprocess.Popen(
            self.command(), cwd=self.folder, env=launch.environment(), stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            launch.kill_tree(process.pid)
            process.communicate()

    @property
    def calls(self) -> list[str]:
        """The arguments of each time that it was started."""
        return (self.folder / "calls").read_text().splitlines()


def wait_for(what: Callable[[], object], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("before", "completed", "after"), stalled.CASES)
def test_the_rule_is_that_of_the_batch_script(
    before: str | None, completed: str, after: str | None, tmp_path: Path
) -> None:
    if before is not None:
        (tmp_path / "stalls").write_text(f"{before}\n", encoding="latin-1")
    stalls = supervise.Stalls(tmp_path)
    count = stalls.count(int(completed))
    assert (count > 3) == (after is None)
    if after is not None:
        assert (tmp_path / "stalls").read_text() == f"{after}\n"


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ("--run-dir r", "--run-dir r --resume auto"),
        ("--resume --run-dir r", "--run-dir r --resume auto"),
        ("--run-dir=r --resume always --seed 3", "--run-dir=r --seed 3 --resume auto"),
        ("--resume=always --run-dir r", "--run-dir r --resume auto"),
        ("--run-dir r --resume auto", "--run-dir r --resume auto"),
    ],
)
def test_it_resumes_whatever_the_command_says(given: str, again: str) -> None:
    assert supervise.resuming(given.split()) == again.split()
    assert supervise.run_dir_of(given.split()) == Path("r")


@pytest.mark.slow
def test_what_breaks_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "1 -9 139 0")
    done = fake.run()
    assert done.returncode == 0
    assert fake.calls == ["--run-dir run", *["--run-dir run --resume auto"] * 3]
    assert [line.partition("ended with ")[2] for line in done.stderr.splitlines()] == [
        "code 1 after 0 completed iterations; restart 1",
        "code 137 (SIGKILL) after 0 completed iterations; restart 2",
        "code 139 (SIGSEGV) after 0 completed iterations; restart 3",
    ]
    assert not (tmp_path / "run/stalls").exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", ["0", "2", "74", "75"])
def test_codes_that_are_final(code: str, tmp_path: Path) -> None:
    fake = Fake(tmp_path, code)
    done = fake.run()
    assert (done.returncode, len(fake.calls), done.stderr) == (int(code), 1, "")


@pytest.mark.slow
def test_it_gives_up_when_restarts_bring_no_iteration(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "9")
    done = fake.run("--restarts", "2")
    assert (done.returncode, len(fake.calls)) == (9, 3)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("no further one after 2 restarts (--restarts), not started again")
    assert not (tmp_path / "run/stalls").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_are_passed_on_and_end_it(number: signal.Signals, tmp_path: Path) -> None:
    fake = Fake(tmp_path, "wait")
    with fake.started() as process:
        wait_for((tmp_path / "waiting").exists)
        process.send_signal(number)
        assert process.wait(30) == 75
    assert (tmp_path / "signal").read_text() == str(int(number))
    assert len(fake.calls) == 1


@pytest.mark.slow
def test_a_run_without_news_is_ended_and_started_again(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "wait 0")
    done = fake.run("--patience", "0.05", "--restarts", "9")  # more than one on a crowded machine
    assert (done.returncode, fake.calls[-1]) == (0, "--run-dir run --resume auto")
    assert "no news in the log for 0.05 min (--patience), ended" in done.stderr


@pytest.mark.slow
def test_what_a_run_leaves_behind_is_ended_first(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "orphan 0")
    done = fake.run()
    assert (done.returncode, len(fake.calls)) == (0, 2)
    assert not Path(f"/proc/{(tmp_path / 'left').read_text()}").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "mpirun", "-n", "2"], "--run-dir: must be in the command"),
        ([], "command: is missing"),
        (["--restarts", "-1", "--", "a", "--run-dir", "b"], "--restarts: must be at least 0"),
        (["--patience", "nan", "--", "a", "--run-dir", "b"], "--patience: must be more than 0"),
        (["--restart", "1", "--", "a", "--run-dir", "b"], "--restart: is not a setting of this program; is it --resta"),
        (["--", "./absent", "--run-dir", "b"], "command: ./absent cannot be run: No such file or directory"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iwes_mpi.supervise", *arguments], cwd=tmp_path, env=launch.environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"iwes_mpi.supervise: error: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.mpi
def test_ranks_killed_twice_change_no_bit(tmp_path: Path) -> None:
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    settings = [*launch.SMALL, "--min-env-steps", "0", "--display", "none", "--iterations", "200"]
    whole = launch.train(1, *settings, "--run-dir", str(reference))
    assert whole.code == 0, whole.err
    command = [sys.executable, "-m", "iwes_mpi.supervise", "--"]
    command += launch.command(2, "-m", "iwes_mpi.train", *settings, "--run-dir", str(run_dir))
    log = run_dir / "log.h5"
    with subprocess.Popen(command, env=launch.environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            killed: list[int] = []
            for _ in range(2):
                wait_for(lambda: log.exists() and (launch.ranks_of(process.pid) or process.poll() is not None))
                rows = len(open_run(run_dir).iterations)
                wait_for(lambda rows=rows: len(open_run(run_dir).iterations) > rows)
                rank = launch.ranks_of(process.pid)[-1]
                os.kill(rank, signal.SIGKILL)
                killed.append(rank)
                wait_for(lambda rank=rank: rank not in launch.ranks_of(process.pid))
            _, err = process.communicate(timeout=120)
        finally:
            launch.kill_tree(process.pid)
    assert process.returncode == 0, err
    assert err.count("iwes_mpi.supervise: ended with code ") == 2, err
    assert_same_bits(run_dir, reference)
