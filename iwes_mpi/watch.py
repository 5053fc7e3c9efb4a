"""``python -m iwes_mpi.watch RUN``: follow a run from its log in a second terminal, without touching it.

Only the log is read, in HDF5's mode for reading beside a writer, without locks; so the run may be on another host
and the log on a network file system.
"""

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import ArgumentParser, Config, ConfigError
from iwes_mpi.console import clock
from iwes_mpi.runlog import LOG, LogError, Run, is_being_written, open_run

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType

State = Literal["waiting", "unreadable", "running", "silent", "stopped", "finished"]
COLOURS: dict[State, str] = {
    "waiting": "yellow",
    "unreadable": "yellow",
    "running": "green",
    "silent": "red",
    "stopped": "yellow",
    "finished": "bold green",
}
X_AXES = {"env-steps": "env_steps", "wall-time": "wall_time", "iterations": "iteration"}
_SILENCE = 120.0  # s without news before a run may be called silent; NFS may hold back a change for 60 s
_PATIENCE = 10  # iterations' time without news before a run is called silent
_CLOCK_SKEW = 300.0  # s by which the clocks of this host and of the log's file system may differ


# -- what there is to see ------------------------------------------------------------------------------------


class View(NamedTuple):
    """A run at one moment."""

    state: State
    text: str  # the state in words
    run: Run | None  # the last that could be read
    stamp: tuple[int, int, int] | None  # of the log file
    since: float | None = None  # time from which on the log is known not to have changed, by time.monotonic(), s


def _stamp(log: Path) -> tuple[int, int, int] | None:
    """What changes when a log changes: inode, size, time of modification (ns). None if there is no log."""
    try:
        info = log.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def limit_reached(config: Config, iterations: "pd.DataFrame") -> bool:
    """Whether a run with these rows has all its iterations or environment steps."""
    env_steps = int(iterations["env_steps"].iloc[-1]) if len(iterations) else 0
    return (config.iterations is not None and len(iterations) >= config.iterations) or (
        config.max_env_steps is not None and env_steps >= config.max_env_steps
    )


def look(run_dir: Path, before: View | None = None, now: float | None = None) -> View:
    """A run as it is now; the log is read again only if it has changed since the view `before`.

    Parameters
    ----------
    run_dir : Path
    before : View or None
        Kept on show if the log cannot be read just now.
    now : float or None
        s, by default of time.monotonic(). Silence is timed by this clock from the last change that was seen. At the
        first look, the log's time of modification tells how long it has been silent, less what clocks may differ by.
    """
    now = time.monotonic() if now is None else now
    log = run_dir / LOG
    seen = before.run if before else None
    stamp = _stamp(log)
    if stamp is None:
        what = "has no log yet" if run_dir.is_dir() else "does not exist yet"
        return View("waiting", f"waiting: {run_dir} {what}", seen, None)
    if before is None:
        since = now - max(0.0, time.time() - stamp[2] / 1e9 - _CLOCK_SKEW)
    else:
        since = before.since if before.stamp == stamp and before.since is not None else now
    try:
        if seen is None or before is None or before.state == "unreadable" or before.stamp != stamp:
            seen = open_run(run_dir)
            _ = seen.config, seen.iterations, seen.updates
        writing = is_being_written(log)
    except (LogError, OSError) as error:
        return View("unreadable", f"cannot be read just now ({error})", before.run if before else None, stamp, since)
    state, text = _state(seen, writing, now - since)
    return View(state, text, seen, stamp, since)


def _state(run: Run, writing: bool, silence: float) -> tuple[State, str]:
    """What goes on with a run whose log has not changed for `silence` seconds and is open in a writer, or is not."""
    rows = run.iterations
    n = len(rows)
    if limit_reached(run.config, rows):
        return "finished", f"finished: {n} iterations in {clock(_last(rows, 'wall_time'))}"
    if not writing:
        return "stopped", f"stopped after {n} iterations; continue it with --resume"
    usual = seconds_per_iteration(rows)
    if silence > max(_SILENCE, _PATIENCE * usual):
        text = f"silent for at least {clock(silence)} after {n} iterations"
        if not n:
            return "silent", text + ": killed, it hangs, or its first iteration is long"
        return "silent", text + (f" of {_seconds(usual)}" if usual else "") + ": killed, or it hangs"
    return "running", "running" if n else "running its first iteration"


def _last(rows: "pd.DataFrame", column: str) -> float:
    return float(rows[column].iloc[-1]) if len(rows) else 0.0


def seconds_per_iteration(rows: "pd.DataFrame") -> float:
    """Median over the last iterations, s; 0 without rows."""
    recent = rows["wall_time"].tail(21).to_numpy()
    return float(np.median(np.diff(recent))) if recent.size > 1 else _last(rows, "wall_time")


