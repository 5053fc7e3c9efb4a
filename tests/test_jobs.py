"""jobs/ without a Slurm: tables, and what the scripts do with the exit codes and files that they meet."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import launch
import pytest
import stalled

ROOT = Path(__file__).resolve().parent.parent
OTHER = 12_345  # a user


def program(path: Path, script: str) -> None:
    """Write a program that stands in for another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


# -- train.sbatch -------------------------------------------------------------------------------------------------


class End(NamedTuple):
    """How the batch script ended."""

    code: int
    errors: str
    requeued: bool
    cache: str  # what the ranks got as NUMBA_CACHE_DIR


class Batch:
    """The batch script with stand-ins for Slurm, the launchers and the training program."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir, self.flags = folder, folder / "run", list[str]()
        self.run_dir.mkdir(mode=0o700)
        tools = folder / "bin"
        ranks = (
            f'echo "$NUMBA_CACHE_DIR" >"{folder}/cache"; echo "$*" "${{SLURM_TASKS_PER_NODE:-}}" >>"{folder}/calls"\n'
            f'set -- $RANKS_CODE; n=$(wc -l <"{folder}/calls"); [ "$n" -le $# ] || n=$#; exit "${{!n}}"'
        )
        program(
            tools / "srun",
            '[ "$1" != --help ] || exit 0\n[ "$1" != --job-name=pulse ] || exec cat >/dev/null\n'
            'if [[ $* == *--mpi=none* ]]; then [ "$NODES" = up ] || [[ $* == *--nodelist=$NODES\\ * ]] || exit 1\n'
            'while [ "$1" != bash ]; do shift; done; exec "$@"; fi\n' + ranks,
        )  # fmt: skip
        program(tools / "mpirun", ranks)
        program(
            tools / "scontrol",
            'case "$1 $2" in "show hostnames") tr , "\\n" <<<"$3";; show*) ;;\n'
            f'*) echo "$@" >"{folder}/scontrol";; esac',
        )
        program(tools / "python", 'echo "$ITERATIONS"')
        program(folder / "venv/bin/activate", f"PATH={tools}:$PATH")

    def run(self, ranks_code: int | str, iterations: str = "0", nodes: str = "up", **variables: str) -> End:
        """Run it; the ranks end with `ranks_code` or these codes in turn, after so many iterations in all.

        The nodes are "up", "lost", or all lost but one of this name.
        """
        environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NAME": "iwes", "VENV": str(self.folder / "venv"), "RUN_DIR": str(self.run_dir),
            "TMPDIR": str(self.folder / "node"), "RANKS_CODE": str(ranks_code), "ITERATIONS": iterations,
            "NODES": nodes,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", ROOT / "jobs/train.sbatch", *self.flags], cwd=self.folder, env=environment | variables,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        asked, cache = self.folder / "scontrol", self.folder / "cache"
        requeued = asked.exists() and asked.read_text() == "requeue 7\n"
        return End(done.returncode, done.stderr, requeued, cache.read_text().strip() if cache.exists() else "")

    @property
    def calls(self) -> list[str]:
        """The arguments of the launcher, each time that it was started."""
        return (self.folder / "calls").read_text().splitlines()

    @property
    def stalls(self) -> Path:
        """The file that counts requeues without progress."""
        return self.run_dir / "stalls"


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """A fresh one."""
    return Batch(tmp_path)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
@pytest.mark.parametrize(
    ("ranks_code", "nodes", "code", "requeued"),
    [
        (0, "up", 0, False),
        (2, "up", 2, False),
        (1, "up", 1, False),
        (137, "up", 137, False),
        (137, "lost", 137, True),
        (75, "up", 75, True),
        (75, "lost", 75, True),
        (138, "up", 75, True),  # killed by the USR1 that asks for a checkpoint, before they could catch it
        (10, "up", 75, True),  # the same as MPICH's mpirun puts it
    ],
)
def test_what_follows_from_an_exit_code(
    batch: Batch, launcher: str, ranks_code: int, nodes: str, code: int, requeued: bool
) -> None:
    end = batch.run(ranks_code, nodes=nodes, LAUNCHER=launcher)
    assert (end.code, end.requeued) == (code, requeued), end.errors


@pytest.mark.parametrize("flag", ["--run-dir", "--resume=auto"])
def test_flags_that_the_script_sets_are_refused(batch: Batch, flag: str) -> None:
    batch.flags = [flag, "elsewhere"]
    end = batch.run(0)
    assert end.code == 2
    assert end.errors == (
        f"train.sbatch: {flag}: is set by this script; name the run with the environment variable RUN_DIR\n"
    )


# A lost node, or a rank that is killed: the ranks are started again at once, in the same allocation.


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_killed_rank_is_started_again_at_once(batch: Batch, launcher: str) -> None:
    killed = "137" if launcher == "srun" else "9"
    end = batch.run(f"{killed} 139 0", LAUNCHER=launcher)
    assert (end.code, end.requeued, len(batch.calls)) == (0, False, 3), end.errors
    assert f"a rank was killed or crashed: code {killed}; on node" in (batch.run_dir / "slurm.log").read_text()


def test_restarts_without_progress_end(batch: Batch) -> None:
    end = batch.run(137, MAX_STALLS="2")
    assert (end.code, end.requeued, len(batch.calls)) == (137, False, 3)
    assert "no further iteration than 0 after 2 restarts (MAX_STALLS)" in end.errors
    assert not batch.stalls.exists()


NODES = {"SLURM_JOB_NODELIST": "a,b,c", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "12", "SLURMD_NODENAME": "b"}


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_the_ranks_go_on_without_the_node_that_is_lost(batch: Batch, launcher: str) -> None:
    end = batch.run("1 0", nodes="b", LAUNCHER=launcher, **NODES)
    assert (end.code, end.requeued) == (0, False), end.errors
    first, second = batch.calls
    assert "--nodelist" not in first
    assert ("--nodes=1 --ntasks=4 --nodelist=b --ntasks-per-node=4" if launcher == "srun" else "4(x1)") in second
    assert "a node was lost or given back: a c; on b" in (batch.run_dir / "slurm.log").read_text()


@pytest.mark.parametrize(("tasks", "placed"), [("8", True), ("12", False), ("11", False), ("16", True)])
def test_an_allocation_of_other_nodes_than_asked_for_has_as_many_ranks_on_each(
    batch: Batch, tasks: str, placed: bool
) -> None:
    """Slurm counts tasks at submission. 11 may be meant, on three nodes with four at most."""
    assert batch.run(0, **NODES | {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": "4"}).code == 0
    assert ("--nodes=3 --ntasks=12" in batch.calls[0]) == placed
    said = f"with {tasks if not placed else 12} tasks"
    assert said in (batch.run_dir / "slurm.log").read_text()


def test_too_few_nodes_are_a_requeue(batch: Batch) -> None:
    end = batch.run(1, nodes="b", MIN_NODES="2", **NODES)
    assert (end.code, end.requeued, len(batch.calls)) == (1, True, 1), end.errors


@pytest.mark.parametrize(
    ("before", "iterations", "after"),
    [*stalled.CASES, ("x x", "a[$(touch executed)]", "0 1")],
)
def test_requeues_without_progress_are_counted(
    batch: Batch, before: str | None, iterations: str, after: str | None
) -> None:
    if before is not None:
        batch.stalls.write_text(f"{before}\n", encoding="latin-1")
    end = batch.run(75, iterations)
    assert end.code == 75
    assert end.requeued == (after is not None), end.errors
    assert (batch.stalls.read_text() if batch.stalls.exists() else None) == (after and f"{after}\n")
    assert not (batch.folder / "executed").exists()
    said = [line for line in end.errors.splitlines() if not line.startswith("train.sbatch: ")]
    assert not said, "an error of Bash"


@pytest.mark.parametrize(
    "taken",
    ["no", "mine", "link", pytest.param("theirs", marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root"))],
)
def test_the_nodes_cache_is_never_somebody_elses(batch: Batch, taken: str) -> None:
    node = batch.folder / "node"
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    usual = node / f"numba-{user}-7"
    if taken != "no":
        node.mkdir()
        (node / "elsewhere").mkdir()
        usual.symlink_to(node / "elsewhere") if taken == "link" else usual.mkdir()
        if taken == "theirs":
            os.chown(usual, OTHER, OTHER)
    end = batch.run(0)
    assert end.code == 0, end.errors
    if taken in ("no", "mine"):
        assert end.cache == str(usual)
        assert not usual.exists()
    else:
        assert end.cache.startswith(f"{usual}-")
        assert usual.exists()
    assert not Path(end.cache).exists()
    assert not end.errors


@pytest.mark.parametrize(("variables", "called"), [({}, "mpirun --tag 1"), ({"LAUNCHER": "srun"}, "srun --mpi=pmix")])
def test_settings_of_the_site(batch: Batch, variables: dict[str, str], called: str) -> None:
    """From jobs/site.sh below the folder that was submitted from; the environment comes first."""
    for name in ("mpirun", "srun"):
        program(
            batch.folder / "bin" / name, f'echo "{name} $*" >>"{batch.folder}/called"; echo >"{batch.folder}/cache"'
        )
    (batch.folder / "jobs").mkdir()
    (batch.folder / "jobs" / "site.sh").write_text(
        "LAUNCHER=${LAUNCHER:-mpirun}\nMPI_TYPE=pmix\nLAUNCHER_FLAGS=(--tag 1)\n"
    )
    assert batch.run(0, SLURM_SUBMIT_DIR=str(batch.folder), **variables).code == 0
    assert (batch.folder / "called").read_text().startswith(called)


def test_the_example_of_a_site_changes_nothing(batch: Batch) -> None:
    (batch.folder / "jobs").mkdir()
    shutil.copy(ROOT / "jobs/site.example.sh", batch.folder / "jobs" / "site.sh")
    assert batch.run(75, "4").requeued
    ignored = subprocess.run(["git", "-C", ROOT, "check-ignore", "jobs/site.sh"], capture_output=True, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


# -- table.sbatch -------------------------------------------------------------------------------------------------


def table_batch(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit code and errors of table.sbatch, and what it called: sbatch, or train.sbatch."""
    program(tmp_path / "bin/sbatch", f'echo "TABLE=$TABLE sbatch $*" >"{tmp_path}/called"')
    program(tmp_path / "jobs/train.sbatch", f'printf "%s|" "$RUN_DIR" "$@" >"{tmp_path}/called"')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "jobs/table.sbatch", *arguments], env={"PATH": path} | variables, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    called = tmp_path / "called"
    return done.returncode, done.stderr, called.read_text().strip() if called.exists() else ""


