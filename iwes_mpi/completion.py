"""``python -m iwes_mpi.completion SHELL``: a script that makes bash or zsh complete the console scripts' flags."""

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.sources import preset_names
from iwes_mpi.settings.wrong_input import WrongInput

COMMANDS = ("train", "evaluate", "plot", "compare", "watch", "export", "supervise", "completion")

# Completes what follows `mpirun -n 8`, as if the words before the command were not there
_BEHIND_MPIRUN = {
    "bash": """\
_iwes_behind_mpirun() {
  local at
  for ((at = 1; at < COMP_CWORD; at++)); do
    case ${COMP_WORDS[at]##*/} in NAMES)
      local complete_it=_shtab_${COMP_WORDS[at]##*/}
      COMP_WORDS=("${COMP_WORDS[@]:at}")
      COMP_CWORD=$((COMP_CWORD - at))
      ${complete_it//-/_}
      return
    esac
  done
}
complete -o bashdefault -o default -F _iwes_behind_mpirun mpirun mpiexec
""",
    "zsh": """\
_iwes_behind_mpirun() {
  local at
  for ((at = 2; at < CURRENT; at++)); do
    case ${words[at]:t} in NAMES)
      shift $((at - 1)) words
      ((CURRENT -= at - 1))
      _normal
      return
    esac
  done
  _default
}
compdef _iwes_behind_mpirun mpirun mpiexec
""",
}


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.completion``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.completion",
        description="Print a script for a shell that completes the flags and their choices for iwes-train and the "
        "other console scripts, also behind mpirun. docs/quickstart.md says where to put it.",
    )
    parser.add_argument("shell", choices=tuple(_BEHIND_MPIRUN), help="the shell")
    return parser


def _parser_of(command: str) -> argparse.ArgumentParser:
    """The command line of a console script, with what else a shell can complete: presets and names of files."""
    import shtab

    parser: argparse.ArgumentParser = importlib.import_module(f"iwes_mpi.{command}").build_parser()
    parser.prog = f"iwes-{command}"
    for action in parser._actions:
        if action.dest == "preset":
            action.choices = preset_names()
        elif action.dest == "run_dir" or action.metavar in ("FILE", "RUN"):
            action.complete = shtab.DIRECTORY if action.dest == "run_dir" else shtab.FILE  # type: ignore[attr-defined]
    return parser


def script(shell: str) -> str:
    """The script for a shell, ``bash`` or ``zsh``. Raises WrongInput if the library that writes it is absent."""
    try:
        import shtab
    except ImportError as error:
        raise WrongInput("iwes_mpi.completion", f"needs shtab ({error}): pip install 'iwes_mpi[completion]'") from None
    parts = [shtab.complete(_parser_of(command), shell) for command in COMMANDS]
    names = "|".join(f"iwes-{command}" for command in COMMANDS)
    return "\n".join([*parts, _BEHIND_MPIRUN[shell].replace("NAMES", names)])


def main(argv: Sequence[str]) -> int:
    """Print the script that a command line asks for; returns the exit code. Raises WrongInput if it is wrong."""
    print(script(build_parser().parse_args(list(argv)).shell))
    return 0


def run() -> NoReturn:
    """Run the program on this process's command line."""
    run_without_mpi("iwes_mpi.completion", build_parser, main)


if __name__ == "__main__":
    run()
