"""A run at one moment, as it is followed in a terminal: what goes on with it, and a frame that shows it."""

import math
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.log import LOG
from iwes_mpi.files.progress import UnderWay, under_way
from iwes_mpi.files.reader import LogError, is_being_written
from iwes_mpi.files.run import Run, X, open_run
from iwes_mpi.settings.command_line import flag
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.printable import one_line
from iwes_mpi.shown.console import clock
from iwes_mpi.shown.text_plot import si, text_plot

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

State = Literal["waiting", "unreadable", "running", "silent", "stopped", "finished"]
COLORS: dict[State, str] = {
    "waiting": "yellow",
    "unreadable": "yellow",
    "running": "green",
    "silent": "red",
    "stopped": "yellow",
    "finished": "bold green",
}
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


@np.errstate(all="ignore")
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
    state, text = _state(seen, writing, now - since, under_way(run_dir))
    return View(state, text, seen, stamp, since)


def _state(run: Run, writing: bool, silence: float, progress: UnderWay | None) -> tuple[State, str]:
    """What goes on with a run whose log has not changed for `silence` seconds and is open in a writer, or is not."""
    rows = run.iterations
    n = len(rows)
    if run.finished:
        return "finished", f"finished: {n} iterations in {clock(_last(rows, 'wall_time'))}"
    if not writing:
        return "stopped", f"stopped after {n} iterations; continue it with {flag('resume')}"
    usual = seconds_per_iteration(rows)
    if silence > max(_SILENCE, _PATIENCE * usual):
        text = f"silent for at least {clock(silence)} after {n} iterations"
        if not n:
            return "silent", text + ": killed, it hangs, or its first iteration is long"
        return "silent", text + (f" of {_seconds(usual)}" if usual else "") + ": killed, or it hangs"
    if progress is None or progress.iteration != n:
        return "running", "running" if n else "running its first iteration: compiling"
    what = "running" if n else "running its first iteration"
    return "running", f"{what}: episode {progress.done} of {progress.n}"


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


# -- a frame -------------------------------------------------------------------------------------------------


def _curve(run: Run, x: X) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """The points of the curve, and its title."""
    evaluated = run.iterations["eval_return_median"].notna().any()
    y = "eval_return_median" if evaluated else "return_mean"
    against = {"env_steps": "environment steps", "wall_time": "wall-clock time (s)", "iteration": "iterations"}[x]
    title = f"{'evaluation median' if evaluated else 'population mean'} (return) against {against}"
    return *run.curve(x, y), title


def _table(run: Run, n: int, width: int) -> "RenderableType":
    """The last rows; the least important columns give way on a narrow terminal."""
    from rich.table import Table

    rows = run.iterations.tail(n + 1)
    smallest_ess = run.ess_by_iteration
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
        if not run.config.iw_updates:  # nothing is weighted
            del shown[-1]["ESS"], shown[-1]["KL"]
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


@np.errstate(all="ignore")  # a log may hold any numbers
def frame(view: View, run_dir: Path, x: X, n_rows: int, width: int, height: int, ascii_only: bool) -> "RenderableType":
    """What is shown of a view, in `height` lines of `width` characters."""
    from rich.console import Group
    from rich.text import Text

    state = Text(one_line(f"{run_dir}: {view.text}"), style=COLORS[view.state])
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
    head = [state, Text(one_line(", ".join([facts, *limits])))]
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
