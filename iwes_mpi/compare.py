"""``python -m iwes_mpi.compare RUN… --by SETTING --return X``: how many steps groups of runs need to a return."""

import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.meant import meant
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import comparison
from iwes_mpi.shown.chosen import read_runs
from iwes_mpi.shown.figures import group_runs

_FORMATS = ("png", "pdf", "svg")


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.compare``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.compare",
        description="Compare groups of runs by the environment steps they need to a return: how many of them reach it, "
        "the median of the survival curve, the interquartile mean, and the probability that a run of a group needs "
        "fewer steps than one of the first group; all with bootstrap intervals over runs. Each environment has its "
        "own table. Runs may be finished, going on or killed; they are only read.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run directories")
    parser.add_argument("--return", metavar="[ENV=]X", action="append", default=[],
                        help="the return to reach, in every environment or in ENV; any number of them")  # fmt: skip
    parser.add_argument("--by", metavar="SETTING[,SETTING]", action="append", default=[],
                        help="settings whose values divide the runs, such as iw_updates [default: all that change "
                        "results, except the seed]")  # fmt: skip
    parser.add_argument("--baseline", metavar="VALUE", help="the group that the others are compared with: its label, "
                        "or its values of --by with commas between [default: the first]")  # fmt: skip
    parser.add_argument("--limit", type=float, metavar="STEPS", help="steps after which nothing counts [default: the "
                        "smallest max_env_steps; or the steps of the shortest run without the return]")  # fmt: skip
    parser.add_argument("--resamples", type=int, default=2000, metavar="N",
                        help="of the runs, for the intervals [default 2000]")  # fmt: skip
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="of the intervals [default 0.95]")
    parser.add_argument("--latex", action="store_true", help="print the tables in LaTeX, for the package booktabs")
    parser.add_argument("-o", "--output", metavar="FILE", help=f"draw survival curves: .{', .'.join(_FORMATS)}")
    return parser


def read_names(texts: Sequence[str]) -> list[str]:
    """The settings that ``--by`` names. Raises WrongInput if one is unknown."""
    known = [f.name for f in fields(Config)]
    names = [name.strip().replace("-", "_") for text in texts for name in text.split(",")]
    for name in names:
        if name not in known:
            near = meant(name, known)
            raise WrongInput("by", f"there is no setting {name!r}" + (f"; is it {near}?" if near else ""))
    return list(dict.fromkeys(names))


def read_goals(texts: Sequence[str], environments: Sequence[str]) -> dict[str, list[float]]:
    """The returns of each environment, ascending. Raises WrongInput if a text is wrong, or an environment has none."""
    if not texts:
        raise WrongInput("return", "is needed: the return that runs are to reach, such as 2386")
    goals: dict[str, set[float]] = {name: set() for name in environments}
    for text in texts:
        where, separator, number = text.rpartition("=")
        if separator and where not in goals:
            raise WrongInput("return", f"{where} is not among the environments: {', '.join(environments)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise WrongInput("return", f"must be a number, or ENV=number, got {text!r}")
        for name in [where] if separator else environments:
            goals[name].add(value)
    for name, found in goals.items():
        if not found:
            raise WrongInput("return", f"there is none for {name}: {name}=X")
    return {name: sorted(found) for name, found in goals.items()}


def main(argv: Sequence[str]) -> int:
    """Print the tables, and draw the figure, that a command line asks for; returns the exit code.

    Raises
    ------
    WrongInput
        If anything in it is wrong, the runs tell too little, or a library is missing.
    """
    options = build_parser().parse_args(list(argv))
    if not 100 <= options.resamples <= 10**6:
        raise WrongInput("resamples", f"must lie between 100 and 1000000, got {options.resamples}")
    if not 0.5 <= options.level < 1:
        raise WrongInput("level", f"must be at least 0.5 and below 1, got {options.level:g}")
    if options.limit is not None and not 0 < options.limit < math.inf:
        raise WrongInput("limit", f"must be positive and finite, got {options.limit:g}")
    output = None if options.output is None else Path(options.output)
    if output is not None:
        if output.suffix.lower().lstrip(".") not in _FORMATS:
            raise WrongInput("output", f"{output}: the name must end in .{', .'.join(_FORMATS)}")
        if not output.parent.is_dir():
            raise WrongInput("output", f"{output.parent} is not a directory")
    _require("scipy", *(["matplotlib"] if output else []))
    by = read_names(options.by)
    found = comparison.by_environment(read_runs(options.runs, "compare"))
    goals = read_goals(getattr(options, "return"), list(found))
    comparisons = [
        comparison.compare(runs, goal, by, options.limit, options.baseline)
        for env_id, runs in found.items()
        for goal in goals[env_id]
    ]
    for env_id, runs in found.items():
        for setting in group_runs(runs, by=by):
            if further := comparison.pooled(setting, by):
                _tell(
                    f"runs of {env_id} with {setting.label} differ in {', '.join(further)} too, and count as one group"
                )
    for one in comparisons:
        short = sum(not o.reached and o.steps < one.limit for group in one.groups.values() for o in group)
        if short and math.isfinite(one.limit):
            _tell(f"{short} runs of {one.env_id} have not come to the limit nor the return; the mean counts the limit")

    write = comparison.latex_table if options.latex else comparison.text_table
    bootstrap = {"resamples": options.resamples, "level": options.level}
    tables = [write(comparison.title(c), comparison.cells(comparison.summarize(c, **bootstrap))) for c in comparisons]
    if together := comparison.summarize_all(comparisons, **bootstrap):
        heading = f"All {len(found)} environments: share of the limit spent to the highest return"
        tables.append(write(heading, comparison.cells(together, shares=True)))
    print("\n\n".join(tables))
    said = f"Intervals of {100 * options.level:g} %, from {options.resamples} resamplings. {comparison.EXPLANATION}"
    lines = textwrap.wrap(said, 110)
    print("\n" + "\n".join(f"% {line}" for line in lines) if options.latex else "\n" + "\n".join(lines))
    if output is not None:
        import matplotlib

        matplotlib.use("agg")
        try:
            comparison.figure(comparisons).savefig(output, dpi=150)
        except OSError as error:
            raise WrongInput("output", f"{output}: {error.strerror}") from None
    return 0


def _tell(text: str) -> None:
    """Tell of something that may be other than it seems."""
    print(f"iwes_mpi.compare: note: {text}", file=sys.stderr)


def _require(*modules: str) -> None:
    """Raise WrongInput if a library is missing."""
    for name in modules:
        try:
            __import__(name)
        except ImportError as error:
            raise WrongInput("iwes_mpi.compare", f"needs {name} ({error}): pip install 'iwes_mpi[compare]'") from None


def run() -> NoReturn:
    """Run the program on this process's command line."""
    run_without_mpi("iwes_mpi.compare", build_parser, main)


if __name__ == "__main__":
    run()
