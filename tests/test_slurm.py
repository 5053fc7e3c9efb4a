"""jobs/ on a real two-node Slurm (tests/slurm/cluster.sh); test_jobs.py has what can be tested without one."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import iwes_mpi

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for what all share

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "tests/slurm/cluster.sh"
TRAIN = ROOT / "jobs/train.sbatch"
# fmt: off
FLAGS = [
    "--preset", "paper-ant", "--env-id", "slow_env:SlowPendulum-v0", "--env-kwargs", "{}", "--hidden-sizes", "8",
    "--n-pairs", "10", "--min-env-steps", "0", "--noise-table-size", "100000", "--n-eval", "2",
    "--checkpoint-every", "1", "--iw-updates", "1", "--learning-rate", "0.01",
]
# fmt: on
ITERATIONS = 60
SLOW = 0.05  # s per episode: about half a second per iteration on two ranks


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    if os.getuid() != 0:
        return "starting a Slurm cluster needs root"
    absent = [program for program in ("slurmctld", "slurmd", "munged", "srun") if not shutil.which(program)]
    return f"not installed (tests/slurm/cluster.sh install): {', '.join(absent)}" if absent else None


def wait_for(what: Callable[[], object], seconds: float, name: str) -> None:
    """Return as soon as `what` returns something true."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            pytest.fail(f"{name}: not within {seconds:.0f} s")
        time.sleep(0.5)


class Slurm:
    """A running cluster, and the folder from which jobs are submitted."""

    def __init__(self, cluster: Path, folder: Path):
        self.cluster = cluster
        self.folder = folder
        drop = ("SLURM_", "SBATCH_", "PMI_", "OMPI_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(drop)} | {
            "SLURM_CONF": str(cluster / "slurm.conf"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/slurm'}:{ROOT / 'tests'}",
            "VENV": str(Path(sys.executable).parent.parent),
            # Where runs without Slurm have it too: the jobs' own would be compiled and removed by each of them.
            "NUMBA_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"iwes_mpi-{os.getuid()}"),
            "JOBS": str(ROOT / "jobs"),
        }

    def call(self, *command: str | Path, **environment: str) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *arguments: str | Path, pause: float = 0, run_dir: str = "", **environment: str) -> "Job":
        """Submit a batch script on two nodes; its environment pauses at every episode."""
        pause_file = Path(tempfile.mkstemp(dir=self.folder, prefix="pause-")[1])
        if run_dir:
            environment["RUN_DIR"] = run_dir
        environment["SLOW_ENV_FILE"] = str(pause_file)
        job = Job(self, "", pause_file, run_dir)
        job.pause(pause)
        job.id = self.call(
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", *arguments, **environment
        ).strip()
        return job


class Job:
    """A submitted job."""

    def __init__(self, slurm: Slurm, job_id: str, pause_file: Path, run_dir: str):
        self.slurm = slurm
        self.id = job_id
        self._pause_file = pause_file
        self._run_dir = run_dir

    def pause(self, seconds: float) -> None:
        """Set the pause of every episode from now on."""
        draft = self._pause_file.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self._pause_file)

    @property
    def run_dir(self) -> Path:
        """Where the run is."""
        return self.slurm.folder / (self._run_dir or f"runs/iwes-{self.id}")

    def field(self, name: str, element: str = "") -> str:
        """A field of scontrol show job."""
        text = self.slurm.call("scontrol", "show", "job", "-o", self.id + element)
        found = re.search(rf"\b{name}=(\S*)", text)
        assert found, text
        return found[1]

    def wait(self, *states: str, seconds: float = 120, element: str = "") -> None:
        """Wait until the job is in one of the states."""
        wait_for(lambda: self.field("JobState", element) in states, seconds, f"job {self.id}{element} {states}")

    def end(self, seconds: float = 180, element: str = "") -> tuple[str, str, str]:
        """Wait for the end: the job's state, its exit code and how often it was requeued."""
        self.wait("COMPLETED", "FAILED", seconds=seconds, element=element)
        return self.field("JobState", element), self.field("ExitCode", element), self.field("Restarts", element)

    def iterations(self) -> int:
        """Completed iterations."""
        return len(digests(self.run_dir))

    def output(self) -> str:
        """What the job printed."""
        return (self.slurm.folder / f"iwes-{self.id}.out").read_text()

    def events(self) -> list[str]:
        """What slurm.log tells: "start restart 0 ...", "exit 0", ..."""
        log = self.run_dir / "slurm.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [" ".join(line.split("\t")[2:]) for line in lines]