SWEEP = 'run_dir\tfigure\tsigma\tenv_kwargs\nruns/a\t1\t0.1\t{}\nruns/b\t1\t0.2\t{"x y": 1}\nruns/c\t1\t0.2\n'


def test_an_array_fits_its_table(tmp_path: Path) -> None:
    (tmp_path / "sweep.tsv").write_text(SWEEP)
    script = ROOT / "jobs/table.sbatch"
    code, errors, called = table_batch(tmp_path, "sweep.tsv", "--nodes=2", "--", "--iterations", "9", AT_ONCE="2")
    assert (code, errors) == (0, "")
    assert called == (
        f"TABLE={tmp_path}/sweep.tsv sbatch --job-name=sweep --array=1-3%2 --nodes=2 {script} --iterations 9"
    )
    code, errors, _ = table_batch(tmp_path, "nothing.tsv")
    assert (code, errors.count("\n")) == (2, 1)


def test_an_element_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "sweep.tsv").write_text(SWEEP)
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "TABLE": "sweep.tsv"}
    assert table_batch(tmp_path, "--seed", "3", SLURM_ARRAY_TASK_ID="2", **job) == (
        0, "", 'runs/b|--sigma|0.2|--env-kwargs|{"x y": 1}|--seed|3|'
    )  # fmt: skip
    (tmp_path / "called").unlink()
    for element in ("3", "4"):
        code, errors, called = table_batch(tmp_path, SLURM_ARRAY_TASK_ID=element, **job)
        assert (code, called) == (2, "")
        assert f"no complete row {element}" in errors
    code, errors, called = table_batch(tmp_path, **job)
    assert (code, called) == (2, "")
    assert "bash jobs/table.sbatch sweep.tsv" in errors