def _seconds(value: float) -> str:
    return clock(value) if value >= 100 else f"{value:.3g} s"


def remaining(config: Config, rows: "pd.DataFrame") -> float:
    """Seconds to the nearest limit at the present pace; NaN without limits, and until there are two rows.

    The first one compiles. Restarts are not foreseen.
    """
    pace = seconds_per_iteration(rows)
    left = []
    if config.iterations is not None:
        left.append(pace * (config.iterations - len(rows)))
    if config.max_env_steps is not None and len(rows):
        steps = rows["env_steps"].diff().fillna(rows["env_steps"]).tail(20).mean()
        left.append(pace * (config.max_env_steps - _last(rows, "env_steps")) / max(steps, 1))
    return max(0.0, min(left)) if left and len(rows) > 1 else math.nan


# -- a curve in text -----------------------------------------------------------------------------------------


def si(value: float) -> str:
    """A number in four characters or so: 950, 12.5k, 3.2M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def dots(x: NDArray[np.float64], y: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.bool_]:
    """A curve as dots, bool (rows, columns), the top row first; all of x and y are in view.

    Columns with several points show their whole range; neighbouring points are joined by straight lines.
    """
    canvas = np.zeros((rows, columns), dtype=bool)
    if not x.size:
        return canvas
    width, height = max(np.ptp(x), 1e-300), max(np.ptp(y), 1e-300)
    across = np.rint((x - x.min()) / width * (columns - 1)).astype(int)
    up = (y - y.min()) / height * (rows - 1) if np.ptp(y) > 0 else np.full(y.size, (rows - 1) / 2)
    for i in range(max(x.size - 1, 1)):
        j = min(i + 1, x.size - 1)
        steps = 2 * max(abs(across[j] - across[i]), round(abs(up[j] - up[i]))) + 1
        line = np.linspace(0, 1, steps)
        c = np.rint(across[i] + line * (across[j] - across[i])).astype(int)
        r = np.rint(up[i] + line * (up[j] - up[i])).astype(int)
        canvas[rows - 1 - r, c] = True
    return canvas


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most the smallest and largest y of each of `bins` stretches of x, in order."""
    if x.size <= 4 * bins:
        return x, y
    edges = np.linspace(x[0], x[-1], bins + 1)[1:-1]
    kept: list[int] = []
    for part in np.split(np.arange(x.size), np.searchsorted(x, edges)):
        if part.size:
            kept += sorted({int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])})
    return x[kept], y[kept]