def digests(run_dir: Path) -> np.ndarray:
    """Theta's digest after every completed iteration; none if there is no log yet."""
    if not (run_dir / "log.h5").exists():
        return np.zeros(0, np.uint64)
    table = iwes_mpi.open_run(run_dir).iterations
    np.testing.assert_array_equal(table["iteration"], np.arange(len(table)))
    return table["theta_digest"].to_numpy()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of two nodes, for this file."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must test on a real Slurm, but: {reason}")
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as short:  # pytest's paths are too long for Unix sockets
        cluster = Path(short)
        slurm = Slurm(cluster, tmp_path_factory.mktemp("submit"))
        subprocess.run([CLUSTER, "start", cluster], check=True, timeout=60)
        try:
            yield slurm
        finally:
            subprocess.run([CLUSTER, "stop", cluster], check=True, timeout=60)


@pytest.fixture(scope="module")
def expected(slurm: Slurm) -> np.ndarray:
    """The digests of a run that nobody disturbed, on one rank and without Slurm."""
    run_dir = slurm.folder / "uninterrupted"
    command = [sys.executable, "-m", "iwes_mpi.train", *FLAGS, "--iterations", str(ITERATIONS), "--run-dir", run_dir]
    subprocess.run(command, cwd=slurm.folder, env=slurm.environment, check=True, timeout=400, stdout=subprocess.DEVNULL)
    result = digests(run_dir)
    assert len(set(result)) == ITERATIONS
    return result


# What a rank does, and what must be said of it, once
FAULTS = {
    "raise": "Traceback (most recent call last)",
    "segfault": "Fatal Python error: Segmentation fault",
    "kill": "task 1: Killed",
}
TOLD = 10.0  # s within which a failure must end all ranks


