"""``python -m iwes_mpi.watch RUN``: follow a run from its log in a second terminal, without touching it.

Only the log is read, in HDF5's mode for reading beside a writer, without locks; so the run may be on another host
and the log on a network file system.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from iwes_mpi.files.run import X
from iwes_mpi.settings.command_line import ArgumentParser, run_without_mpi
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown.view import View, frame, look

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

X_AXES: dict[str, X] = {"env-steps": "env_steps", "wall-time": "wall_time", "iterations": "iteration"}


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.watch``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.watch",
        description="Follow a run from its log: its learning curve and last rows, in the terminal. The run is not "
        "touched; it may be on another host, not have started yet, or be over. Ends when the run has finished, or "
        "with Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="X", help="look for news every so many seconds [default 2]"
    )
    parser.add_argument("--once", action="store_true", help="show the run as it is now, and end")
    parser.add_argument("--x", choices=X_AXES, default="env-steps", help="horizontal axis [default env-steps]")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="last rows to show [default 8]")
    return parser


def _draw(console: "Console", view: View, run_dir: Path, options: argparse.Namespace) -> "RenderableType":
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    size = console.size
    return frame(view, run_dir, X_AXES[options.x], options.rows, size.width, size.height, ascii_only)


def follow(console: "Console", run_dir: Path, options: argparse.Namespace) -> View:
    """Show a run until it has finished, or Ctrl-C; returns what was seen last."""
    from rich.live import Live

    view = look(run_dir)
    if not console.is_terminal:  # a pipe or a file: a frame whenever there is news
        console.print(_draw(console, view, run_dir, options))
        while view.state != "finished":
            time.sleep(options.interval)
            before, view = view, look(run_dir, view)
            if view.state != before.state or (view.stamp != before.stamp and view.state != "unreadable"):
                console.print(_draw(console, view, run_dir, options))
        return view
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(_draw(console, view, run_dir, options), refresh=True)
                if view.state == "finished":
                    break
                time.sleep(options.interval)
                view = look(run_dir, view)
        except KeyboardInterrupt:
            pass
    console.print(_draw(console, view, run_dir, options))
    return view


def main(argv: Sequence[str]) -> int:
    """Watch the run that a command line names; returns the exit code. Raises WrongInput if it is wrong."""
    from rich.console import Console

    options = build_parser().parse_args(list(argv))
    if not 0.1 <= options.interval <= 86400:
        raise WrongInput("interval", f"must lie between 0.1 and 86400 s, got {options.interval:g}")
    if options.rows < 1:
        raise WrongInput("rows", f"must be at least 1, got {options.rows}")
    run_dir = Path(options.run)
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise WrongInput("run", f"{run_dir} is not a run directory")
    except OSError as error:  # a name that is too long, say
        raise WrongInput("run", f"{run_dir}: {error.strerror}") from None
    console = Console(highlight=False)
    if options.once:
        console.print(_draw(console, look(run_dir), run_dir, options))
    else:
        follow(console, run_dir, options)
    return 0


def run() -> NoReturn:
    """Run the program on this process's command line."""
    try:
        run_without_mpi("iwes_mpi.watch", build_parser, main)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    run()