SWITCHES = "run_dir\tcenter\tcross_fit\nruns/a\ttrue\tfalse\n"


def test_switches_in_a_table_are_flags(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(SWITCHES)
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "TABLE": "table.tsv", "SLURM_ARRAY_TASK_ID": "1"}
    assert table_batch(tmp_path, **job) == (0, "", "runs/a|--center|--no-cross-fit|")
    assert run_table(tmp_path, tmp_path / "table.tsv") == (0, "", ["runs/a"])
    assert "--center --no-cross-fit --run-dir" in (tmp_path / "calls").read_text()


def test_a_chosen_cache_is_kept(batch: Batch) -> None:
    assert batch.run(0, NUMBA_CACHE_DIR="/elsewhere").cache == "/elsewhere"
    assert not (batch.folder / "node").exists()


# -- run_table.py -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "options"), [("mpirun (Open MPI) 5.0.8", ["--bind-to", "none"]), ("HYDRA build details:", [])]
)
def test_runs_at_a_time_share_the_cores(tmp_path: Path, version: str, options: list[str]) -> None:
    tools = tmp_path / "bin"
    program(
        tools / "mpirun",
        f'if [ "$1" = --version ]; then echo "{version}"; else printf "%s " "$@" >"{tmp_path}/call"; fi',
    )
    python = tools / "python"  # whose folder is searched for mpirun first
    python.symlink_to(sys.executable)
    table = tmp_path / "table.tsv"
    table.write_text("figure\trun_dir\tseed\n1\truns/a\t3\n")
    subprocess.run([python, ROOT / "jobs/run_table.py", table, "--sigma", "0.1"], check=True, timeout=60)
    expected = [*options, *f"-n 1 {python} -m iwes_mpi.train --seed 3 --sigma 0.1 --run-dir runs/a".split()]
    assert (tmp_path / "call").read_text().split() == [*expected, "--resume", "auto", "--display", "none"]