def faulty(fault: str, since: Path) -> list[str]:
    """Settings of an endless run in which rank 1 does `fault` and touches `since`."""
    kwargs = json.dumps({"fault": fault, "rank": 1, "since": str(since)})
    faulty = ["--env-id", "environments:Faulty-v0", "--env-kwargs", kwargs, "--iterations", "none"]
    return [*FLAGS, *faulty, "--display", "none"]


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, expected: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All jobs that are left alone until they end, submitted at once: a test waits for its own, by name.

    "limited" meets its time limit again and again, in the background of the other tests: each takes half a minute.
    Slurm counts limits in minutes, and looks for jobs to warn every 30 s.
    """

    def stand_in(name: str, **variables: str) -> Job:
        """A file of tests/programs/slurm_ranks stands for the training program."""
        folder = tmp_path_factory.mktemp(name)
        (folder / "iwes_mpi").mkdir()
        (folder / "iwes_mpi/__init__.py").touch()
        shutil.copyfile(ROOT / f"tests/programs/slurm_ranks/{name}.py", folder / "iwes_mpi/train.py")
        return slurm.submit(TRAIN, PYTHONPATH=str(folder), **variables)

    limit = ("--time=0:01:00", "--signal=B:USR1@25")
    node = tmp_path_factory.mktemp("node")
    jobs = {
        "limited": slurm.submit(*limit, TRAIN, *FLAGS, "--iterations", str(ITERATIONS), pause=5 * SLOW, MAX_STALLS="9"),
        "leaving": stand_in("leaving", MAX_STALLS="0"),
        "seen": stand_in("seen", NUMBA_CACHE_DIR="", TMPDIR=str(node)),
        "failing": stand_in("failing"),
        "srun": slurm.submit(TRAIN, *FLAGS, "--iterations", "20", LAUNCHER="srun"),
        "mpirun": slurm.submit(TRAIN, *FLAGS, "--iterations", "20", LAUNCHER="mpirun"),
        "wrong": slurm.submit(TRAIN, *FLAGS, "--sigma", "-1"),
        "stalled": slurm.submit(
            TRAIN, *FLAGS, "--iterations", "50", "--max-wall-time", "0.001", MAX_STALLS="1", pause=SLOW
        ),
    }
    for fault in FAULTS:
        since = slurm.folder / f"since-{fault}"
        jobs[fault] = slurm.submit("--ntasks-per-node=2", TRAIN, *faulty(fault, since), MAX_STALLS="0")
    return jobs


def test_ranks_may_leave_one_after_another(jobs: dict[str, Job]) -> None:
    """As hundreds of them do at a checkpoint; none may be killed on its way out, whose code would replace the 75."""
    job = jobs["leaving"]
    assert job.end()[:2] == ("FAILED", "75:0"), job.output()
    assert job.output().count("LEFT") == 2


def test_the_cache_is_on_each_node_and_removed(jobs: dict[str, Job]) -> None:
    jobs["seen"].end()
    (said,) = set(jobs["seen"].output().splitlines())
    assert jobs["seen"].output().count("SEEN") == 2
    _, cache, *threads = said.split()
    assert threads == ["1", "1"]
    assert cache.endswith(f"/numba-root-{jobs['seen'].id}")
    assert not Path(cache).exists()
    assert not list(Path(cache).parent.iterdir()), "what the script itself has there is removed too"


def test_any_other_failure_fails_the_job_with_its_code(slurm: Slurm, jobs: dict[str, Job]) -> None:
    job = jobs["failing"]
    assert job.end() == ("FAILED", "9:0", "0")
    assert job.events()[-1] == "exit 9"
    assert re.search(r"^failed .*exit code 9$", slurm.call(sys.executable, ROOT / "jobs/status.py", job.run_dir), re.M)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_small_run_completes(jobs: dict[str, Job], expected: np.ndarray, launcher: str) -> None:
    job = jobs[launcher]
    assert job.end() == ("COMPLETED", "0:0", "0"), job.output()
    np.testing.assert_array_equal(digests(job.run_dir), expected[:20])
    table = iwes_mpi.open_run(job.run_dir)
    assert (table.iterations["ranks"] == 2).all()
    assert table.attrs["nodes"] == 2
    assert job.events()[-1] == "exit 0"


def test_a_wrong_flag_is_refused_once_and_not_requeued(jobs: dict[str, Job]) -> None:
    job = jobs["wrong"]
    assert job.end() == ("FAILED", "2:0", "0")
    ours = [line for line in job.output().splitlines() if not line.startswith("srun: error: node")]
    assert len(ours) == 1
    assert "--sigma" in ours[0]
    assert job.field("JobState") == "FAILED"


def test_requeues_without_progress_end(jobs: dict[str, Job]) -> None:
    job = jobs["stalled"]
    assert job.end() == ("FAILED", "75:0", "1")
    assert "no further iteration than 0 after 1 requeues" in job.output()


def test_scancel_then_resubmission_resumes_to_the_same_bits(slurm: Slurm, expected: np.ndarray) -> None:
    job = slurm.submit(TRAIN, *FLAGS, "--iterations", "40", pause=SLOW)
    wait_for(lambda: job.iterations() >= 3, 120, "three iterations")
    status = slurm.call(sys.executable, ROOT / "jobs/status.py", job.run_dir)
    assert re.search(rf"^running .* job {job.id} RUNNING$", status, re.M), status

    slurm.call("scancel", job.id)
    job.wait("CANCELLED")
    done = job.iterations()
    assert 3 <= done < 40
    assert job.field("Restarts") == "0"
    assert job.events()[-1] == "exit 75", "the ranks did not get to write a checkpoint"
    status = slurm.call(sys.executable, ROOT / "jobs/status.py", job.run_dir)
    assert re.search(rf"^stalled .* job {job.id}, no job is on it$", status, re.M), status

    again = slurm.submit(TRAIN, *FLAGS, "--iterations", "40", run_dir=str(job.run_dir))
    assert again.end()[0] == "COMPLETED"
    table = iwes_mpi.open_run(job.run_dir).iterations
    np.testing.assert_array_equal(table["theta_digest"], expected[:40])
    assert table["wall_time"].is_monotonic_increasing
    assert re.search(r"^done ", slurm.call(sys.executable, ROOT / "jobs/status.py", job.run_dir), re.M)


def test_an_array_with_one_failing_element(slurm: Slurm, expected: np.ndarray) -> None:
    rows = ["figure\trun_dir\tpreset\tiw_updates\tlearning_rate\tseed\titerations"]
    rates = ("0.01", "-1", "0.01")
    rows += [f"0\t{slurm.folder}/runs/array/{i}\tpaper-ant\t1\t{rate}\t0\t20" for i, rate in enumerate(rates, start=1)]
    table = slurm.folder / "paper.tsv"
    table.write_text("\n".join(rows) + "\n")
    show = (sys.executable, ROOT / "jobs/status.py", table)

    options = ("--array=1-3%2", "--hold")
    flags = FLAGS[: FLAGS.index("--iw-updates")]  # flags after the script would override the row's
    job = slurm.submit(*options, ROOT / "jobs/paper.sbatch", *flags, TABLE=str(table))
    assert "3 runs: 3 waiting" in slurm.call(*show)
    slurm.call("scontrol", "release", job.id)
    for element, state in (("_1", "COMPLETED"), ("_2", "FAILED"), ("_3", "COMPLETED")):
        assert job.end(element=element)[0] == state
    assert job.field("ExitCode", "_2") == "2:0"
    for i in (1, 3):
        np.testing.assert_array_equal(digests(slurm.folder / f"runs/array/{i}"), expected[:20])
    assert re.search(r"--learning-rate.*-1", (slurm.folder / f"paper-{job.id}_2.out").read_text())
    assert "3 runs: 2 done, 1 failed" in slurm.call(*show)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_rank_ends_all_under_plain_srun(slurm: Slurm, fault: str, tmp_path: Path) -> None:
    """Without --kill-on-bad-exit srun itself would wait for the others for ever. Three ranks and one."""
    since = tmp_path / "since"
    command = ["srun", "--mpi=pmi2", "-n", "4", "-N", "2", "--distribution=block", sys.executable, "-m"]
    command += ["iwes_mpi.train", *faulty(fault, since), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        command, cwd=slurm.folder, env=slurm.environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert time.time() - since.stat().st_mtime < TOLD, done.stderr
    assert done.returncode not in (0, 2, 75)
    assert done.stderr.count(FAULTS[fault]) == 1, done.stderr
    died = f"iwes_mpi: rank 1 of 4 {'failed:' if fault == 'raise' else 'died without a word'}"
    assert done.stderr.count(died) == 1, done.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_rank_fails_the_job(slurm: Slurm, jobs: dict[str, Job], fault: str) -> None:
    job = jobs[fault]
    assert job.end()[::2] == ("FAILED", "0")
    assert job.output().count(FAULTS[fault]) == 1, job.output()
    # The script looks which nodes are left and how far the run is, too.
    last = (job.run_dir / "slurm.log").read_text().splitlines()[-1].split("\t")
    assert last[2] == "exit"
    took = (
        datetime.strptime(last[0], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        - (slurm.folder / f"since-{fault}").stat().st_mtime
    )
    assert took < 2 * TOLD


def test_a_killed_rank_is_started_again_at_once(slurm: Slurm, expected: np.ndarray) -> None:
    job = slurm.submit(TRAIN, *FLAGS, "--iterations", "40", pause=SLOW)
    wait_for(lambda: job.iterations() >= 3, 120, "three iterations")
    os.kill(rank_of(job, "1"), signal.SIGKILL)
    wait_for(lambda: "again" in job.events()[-1], 60, "the restart")
    assert "a rank was killed or crashed" in job.events()[-1]
    assert re.search(r"started again after [1-9]\d* iterations", job.output()), "counted before the ranks start"
    job.pause(0)
    assert job.end() == ("COMPLETED", "0:0", "0")
    np.testing.assert_array_equal(digests(job.run_dir), expected[:40])


def test_an_allocation_that_shrinks_and_grows_needs_no_flag(slurm: Slurm, expected: np.ndarray) -> None:
    job = slurm.submit(TRAIN, *FLAGS, "--iterations", "40", pause=SLOW)
    wait_for(lambda: job.iterations() >= 1 and ranks_now(job) == 2, 120, "an iteration on both nodes")
    slurm.call("scontrol", "update", f"JobId={job.id}", "NumNodes=1")
    wait_for(lambda: ranks_now(job) == 1, 120, "an iteration on the node that is left")
    assert job.field("Restarts") == "0"
    slurm.call("scontrol", "requeuehold", job.id)
    job.wait("PENDING", "REQUEUE_HOLD")
    for change in ("NumTasks=2", "NumNodes=2-2"):
        slurm.call("scontrol", "update", f"JobId={job.id}", change)
    slurm.call("scontrol", "release", job.id)
    wait_for(lambda: ranks_now(job) == 2, 120, "an iteration on both nodes again")
    job.pause(0)
    assert job.end() == ("COMPLETED", "0:0", "1")
    np.testing.assert_array_equal(digests(job.run_dir), expected[:40])


def rank_of(job: Job, number: str) -> int:
    """The process of a rank of a job."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            words = (process / "cmdline").read_bytes().split(b"\0")
            wanted = {f"SLURM_JOB_ID={job.id}".encode(), f"SLURM_PROCID={number}".encode()}
            if wanted <= set(variables) and b"iwes_mpi.train" in words and b"srun" not in words[0]:
                return int(process.name)
    raise AssertionError(f"job {job.id} has no rank {number}")


