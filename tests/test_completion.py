"""Shells complete the console scripts' flags, choices and files, also behind mpirun; tried at a real prompt."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import launch
import pytest

from iwes_mpi import completion
from iwes_mpi.settings.command_line import build_parser
from iwes_mpi.settings.wrong_input import WrongInput

START = {
    "bash": (["bash", "--norc", "-i"], "source {path}"),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit && compinit -u -D; eval "$(<{path})"'),
}  # as docs/quickstart.md says
TYPED = {
    "iwes-train --iw-up": "iwes-train --iw-updates ",
    "iwes-train --preset qui": "iwes-train --preset quickstart ",
    "mpirun -n 2 iwes-train --optimizer cl": "mpirun -n 2 iwes-train --optimizer clipup ",
    "iwes-export run --to on": "iwes-export run --to onnx ",
    "iwes-plot ./a-ru": "iwes-plot ./a-run/",
    "mpirun ./a-ru": "mpirun ./a-run/",  # all else is completed as before
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", START)
def test_a_tab_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "completion").write_text(completion.script(shell))
    (tmp_path / "a-run").mkdir()
    command, load = START[shell]
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(tmp_path), "PS1": "> "}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        try:
            os.write(ours, f"{load.format(path='./completion')}; COLUMNS=200; echo rea''dy\n".encode())
            expect(ours, "ready\r")
            for typed, completed in TYPED.items():
                os.write(ours, f"{typed}\t".encode())
                expect(ours, completed)
                os.write(ours, b"\x15")  # Ctrl-U empties the line
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)


def expect(terminal: int, text: str) -> None:
    """Read what a terminal shows until a text appears."""
    seen, deadline = "", time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < deadline, f"{text!r} does not appear in {seen!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")


def test_all_console_scripts_are_completed() -> None:
    project = tomllib.loads((launch.ROOT / "pyproject.toml").read_text())["project"]
    assert {f"iwes-{command}" for command in completion.COMMANDS} == set(project["scripts"])
    for shell in START:
        text = completion.script(shell)
        for script in project["scripts"]:
            assert re.search(rf"^(complete|  compdef) .*\b{script}$", text, flags=re.MULTILINE), f"{shell}: {script}"


def test_bash_knows_every_flag_of_training() -> None:
    (flags,) = re.findall(r"^_shtab_iwes_train_option_strings=\((.*)\)$", completion.script("bash"), flags=re.MULTILINE)
    assert set(flags.split()) == set(build_parser()._option_string_actions)


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(WrongInput, match=r"needs shtab .*: pip install 'iwes_mpi\[completion\]'"):
        completion.main(["bash"])
    monkeypatch.setattr(sys, "argv", ["completion", "bash"])
    with pytest.raises(SystemExit):
        completion.run()
    assert capsys.readouterr().err.startswith("iwes_mpi.completion: error: needs shtab (")