def run_table(tmp_path: Path, *arguments: str | Path) -> tuple[int, str, list[str]]:
    """Exit code and errors of run_table.py with these arguments, and the directories of the runs that it began."""
    tools = tmp_path / "bin"
    program(tools / "mpirun", f'[ "$1" = --version ] || printf "%s\\n" "$*" >>"{tmp_path}/calls"')
    (tools / "python").symlink_to(sys.executable)
    done = subprocess.run(
        [tools / "python", ROOT / "jobs/run_table.py", *arguments], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return done.returncode, done.stderr, [call.split("--run-dir ")[1].split()[0] for call in calls]


TABLE = "figure\trun_dir\tseed\n2\truns/a\t3\n3-low\truns/b\t3\n2\truns/c\t4\n"


@pytest.mark.parametrize(
    ("figures", "begun"),
    [([], "abc"), (["--figure", "2"], "ac"), (["--figure", "3-low"], "b"), (["--figure", "2", "3-low"], "abc")],
)
def test_only_the_runs_of_some_figures(tmp_path: Path, figures: list[str], begun: str) -> None:
    (tmp_path / "table.tsv").write_text(TABLE)
    assert run_table(tmp_path, tmp_path / "table.tsv", *figures) == (0, "", [f"runs/{name}" for name in begun])


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        (TABLE.encode(), ["--parallel", "0"], "--parallel: must be at least 1, got 0"),
        (TABLE.encode(), ["--figure", "9"], "--figure: {table} has no 9, only 2, 3-low"),
        (TABLE.encode(), ["--figure", "2", "3"], "--figure: {table} has no 3, only 2, 3-low"),
        (None, [], "{table} cannot be read: No such file or directory"),
        (b"\xff\xfe\n", [], "{table} cannot be read: "),
        (b"", [], "{table} has no column run_dir, only nothing"),
        (b"name\tvalue\na\tb\n", [], "{table} has no column run_dir, only name, value"),
        (b"run_dir\tseed\n", [], "{table} has no rows"),
        (TABLE.encode() + b"2\truns/d", [], "{table}: row 4 has no seed"),  # cut short
        (TABLE.encode() + b"2\truns/d\t4\t5\n", [], "{table}: row 4 has more values than there are columns (3)"),
        (b"run_dir\tseed\nruns/a\t1\n", ["--figure", "2"], "--figure: {table} has no column figure"),
        (TABLE.encode(), ["--run", "d"], "--run: {table} has no run d"),
    ],
)
def test_a_table_without_such_runs_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, flags: list[str], said: str
) -> None:
    table = tmp_path / "table.tsv"
    if content is not None:
        table.write_bytes(content)
    code, errors, begun = run_table(tmp_path, table, *flags)
    assert (code, begun, len(errors.splitlines())) == (2, [], 1), errors
    assert errors.startswith(f"run_table.py: error: {said.format(table=table)}")


