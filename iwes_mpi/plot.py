"""``python -m iwes_mpi.plot RUN… -o FILE``: figures of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from iwes_mpi.files.run import X
from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown.chosen import read_runs
from iwes_mpi.shown.figures import BANDS, group_runs, overview

_X_NAMES: dict[str, X] = {"env-steps": "env_steps", "wall-time": "wall_time", "iterations": "iteration"}
_FORMATS = ("png", "pdf", "svg", "eps", "jpg", "webp")


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.plot``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.plot",
        description="Draw learning curves, time per iteration by phase, and the effective sample size (ESS) and KL "
        "divergence of importance-weighted updates. Runs that differ in their seed only become a mean with a band. "
        "They may be finished, going on or killed; they are only read. Those that cannot be read yet are left out.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run directories")
    parser.add_argument("-o", "--output", metavar="FILE", help=f"the figure: .{', .'.join(_FORMATS)}")
    parser.add_argument(
        "--x", choices=_X_NAMES, default="env-steps", help="horizontal axis of the curves [default env-steps]"
    )
    parser.add_argument("--band", choices=BANDS, default="min-max",
                        help="what the band shows of the runs of a setting [default min-max]")  # fmt: skip
    parser.add_argument("--dpi", type=int, default=150, metavar="N", help="dots per inch of a picture [default 150]")
    return parser


def main(argv: Sequence[str]) -> int:
    """Draw the figure that a command line asks for; returns the exit code.

    Raises
    ------
    WrongInput
        If anything in it is wrong, or matplotlib is missing.
    """
    options = build_parser().parse_args(list(argv))
    if options.output is None and options.runs:
        raise WrongInput("output", "is needed: -o FILE says where the figure goes")
    if not 10 <= options.dpi <= 2400:
        raise WrongInput("dpi", f"must lie between 10 and 2400, got {options.dpi}")
    output = Path(options.output or "")
    if options.runs and output.suffix.lower().lstrip(".") not in _FORMATS:
        raise WrongInput("output", f"{output}: the name must end in .{', .'.join(_FORMATS)}")
    if not output.parent.is_dir():
        raise WrongInput("output", f"{output.parent} is not a directory")
    runs = read_runs(options.runs, "plot")
    try:
        import matplotlib
    except ImportError as error:
        raise WrongInput("iwes_mpi.plot", f"needs matplotlib ({error}): pip install 'iwes_mpi[plot]'") from None
    matplotlib.use("agg")
    try:
        with np.errstate(all="ignore"):  # a log may hold any numbers
            overview(runs, _X_NAMES[options.x], options.band).savefig(output, dpi=options.dpi)
    except OSError as error:
        raise WrongInput("output", f"{output}: {error.strerror}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise WrongInput("runs", f"their numbers cannot be drawn ({type(error).__name__}: {error})") from None
    n = len(group_runs(runs))
    print(f"{one_line(output)}: {len(runs)} run{'s' if len(runs) > 1 else ''} of {n} setting{'s' if n > 1 else ''}")
    return 0


def run() -> NoReturn:
    """Run the program on this process's command line."""
    run_without_mpi("iwes_mpi.plot", build_parser, main)


if __name__ == "__main__":
    run()
