"""Command lines: the flags of every setting, their help, and errors in the words of the command line.

This is the one place that knows how a setting's name becomes a flag: ``n_pairs`` is ``--n-pairs``. Texts elsewhere
name settings in backquotes (`wrong_input`); `ArgumentParser.spell` turns these into flags.
"""

import argparse
import contextlib
import dataclasses
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from iwes_mpi.settings import values
from iwes_mpi.settings.config import GROUPS, Config, check_together
from iwes_mpi.settings.meant import meant
from iwes_mpi.settings.sources import load_preset, load_toml, preset_names
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.version import __version__


def flag(name: str) -> str:
    """The command-line flag of the setting `name`: ``n_pairs`` gives ``--n-pairs``."""
    return "--" + name.replace("_", "-")


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are `WrongInput`, and which spells such errors in flags; knows ``--version``."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_argument("--version", action="version", version=f"iwes_mpi {__version__}", help="print the version")

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, naming the setting."""
        setting, separator, problem = message.removeprefix("argument ").partition(": ")
        if message.startswith("argument ") and separator:
            action = self._option_string_actions.get(setting.rpartition("/")[2])
            raise WrongInput(action.dest if action else setting, problem)
        if message.startswith("unrecognized arguments: "):
            unknown = next((word for word in message.split()[2:] if word != "--"), "--")
            near = self._near(unknown.partition("=")[0].lower().replace("_", "-")) if unknown.startswith("-") else ""
            raise WrongInput(unknown, f"is not a setting of this program; {f'is it {near}?' if near else 'see --help'}")
        raise WrongInput("command line", message)

    def _near(self, unknown: str) -> str:
        """The flag that an unknown one may stand for; empty if there is none."""
        known = {option.lstrip("-").replace("-", "_"): option for option in self._option_string_actions}
        return known.get(meant(unknown.lstrip("-").replace("-", "_"), known), "")

    def _spelled(self, name: str) -> str | None:
        """How this command line calls a setting; None if it has none of this name."""
        for action in self._actions:
            if action.dest == name:
                longest = max(action.option_strings, key=len, default="")
                return flag(name) if flag(name) in action.option_strings else longest or str(action.metavar or name)
        return None

    def spell(self, text: str) -> str:
        """A text with the settings that it names in backquotes as flags."""
        return re.sub(r"`(\w+)`", lambda found: self._spelled(found[1]) or found[1], text)

    def describe(self, error: WrongInput) -> str:
        """One line for whoever wrote the command line."""
        parts = (error.source, self._spelled(error.setting) or error.setting, error.problem)
        return ": ".join(self.spell(part) for part in parts if part)


def run_without_mpi(
    name: str, build_parser: Callable[[], ArgumentParser], main: Callable[[Sequence[str]], int]
) -> NoReturn:
    """Run a program that is one process on its command line, and end the process with its exit code.

    Parameters
    ----------
    name : str
        As it introduces its errors.
    build_parser : callable
        Makes the parser that knows how settings are spelled.
    main : callable
        Takes the arguments, returns the exit code; a WrongInput that it raises is said in one line, with exit code 2.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except WrongInput as problem:
        said = build_parser().describe(problem).removeprefix(f"{name}: ")  # where the program itself lacks something
        print(f"{name}: error: {said}", file=sys.stderr)
        sys.exit(2)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps names such as paper-ant-512 in one piece."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


@dataclass(frozen=True)
class Request:
    """What a command line asks for: the settings it names (by source) and how to begin."""

    settings: dict[str, Any]  # by name, in order of precedence already merged
    resume: Literal["never", "always", "auto"]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a new run, if not those of `Config`

    def config(self, recorded: Config | None = None) -> Config:
        """The run's configuration: what was asked for, over `recorded` (a run being resumed) or the defaults."""
        base = self.defaults
        if recorded is not None:
            base = {f.name: getattr(recorded, f.name) for f in dataclasses.fields(recorded)}
        return Config(**(base | self.settings))


def _from_text(name: str, hint: Any) -> Callable[[str], Any]:
    """A function that reads a setting's value from the text of a flag."""

    def read(text: str) -> Any:
        wanted = values.target(hint)
        if wanted is not hint and text == "none":
            return None
        if typing.get_origin(wanted) is tuple:
            wanted = typing.get_args(wanted)[0]
        value: Any = text
        if wanted in (int, float):
            with contextlib.suppress(ValueError):
                value = int(text) if wanted is int and "e" not in text.lower() else float(text)
        try:
            return values.coerce(name, wanted, value)
        except WrongInput as error:
            raise argparse.ArgumentTypeError(error.problem) from None

    return read


def _metavar(hint: Any) -> str | None:
    wanted = values.target(hint)
    if typing.get_origin(wanted) is Literal:
        return None
    return "N" if typing.get_origin(wanted) is tuple else {int: "N", float: "X", str: "TEXT"}.get(wanted, "JSON")