def test_three_time_limits_change_no_bit(jobs: dict[str, Job], expected: np.ndarray) -> None:
    limited = jobs["limited"]
    wait_for(lambda: int(limited.field("Restarts")) >= 3, 240, "three time limits")
    assert limited.iterations() < ITERATIONS
    limited.pause(0)
    assert limited.end(300)[0] == "COMPLETED"  # with a time limit or two more on a busy machine
    np.testing.assert_array_equal(digests(limited.run_dir), expected)
    events = limited.events()
    assert events.count("requeue stopped with a checkpoint") >= 3
    assert events[-1] == "exit 0"
    starts = [event.split(" on ")[0] for event in events if event.startswith("start")]
    assert starts == [f"start restart {i}" for i in range(int(limited.field("Restarts")) + 1)]
    assert not (limited.run_dir / "stalls").exists()


# After all others: it takes nodes away from the runs in the background too.
@pytest.mark.timeout(7200)
def test_a_lost_node_is_done_without(slurm: Slurm, expected: np.ndarray) -> None:
    """Twice, or IWES_NODE_KILLS times: the second rank's node, and that of the batch script, at a random moment."""
    rng, faults = random.Random(5), []
    for i in range(int(os.environ.get("IWES_NODE_KILLS", "2"))):
        node, other = (2, 1) if i % 2 == 0 else (1, 2)
        job = slurm.submit(TRAIN, *FLAGS, "--iterations", "24", pause=SLOW)
        # Fewer nodes than wanted are left: requeued by the script
        strict = slurm.submit(TRAIN, *FLAGS, "--iterations", "24", pause=SLOW, MIN_NODES="2") if i == 0 else None
        begun = [job, strict] if strict else [job]
        wait_for(job.events, 60, "the start")
        begin = time.time()
        wait_for(lambda begun=begun: min(some.iterations() for some in begun) >= 1, 180, "an iteration")
        start = time.time() - begin
        time.sleep(rng.uniform(0, 5))
        subprocess.run([CLUSTER, "kill-node", slurm.cluster, str(node)], check=True, timeout=60)
        begin, before = time.time(), job.iterations()
        wait_for(lambda job=job: "again" in job.events()[-1], 120, "the restart")
        again = time.time()
        assert job.events()[-1] == f"again a node was lost or given back: node{node}; on node{other}"
        wait_for(lambda job=job: ranks_now(job) == 1, 120, "an iteration on the node that is left")
        end = time.time()
        ranks = iwes_mpi.open_run(job.run_dir).iterations["ranks"].to_numpy()
        faults.append((again - begin, end - begin, before - int(np.flatnonzero(ranks == 1)[0]), start, node))
        print("restarted, next iteration [s], iterations lost, start [s], node:", *np.round(faults[-1], 1), flush=True)
        assert job.field("Restarts") == "0"
        if strict:
            wait_for(lambda job=strict: job.field("Restarts") == "1", 60, "the requeue")
        for some in begun:
            some.pause(0)
        subprocess.run([CLUSTER, "start-node", slurm.cluster, str(node)], check=True, timeout=30)
        for some in begun:
            assert some.end()[0] == "COMPLETED", some.output()
            np.testing.assert_array_equal(digests(some.run_dir), expected[:24])
        # Where the batch script was lost, the job starts once more when the run has ended, to tell Slurm so.
        ends = ["exit 0"] if node == 2 else ["exit 0", "start restart 1 on node[1-2] with 2 tasks", "exit 0"]
        assert job.events()[-len(ends) :] == ends
        assert len(job.events()) == 2 + len(ends), "no requeue"
        wait_for(lambda: slurm.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, 120, "the nodes")
    for node in (2, 1):
        some = np.array([fault for fault in faults if fault[-1] == node])
        for what, values in zip(
            ("restarted [s]", "next iteration [s]", "complete iterations lost", "for comparison: a start [s]"),
            some.T,
            strict=False,
        ):
            print(
                f"node{node} killed {len(some)} times: {what}: median {np.median(values):.1f}, most {values.max():.1f}"
            )


def ranks_now(job: Job) -> int:
    """Ranks that made the newest iteration."""
    return int(iwes_mpi.open_run(job.run_dir).iterations["ranks"].iloc[-1])