def text_plot(
    x: NDArray[np.float64], y: NDArray[np.float64], width: int, height: int, ascii_only: bool = False
) -> list[str]:
    """A curve with labelled axes in `height` lines of at most `width` characters.

    Parameters
    ----------
    x, y : float64 (points,)
        x increasing; points where either is not finite are left out.
    width, height : int
    ascii_only : bool
        Stars, not Braille patterns (eight dots a character).
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not x.size:
        return ["(nothing to draw yet)"] + [""] * (height - 1)
    rows = max(height - 2, 1)
    low, high = float(y.min()), float(y.max())
    labels = (
        {rows - 1: si(low), 0: si(high), (rows - 1) // 2: si((low + high) / 2)} if high > low else {rows // 2: si(low)}
    )
    margin = max(map(len, labels.values())) + 1
    columns = max(width - margin - 1, 4)
    if ascii_only:
        marks = dots(*_thin(x, y, columns), columns, rows)
        body = ["".join("*" if mark else " " for mark in row) for row in marks]
    else:
        marks = dots(*_thin(x, y, 2 * columns), 2 * columns, 4 * rows)
        # A Braille pattern is U+2800 plus a bit per dot, numbered down the left column, then the right one, with the
        # lowest row's two last.
        bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
        codes = (marks.reshape(rows, 4, columns, 2) * bits[None, :, None, :]).sum(axis=(1, 3))
        body = ["".join(chr(0x2800 + int(code)) if code else " " for code in row) for row in codes]
    bar, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    lines = [f"{labels.get(i, ''):>{margin}}{bar}{row}".rstrip() for i, row in enumerate(body)]
    begin, end = si(float(x[0])), si(float(x[-1]))
    lines.append(" " * margin + corner + dash * columns)
    lines.append(" " * (margin + 1) + begin + f"{end:>{max(columns - len(begin), 0)}}")
    return lines[-height:]


# -- a frame -------------------------------------------------------------------------------------------------


def _curve(run: Run, x: str) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """The points of the curve, as in `plot.run_curve`, and its title."""
    rows = run.iterations
    spent = rows["iteration"] if x == "iteration" else rows[x].shift(1, fill_value=0)
    evaluated = rows["eval_return_median"].notna().any()
    y = "eval_return_median" if evaluated else "return_mean"
    against = {"env_steps": "environment steps", "wall_time": "wall-clock time (s)", "iteration": "iterations"}[x]
    title = f"{'evaluation median' if evaluated else 'population mean'} (return) against {against}"
    return spent.to_numpy(np.float64), rows[y].to_numpy(np.float64), title


def _table(run: Run, n: int, width: int) -> "RenderableType":
    """The last rows; the least important columns give way on a narrow terminal."""
    from rich.table import Table

    rows = run.iterations.tail(n + 1)
    smallest_ess = run.updates.groupby("iteration")["ess"].min()
    largest_kl = run.updates.groupby("iteration")["kl"].max()
    # The row before tells how long an iteration took; the first one ever began at 0.
    seconds = rows["wall_time"].diff().fillna(rows["wall_time"])
    steps = rows["env_steps"].diff().fillna(rows["env_steps"])
    shown = []
    for i in rows.index[-n:]:
        row, iteration = rows.loc[i], int(rows["iteration"].loc[i])
        shown.append({
            "iteration": f"{iteration}",
            "env steps": f"{row['env_steps']:.0f}",
            "eval median": f"{row['eval_return_median']:.2f}",
            "return mean": f"{row['return_mean']:.2f}",
            "updates": f"{row['updates']:.0f}",
            "ESS": f"{smallest_ess.get(iteration, math.nan):.3f}",
            "s/iteration": f"{seconds.loc[i]:.3g}",
            "steps/s": f"{steps.loc[i] / max(seconds.loc[i], 1e-9):.0f}",
            "KL": f"{largest_kl.get(iteration, math.nan):.3g}",
            "time": clock(row["wall_time"]),
            "ranks": f"{row['ranks']:.0f}",
        })  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    used = 0
    for name in shown[0] if shown else ():
        used += max(len(name), *(len(row[name]) for row in shown)) + 2
        if used > width + 2:
            break
        table.add_column(name, justify="right", no_wrap=True)
    for row in shown:
        table.add_row(*list(row.values())[: len(table.columns)])
    return table


def frame(
    view: View, run_dir: Path, x: str, n_rows: int, width: int, height: int, ascii_only: bool
) -> "RenderableType":
    """What is shown of a view, in `height` lines of `width` characters."""
    from rich.console import Group
    from rich.text import Text

    state = Text(f"{run_dir}: {view.text}", style=COLOURS[view.state])
    if view.run is None:
        return Group(state)
    run, config, rows = view.run, view.run.config, view.run.iterations
    facts = f"{config.env_id}, K = {config.iw_updates}, {config.n_pairs} pairs, seed {config.seed}"
    limits = []
    if config.iterations is not None:
        limits.append(f"iteration {len(rows)} of {config.iterations}")
    if config.max_env_steps is not None:
        limits.append(f"{si(_last(rows, 'env_steps'))} of {si(config.max_env_steps)} environment steps")
    left = remaining(config, rows)
    if view.state == "running" and not math.isnan(left):
        limits.append(f"about {clock(left)} left")
    head = [state, Text(", ".join([facts, *limits]))]
    parts: list[RenderableType] = [*head]
    if len(rows):
        # Besides curve and rows: the head, a blank line before and after the curve, two titles, the cursor's line.
        room = height - sum(len(textwrap.wrap(text.plain, width)) for text in head) - 5
        n_rows = max(1, min(n_rows, len(rows), room - 6))
        points_x, points_y, title = _curve(run, x)
        lines = text_plot(points_x, points_y, width, max(4, min(room - n_rows, 30)), ascii_only)
        curve = Text("\n".join([*lines, ""]), no_wrap=True, overflow="crop")
        parts += [Text(""), Text(title, style="bold"), curve, _table(run, n_rows, width)]
    return Group(*parts)


# -- command line --------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
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
    """Watch the run that a command line names; returns the exit code. Raises ConfigError if it is wrong."""
    from rich.console import Console

    options = build_parser().parse_args(list(argv))
    if not 0.1 <= options.interval <= 86400:
        raise ConfigError("--interval", f"must lie between 0.1 and 86400 s, got {options.interval:g}")
    if options.rows < 1:
        raise ConfigError("--rows", f"must be at least 1, got {options.rows}")
    run_dir = Path(options.run)
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError("RUN", f"{run_dir} is not a run directory")
    console = Console(highlight=False)
    if options.once:
        console.print(_draw(console, look(run_dir), run_dir, options))
    else:
        follow(console, run_dir, options)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as problem:
        print(f"iwes_mpi.watch: error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(0)