def _help(field: dataclasses.Field[Any]) -> str:
    default = {} if field.default is dataclasses.MISSING else field.default
    text, choices = field.metadata["help"], field.metadata["choices"]
    if choices is not None:
        text += ". " + "; ".join(f"{name}: {choices.summary(name)}" for name in choices.names)
    parts = [field.metadata["unit"]] if field.metadata["unit"] else []
    if "(default" not in text:
        shown = "none" if default is None or default == {} else default
        shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else shown
        shown = {True: "on", False: "off"}.get(shown, shown) if isinstance(shown, bool) else shown
        parts.append(f"default {shown}")
    return str(text + (f" [{'; '.join(parts)}]" if parts else "")).replace("%", "%%")


_DESCRIPTION = """\
Train a policy with Importance Weighted Evolution Strategies (IW-ES) under MPI.

Each iteration perturbs the policy's parameters theta with Gaussian noise of deviation sigma, runs one episode
per perturbed policy on all ranks, and moves theta toward the perturbations that did well. Plain ES then throws
these episodes away. IW-ES makes up to K more updates from them: since theta has moved, each sample is weighted by
the ratio of its density under the new and the old search distribution. The effective sample size (ESS) says how
much of the population still counts."""

_EPILOG = """\
exit codes:
  0   finished: a limit was reached
  2   wrong input; nothing was run
  74  the run directory could not be written (disk full, quota): continue with --resume once it can
  75  stopped early (a signal, or --max-wall-time) with a checkpoint: continue with --resume
  any other: a failure

examples:
  mpirun -n 2 python -m iwes_mpi.train --preset quickstart
  mpirun -n 720 python -m iwes_mpi.train --preset paper-ant --seed 3 --run-dir runs/ant-3
  mpirun -n 96 python -m iwes_mpi.train --resume --run-dir runs/ant-3 --iterations 500"""


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.train``, made from the fields of `Config`."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.train",
        usage="mpirun -n RANKS python -m iwes_mpi.train [--preset NAME] [--config FILE] [settings]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    start = parser.add_argument_group("where settings come from", "Later ones override earlier ones.")
    start.add_argument("--preset", metavar="NAME", help=f"named settings: {', '.join(preset_names())}")
    start.add_argument("--config", metavar="FILE", help="settings from a TOML file, such as a run's config.toml")
    hints = typing.get_type_hints(Config)
    for name, description in GROUPS.items():
        group = parser.add_argument_group(name, textwrap.fill(description, 100))
        for field in dataclasses.fields(Config):
            if field.metadata["group"] == name:
                _add_setting(group, field, hints[field.name])
        if name == "run":
            group.add_argument(
                "--resume",
                nargs="?",
                const="always",
                choices=("always", "auto"),
                help="continue the run in --run-dir with its recorded settings, on any number of ranks; "
                "'auto' starts a new one if there is none",
            )
            group.add_argument(
                "--dry-run",
                action="store_true",
                help="time a few episodes, print sizes, memory, steps and seconds per iteration, and end; nothing is "
                "written",
            )
    for action in parser._actions:
        action.help = action.help and parser.spell(action.help)
    return parser


def _add_setting(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add the flag of a setting to a group of the help."""
    options: dict[str, Any] = {"help": _help(field)}
    choices = field.metadata["choices"]
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif choices is not None:
        options |= {"type": str, "choices": choices.names}
    elif typing.get_origin(hint) is Literal:
        options |= {"type": str, "choices": typing.get_args(hint)}
    else:
        options |= {"type": _from_text(field.name, hint), "metavar": _metavar(hint)}
        if typing.get_origin(hint) is tuple:
            options["nargs"] = "*"
    group.add_argument(flag(field.name), **options)


def parse(argv: Sequence[str]) -> Request:
    """What a command line asks for, with preset and file read and merged.

    Raises
    ------
    WrongInput
        For anything wrong in it, naming the setting.
    SystemExit
        After printing the help, if that is what it asks for.
    """
    given = vars(build_parser().parse_args(list(argv)))
    resume = given.pop("resume", "never")
    given.pop("dry_run", None)  # the program looks for it itself
    settings: dict[str, Any] = {}
    if (preset := given.pop("preset", None)) is not None:
        settings |= load_preset(preset)
    if (path := given.pop("config", None)) is not None:
        settings |= load_toml(path)
        Config.from_dict(settings, f"`config` {path}")
    request = Request(settings | given, resume)
    config = request.config()
    if resume == "never":  # else the run's recorded settings may be others than the defaults
        check_together(config)
    if resume != "never" and request.settings.get("run_dir") is None:
        raise WrongInput("resume", "needs `run_dir`, the directory of the run to continue")
    return request
