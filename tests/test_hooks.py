"""``--on-iteration``: rank 0 hands each row to the user's function; and the console scripts."""

import importlib
import sys
import tomllib

import launch
import pytest

import iwes_mpi
from iwes_mpi.running.hook import find_hook
from iwes_mpi.settings.wrong_input import WrongInput

HOOK = """
import os
seen = []
def told(row):
    seen.append(row)
    with open("told.txt", "a") as file:
        print(os.getpid(), row.iteration, row.theta_digest, file=file)
def broken(row):
    raise KeyError("no such dashboard")
nothing = 3
"""
SCRIPT = "import os; os.chdir({folder!r}); from iwes_mpi import scripts; scripts.train()"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_hook.py").write_text(HOOK)
    return tmp_path


@pytest.mark.mpi
@pytest.mark.slow
def test_rank_0_is_told_of_each_iteration_and_no_bit_changes(folder):
    """Through the console script, in whose working directory the module lies."""
    script = ["-c", SCRIPT.format(folder=str(folder)), *launch.SMALL, "--run-dir", "run"]
    outcome = launch.run(2, *script, "--on-iteration", "my_hook:told")
    assert (outcome.code, outcome.err) == (0, "")
    told = [line.split() for line in (folder / "told.txt").read_text().splitlines()]
    digests = iwes_mpi.open_run(folder / "run").iterations["theta_digest"]
    assert [(int(n), int(digest)) for _, n, digest in told] == list(enumerate(digests))
    assert len({process for process, _, _ in told}) == 1

    outcome = launch.run(2, *script, "--resume", "--iterations", "5", "--on-iteration", "my_hook:broken")
    assert outcome.code == 1
    assert 'my_hook.py", line 9, in broken' in outcome.err, "the user's own traceback"
    assert outcome.err.count("KeyError: 'no such dashboard'") == 1
    assert len(iwes_mpi.open_run(folder / "run").iterations) == 5, "the row was logged before"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_hook", "must be module:function, got 'my_hook'"),
        (":told", "must be module:function"),
        ("no_such_module:f", "importing no_such_module failed: ModuleNotFoundError: No module named"),
        ("my_hook:absent", "the module my_hook has no absent"),
        ("my_hook:nothing", "my_hook:nothing cannot be called: it is int"),
    ],
)
def test_a_hook_that_is_not_there_is_refused(name, problem, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(WrongInput, match=f"^on_iteration: {problem}"):
        find_hook(name)
    sys.modules.pop("my_hook", None)


def test_console_scripts_are_there():
    """Each is the program of its name."""
    project = tomllib.loads((launch.ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {
        f"iwes-{name}"
        for name in ("train", "evaluate", "plot", "compare", "watch", "export", "supervise", "completion")
    }
    for script, target in project["scripts"].items():
        module, _, function = target.partition(":")
        assert script == f"iwes-{function}"
        assert callable(getattr(importlib.import_module(module), function))
