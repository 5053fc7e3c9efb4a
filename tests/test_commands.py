"""What a stranger types: the package itself, ``--version``, flags of other programs, a run that is over already."""

import subprocess
import sys
from pathlib import Path

import launch
import pytest

import iwes_mpi
from iwes_mpi import __main__ as overview
from iwes_mpi import evaluate, plot
from iwes_mpi.settings.command_line import build_parser, flag, parse
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import reached_limit
from iwes_mpi.settings.meant import KNOWN_AS
from iwes_mpi.settings.wrong_input import WrongInput

ROOT = Path(__file__).resolve().parent.parent


def test_the_package_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    programs = {
        path.stem for path in (ROOT / "iwes_mpi").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
    } - {"__main__"}
    assert set(overview.commands()) == programs >= {"train", "evaluate", "plot", "watch", "compare"}
    assert all(overview.commands().values()), "each says what it is for"
    assert overview.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"python -m iwes_mpi.{name} " in out for name in programs)
    assert overview.main(["train", "--seed", "3"]) == 2
    assert (
        "nothing was run: train is not an argument of this list; say python -m iwes_mpi.train"
        in capsys.readouterr().err
    )


def test_the_package_is_typed_and_lists_what_it_has() -> None:
    assert (ROOT / "iwes_mpi" / "py.typed").exists()
    assert {"open_run", "Run", "__version__"} <= set(dir(iwes_mpi))


def test_every_command_knows_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    for build in (build_parser, plot.build_parser, evaluate.build_parser):
        with pytest.raises(SystemExit) as done:
            build().parse_args(["--version"])
        assert done.value.code == 0
        assert capsys.readouterr().out == f"iwes_mpi {iwes_mpi.__version__}\n"


@pytest.mark.slow
def test_train_tells_its_version_without_mpi() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iwes_mpi.train", "--version"], env=launch.environment(), capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == f"iwes_mpi {iwes_mpi.__version__}\n"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--lr", "--learning-rate"), ("--LR=3", "--learning-rate"), ("--n_pairs", "--n-pairs"),
        ("--env", "--env-id"), ("--learning-rat", "--learning-rate"), ("--iteration", "--iterations"),
    ],
)  # fmt: skip
def test_the_flag_that_was_meant_is_named(given: str, meant: str) -> None:
    with pytest.raises(WrongInput, match=f"is it {meant}\\?"):
        parse([given, "1"])


def test_other_programs_names_lead_to_settings() -> None:
    known = build_parser()._option_string_actions
    assert {flag(name) for name in KNOWN_AS.values()} <= set(known)
    assert not {flag(name) for name in KNOWN_AS} & set(known)


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        ({}, None),
        ({"iterations": 5}, "iterations"),
        ({"iterations": 6}, None),
        ({"iterations": 6, "max_env_steps": 100}, "max_env_steps"),
        ({"max_env_steps": 101}, None),
        ({"stop_at_return": 2.0}, "stop_at_return"),
        ({"stop_at_return": 2.1}, None),
    ],
)
def test_the_limit_that_was_reached(limits: dict[str, float], reached: str | None) -> None:
    assert reached_limit(Config(**limits), 5, 100, [9.0, 1, 2, 3]) == reached


@pytest.mark.slow
@pytest.mark.mpi
def test_a_run_that_is_over_says_which_limit_ended_it(tmp_path: Path) -> None:
    run_dir = ["--run-dir", str(tmp_path / "run"), "--display", "lines"]
    assert launch.train(1, *launch.SMALL, "--max-env-steps", "1", *run_dir).code == 0
    again = launch.train(1, "--resume", "--iterations", "500", *run_dir)
    assert again.code == 0
    line = (
        "warning: nothing is left to do: --max-env-steps 1 is reached; give another, or lift it by --max-env-steps none"
    )
    assert again.out.splitlines().count(line) == 1
    assert "another kind of CPU" not in again.out