def test_a_table_without_figures_and_runs_by_name(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("run_dir\tseed\nruns/a\t3\nruns/b\t4\nother/c\t5\n")
    found = run_table(tmp_path, tmp_path / "table.tsv", "--run", "b", "other/c")
    assert found == (0, "", ["runs/b", "other/c"])


def test_paths_of_a_table_are_the_same_from_anywhere(tmp_path: Path) -> None:
    """`run_table.py` runs in the repository: `status.py` looks there, too, wherever it is called."""
    (tmp_path / "table.tsv").write_text("run_dir\nruns/no-such-run\n/elsewhere/run\n")
    (tmp_path / "runs" / "no-such-run").mkdir(parents=True)
    (tmp_path / "runs" / "no-such-run" / "slurm.log").write_text("now\t7\texit\t9\n")
    done = subprocess.run(
        [sys.executable, ROOT / "jobs/status.py", "table.tsv"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["waiting", "waiting"]
    assert "runs/no-such-run" in done.stdout
    assert str(ROOT) not in done.stdout


@pytest.mark.mpi
def test_open_mpi_is_told_from_others() -> None:
    version = subprocess.run(
        [launch.BIN / "mpirun", "--version"], env=launch.environment(), capture_output=True, text=True, check=True
    ).stdout
    assert ("Open MPI" in version) == launch.is_open_mpi()


# -- tables and scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["paper", "scaled", "reference", "sample_efficiency", "options", "controls", "populations"]
)
def test_a_table_is_what_its_generator_prints(name: str) -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "jobs/tables.py", name], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert made == (ROOT / f"jobs/{name}.tsv").read_text()
    rows = [line.split("\t") for line in made.splitlines()[1:]]
    assert len({row[1] for row in rows}) == len(rows), "runs share a directory"


def test_a_grid_has_every_combination_once() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "jobs/tables.py", "grid", "runs/s/", "config=a.toml", "--iw-updates=0,2", "seed=9-11"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    head, *rows = [line.split("\t") for line in made.splitlines()]
    assert head == ["run_dir", "config", "iw_updates", "seed"]
    assert [row[1:] for row in rows] == [["a.toml", k, seed] for seed in ("9", "10", "11") for k in ("0", "2")]
    assert rows[1][0] == "runs/s/iw_updates2-seed9"
    assert len({row[0] for row in rows}) == 6
    for wrong in (["seed"], ["seed=1,"], ["seed=1", "seed=2"], ["run_dir=x"], []):
        done = subprocess.run(
            [sys.executable, ROOT / "jobs/tables.py", "grid", "runs/s", *wrong], capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_the_table_of_the_paper_has_its_settings() -> None:
    """Network sizes and learning rates of each figure as in the paper, K = 0 ... 5 and five seeds of each."""
    rows = [line.split("\t") for line in (ROOT / "jobs/paper.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 150
    for figure, presets, rates in (
        ("1", {"paper-ant"}, {"1e-4"}),
        ("2", {"paper-ant-256", "paper-ant-512"}, {"1e-4"}),
        ("4", {"paper-ant"}, {"1e-3", "1e-2"}),
    ):
        settings = {tuple(row[2:6]) for row in rows if row[0] == figure}
        assert settings == {
            (preset, str(k), rate, str(seed))
            for preset in presets for k in range(6) for rate in rates for seed in range(1, 6)
        }  # fmt: skip
    assert "#SBATCH --array=1-150%" in (ROOT / "jobs/paper.sbatch").read_text()


def test_scripts_are_clean() -> None:
    if not shutil.which("shellcheck"):
        if os.environ.get("CI") == "true":
            pytest.fail("CI must check the scripts, but shellcheck is not installed (tests/slurm/cluster.sh install)")
        pytest.skip("shellcheck is not installed")
    scripts = [
        *(ROOT / "jobs").glob("*.sbatch"),
        *(ROOT / "jobs").glob("*.sh"),
        ROOT / "tests/slurm/cluster.sh",
        ROOT / ".ci/run",
    ]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
