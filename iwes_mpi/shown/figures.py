"""Figures of runs: what ``python -m iwes_mpi.plot`` draws, and notebooks too.

Runs that differ in nothing but their seed and in what does not change results are runs of one *setting*: they are
drawn as one curve, their mean with a band. Settings are told apart by markers and line styles, not by color alone.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.run import Run, X
from iwes_mpi.method.phases import Phase
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.printable import one_line
from iwes_mpi.shown.statistics import Outcome, survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

StyleOf = Callable[[Run], tuple[int, int]]  # which of how many styles a run's setting has
Band = Literal["min-max", "standard-error", "quartiles", "none"]
BANDS: dict[Band, str] = {
    "min-max": "minimum to maximum",
    "standard-error": "± one standard error",
    "quartiles": "first to third quartile",
    "none": "",
}
NOT_A_SETTING = ("seed", "noise_table_size")  # the size decides which random numbers are met, as the seed does
_TIMING = ("weights_on", "schedule", "rollouts")  # settings that change times, though not results
_LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (10, 3)))  # for K = 0 to 5
_MARKERS = "os^Dv<>PX*p"
_FEW_POINTS, _GRID = 40, 500
_MARKERS_PER_LINE = 9
_LONGEST_LABEL = 200  # characters of a value
_WIDTH = 12.0  # inches, of the whole figure


# -- settings ------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """Runs that are repetitions of each other."""

    label: str  # the settings in which they differ from the others
    runs: list[Run]


def _shown(name: str, value: Any) -> str:
    """A setting and its value, for a legend."""
    if name == "env_id":
        return _literally(value)
    if name == "iw_updates":
        return f"K = {value}"
    if name == "ranks":
        return f"{value} rank{'s' if value != 1 else ''}"
    words = name.replace("_", " ")
    if name == "hidden_sizes":
        return "-".join(map(str, value)) + " units" if value else "linear policy"
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {_literally(value)}"


def _literally(value: Any) -> str:
    """A value in a label: dollars would begin a formula in the figure, which a wrong one ends."""
    text = one_line(value).replace("$", r"\$")
    return text if len(text) <= _LONGEST_LABEL else f"{text[:_LONGEST_LABEL]} …"


def _position(values: Iterable[Any]) -> Callable[[Any], int]:
    """The place of a value among the distinct `values`: by size if they can be compared, else as they came."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    with contextlib.suppress(TypeError):
        distinct.sort()
    return distinct.index


def group_runs(runs: Iterable[Run], timing: bool = False, by: Sequence[str] = ()) -> list[Setting]:
    """Runs by setting, in the order of the values in which the settings differ.

    Parameters
    ----------
    runs : iterable of Run
    timing : bool
        Whether runs that differ in what changes times alone (where weights are computed, ranks …) are different.
    by : sequence of str
        Only these settings divide the runs, and all of them are named in labels. By default all that change results
        do, except the seed.

    Returns
    -------
    list of Setting
        Labeled by what differs; a single setting is labeled by its environment.
    """
    names = by or [f.name for f in fields(Config) if f.metadata["changes_results"] and f.name not in NOT_A_SETTING]
    values: list[dict[str, Any]] = []
    members: list[list[Run]] = []
    for run in runs:
        found = {name: getattr(run.config, name) for name in names}
        if timing:
            found |= {name: getattr(run.config, name) for name in _TIMING}
            found["ranks"] = int(run.iterations["ranks"].iloc[-1])
        if found not in values:
            values.append(found)
            members.append([])
        members[values.index(found)].append(run)
    differing = [name for name in (values[0] if values else {}) if any(v[name] != values[0][name] for v in values)]
    places = {name: _position(v[name] for v in values) for name in differing}
    order = sorted(range(len(values)), key=lambda i: [places[name](values[i][name]) for name in differing])
    named = by or differing
    labels = [", ".join(_shown(name, found[name]) for name in named) or _literally(found["env_id"]) for found in values]
    return [Setting(labels[i], members[i]) for i in order]


# -- curves --------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """The mean of some curves where more than half of them have values, and their spread."""

    x: NDArray[np.float64]  # (points,)
    mean: NDArray[np.float64]  # (points,)
    low: NDArray[np.float64]  # (points,) lower edge of the band
    high: NDArray[np.float64]  # (points,)


def average(curves: Sequence[tuple[NDArray[Any], NDArray[Any]]], band: Band = "min-max") -> Curve:
    """The mean of curves, interpolated linearly, over the range of x that more than half of them reach; and a band.

    At each x, mean and band are of the curves that cover it. So where a curve ends before the others the mean may
    jump; but a run that has just begun takes nothing from the others.

    Parameters
    ----------
    curves : sequence of (x, y)
        Each with increasing x; those without points are left out.
    band : str
        One of `BANDS`: what the band shows of the spread over the curves.

    Returns
    -------
    Curve
        Without points if no curve has any, or no x is reached by more than half.
    """
    curves = [curve for curve in curves if curve[0].size]
    if not curves:
        return Curve(*np.zeros((4, 0)))
    most = len(curves) // 2 + 1
    begin, end = sorted(x[0] for x, _ in curves)[most - 1], sorted(x[-1] for x, _ in curves)[-most]
    if end < begin:
        return Curve(*np.zeros((4, 0)))
    points = np.unique(np.concatenate([x for x, _ in curves]))
    points = points[(points >= begin) & (points <= end)]
    if points.size > max(_GRID, *(x.size for x, _ in curves)):
        points = np.linspace(begin, end, _GRID)
    # NaN where a curve has no value, (curves, points)
    values = np.array([np.interp(points, x, y, left=np.nan, right=np.nan) for x, y in curves])
    mean = np.nanmean(values, axis=0)
    if band == "standard-error":
        n = np.isfinite(values).sum(axis=0)
        error = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(n - 1, 1) / n)
        return Curve(points, mean, mean - error, mean + error)
    if band == "none":
        return Curve(points, mean, mean, mean)
    edges = (0.0, 1.0) if band == "min-max" else (0.25, 0.75)
    low, high = np.nanquantile(values, edges, axis=0)
    return Curve(points, mean, low, high)


# -- panels --------------------------------------------------------------------------------------------------


def style(index: int, n: int) -> dict[str, Any]:
    """Line properties of curve `index` of `n`: told apart without color too."""
    import matplotlib

    shade = matplotlib.colormaps["viridis"](0.85 * index / max(n - 1, 1))
    return {
        "color": shade,
        "linestyle": _LINE_STYLES[index % len(_LINE_STYLES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4.5,
        "markerfacecolor": "white" if index % 2 else shade,
        "linewidth": 1.4,
    }


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.5, 4), layout="constrained")[1]


def _legend(ax: "Axes", title: str = "") -> None:
    """A legend right of the axes, where it covers no data."""
    if len(ax.get_legend_handles_labels()[0]) > 1 or title:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, title=title, alignment="left")


def _tidy(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)


def _label_x(ax: "Axes", x: X) -> None:
    """Name and units of the horizontal axis; call it when all curves are there."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    end = max(ax.dataLim.x1, 1.0) if np.isfinite(ax.dataLim.x1) else 1.0
    ax.set_xlim(-0.02 * end, 1.03 * end)
    if x == "env_steps":
        ax.set_xlabel("environment steps")
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif x == "iteration":
        ax.set_xlabel("iterations")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        unit, seconds = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if end >= 3 * s or s == 1)
        ax.set_xlabel(f"wall-clock time ({unit})")
        # Ticks at round numbers of the unit: the data stay in seconds.
        ticks = seconds * np.asarray(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0.0, end / seconds))
        ax.set_xticks(ticks[(ticks >= 0) & (ticks <= 1.03 * end)])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))


def _label(label: str, runs: Sequence[Run]) -> str:
    return label if len(runs) == 1 else f"{label} ({len(runs)} runs)"


def _draw(
    ax: "Axes",
    settings: Sequence[Setting],
    curve: Callable[[Run], tuple[NDArray[Any], NDArray[Any]]],
    band: Band,
    style_of: StyleOf | None = None,
) -> None:
    """One mean with its band per setting; runs that outlast half of their setting continue as thin lines."""
    for index, (label, runs) in enumerate(settings):
        curves = [curve(run) for run in runs]
        curves = [c for c in curves if c[0].size]
        x, mean, low, high = average(curves, band)
        look = style(*style_of(runs[0])) if style_of else style(index, len(settings))
        step = max(1, x.size // _MARKERS_PER_LINE)
        if x.size > _FEW_POINTS:
            look["markevery"] = (index * step // max(len(settings), 1), step)
        if len(settings) == 1 and x.size > _FEW_POINTS:
            look["marker"] = ""
        ax.plot(x, mean, label=_label(label, runs), zorder=3, **look)
        if len(curves) > 1 and band != "none":
            ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
            for edge in (low, high):
                ax.plot(x, edge, color=look["color"], linewidth=0.5, alpha=0.6, linestyle=look["linestyle"])
        for run_x, run_y in curves:
            end = x[-1] if x.size else -np.inf
            if run_x[-1] > end:
                rest = np.concatenate([x[-1:], run_x[run_x > end]])
                ax.plot(
                    rest, np.interp(rest, run_x, run_y), color=look["color"], linestyle=look["linestyle"], linewidth=0.8
                )


def learning_curves(
    runs: Iterable[Run],
    ax: "Axes | None" = None,
    x: X = "env_steps",
    y: str = "eval_return_median",
    band: Band = "min-max",
    legend: bool = True,
    style_of: StyleOf | None = None,
) -> "Axes":
    """Learning curves: one per setting, the mean of its runs, with a band.

    The mean is of the runs that have come so far, and continues as long as more than half have
    (`average`). Runs that outlast half of their setting continue as thin lines.

    Parameters
    ----------
    runs : iterable of Run
    ax : matplotlib Axes or None
        Where to draw; by default in a new figure.
    x : "env_steps", "wall_time" or "iteration"
    y : str
        A column of ``run.iterations``.
    band : str
        One of `BANDS`.
    legend : bool
        Whether to put a legend, right of the axes.
    style_of : function or None
        From a run to its setting's style (index, number of styles), for settings that look alike across figures; by
        default styles follow the order of the settings.

    Returns
    -------
    matplotlib Axes
    """
    ax, settings = _axes(ax), group_runs(runs)
    _draw(ax, settings, lambda run: run.curve(x, y), band, style_of)
    _label_x(ax, x)
    names = {"eval_return_median": "evaluation median (return)", "return_mean": "population mean (return)"}
    ax.set_ylabel(names.get(y, y.replace("_", " ")))
    _tidy(ax)
    if legend:
        _legend(ax)
    return ax


def ess_curves(
    runs: Iterable[Run],
    ax: "Axes | None" = None,
    x: X = "env_steps",
    band: Band = "min-max",
    legend: bool = True,
) -> "Axes":
    """The smallest effective sample size of each iteration, over the run. Arguments as in `learning_curves`."""
    ax, settings = _axes(ax), group_runs(runs)
    _draw(ax, settings, lambda run: run.smallest_ess(x), band)
    _label_x(ax, x)
    ax.set_ylabel("smallest ESS of an iteration\n(share of the population)")
    ax.set_ylim(0, 1.03)
    _tidy(ax)
    if legend:
        _legend(ax)
    return ax


def per_update(
    runs: Iterable[Run],
    column: Literal["ess", "kl"] = "ess",
    ax: "Axes | None" = None,
    legend: bool = True,
    style_of: StyleOf | None = None,
) -> "Axes":
    """ESS or KL before the k-th importance-weighted update: median and quartiles over iterations and runs.

    Arguments as in `learning_curves`; settings with K = 0 have nothing to show.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    ax, settings = _axes(ax), group_runs(runs)
    for index, (label, members) in enumerate(settings):
        rows = [run.updates for run in members]
        groups: dict[int, list[float]] = {}
        for table in rows:
            table = table[(table["k"] > 0) & table[column].notna()]
            for k, values in table.groupby("k")[column]:
                groups.setdefault(int(str(k)), []).extend(values)
        if not groups:
            continue
        ks = np.array(sorted(groups))
        low, median, high = np.array([np.quantile(groups[k], (0.25, 0.5, 0.75)) for k in ks]).T
        spread = 0.3 * (index / max(len(settings) - 1, 1) - 0.5) if len(settings) > 1 else 0.0
        look = style(*style_of(members[0])) if style_of else style(index, len(settings))
        ax.errorbar(ks + spread, median, yerr=[median - low, high - median], capsize=2, elinewidth=0.9,
                    label=label, **look)  # fmt: skip
    ax.set_xlabel("importance-weighted update k\n(median; bars: first to third quartile)")
    ax.set_xlim(0.5, max((run.config.iw_updates for s in settings for run in s.runs), default=1) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if column == "ess":
        ax.set_ylabel("ESS (share of the population)")
        ax.set_ylim(0, 1.03)
    else:
        ax.set_ylabel("KL divergence (nats)")
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    _tidy(ax)
    if legend:
        _legend(ax)
    return ax


def survival_curves(
    groups: Mapping[str, Sequence[Outcome]],
    ax: "Axes | None" = None,
    legend: bool = True,
    style_of: Callable[[str], dict[str, Any]] | None = None,
) -> "Axes":
    """The share of runs still without a return over environment steps, a curve for each group (`statistics.survival`).

    A mark stands where a run ended, or came to the limit, without the return.

    Parameters
    ----------
    groups : mapping
        What came of each group's runs, by the group's name.
    ax, legend
        As in `learning_curves`.
    style_of : function or None
        From a group's name to line properties; by default styles follow the order of the groups.

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    for index, (name, outcomes) in enumerate(groups.items()):
        look = (style_of(name) if style_of else style(index, len(groups))) | {"marker": ""}
        curve = survival(outcomes)
        end = max((o.steps for o in outcomes), default=0.0)
        share = np.concatenate([[1.0], curve.share])
        ax.step(
            np.concatenate([[0.0], curve.steps, [end]]), np.append(share, share[-1]), where="post", label=name, **look
        )
        without = np.array([o.steps for o in outcomes if not o.reached])
        level = share[np.searchsorted(curve.steps, without, side="right")]
        ax.plot(without, level, "|", color=look["color"], markersize=9)
    _label_x(ax, "env_steps")
    ax.set_ylabel("share of runs without the return")
    ax.set_ylim(-0.03, 1.03)
    _tidy(ax)
    if legend:
        _legend(ax)
    return ax


def phase_times(run: Run) -> dict[str, float]:
    """Seconds per iteration in each phase, mean over the middle half of the iterations by their total.

    So a few iterations that the machine stalled in do not count; nor does what is done once in many iterations, such
    as a checkpoint. The first iteration, which compiles, is left out if there are more.
    """
    rows = run.iterations.iloc[1:] if len(run.iterations) > 1 else run.iterations
    times = rows[[f"time_{phase}" for phase in Phase]].to_numpy(np.float64)  # s, (iterations, phases)
    aside = (len(times) + 1) // 4  # at either end: of three, the middle one stays
    middle = np.argsort(times.sum(axis=1), kind="stable")[aside : len(times) - aside]
    return dict(zip(Phase, times[middle].mean(axis=0).tolist(), strict=True))


def time_per_iteration(runs: Iterable[Run], ax: "Axes | None" = None, legend: bool = True) -> "Axes":
    """Time per iteration, split by phase: one bar per setting, the mean of its runs' `phase_times`.

    Runs on different numbers of ranks, or with weights computed elsewhere, are different settings here. A run of one
    iteration, the one that compiles, counts only if its setting has no other.
    """
    import matplotlib

    ax, settings = _axes(ax), group_runs(runs, timing=True)
    times = np.zeros((len(settings), len(Phase)))  # s
    for i, (_, members) in enumerate(settings):
        begun = [run for run in members if len(run.iterations) > 1] or members
        times[i] = np.mean([list(phase_times(run).values()) for run in begun], axis=0)
    unit, scale = ("ms", 1000.0) if times.sum(axis=1).max(initial=0.0) < 1 else ("s", 1.0)
    times *= scale
    if len(settings) == 1:
        _phases_of_one(ax, times[0])
    else:
        left = np.zeros(len(settings))
        hatches = ("", "////", "", "xxxx", "....", "")
        shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 1.0, len(Phase)))
        for index, phase in enumerate(Phase):
            ax.barh(range(len(settings)), times[:, index], left=left, color=shades[index], hatch=hatches[index],
                    edgecolor="black", linewidth=0.5, label=phase.label, height=0.7)  # fmt: skip
            left += times[:, index]
        size = "small" if len(settings) <= 20 else "x-small"
        ax.set_yticks(range(len(settings)), [label for label, _ in settings], fontsize=size)
        ax.set_ylim(len(settings) - 0.4, -0.6)
        if legend:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small")
    ax.set_xlabel(f"time per iteration ({unit})\nmean over ranks and the middle half of the iterations")
    _tidy(ax)
    ax.grid(visible=False, axis="y")
    return ax


def _phases_of_one(ax: "Axes", times: NDArray[np.float64]) -> None:
    """A bar for each phase of a single setting, with its share."""
    bars = ax.barh(range(times.size), times, color="0.45", height=0.6)
    shares = times / max(times.sum(), 1e-12)
    ax.bar_label(bars, [f"{share:.1%}" for share in shares], padding=4, fontsize="small")
    ax.set_yticks(range(times.size), [phase.label for phase in Phase])
    ax.set_ylim(times.size - 0.4, -0.6)
    ax.set_xlim(0, 1.15 * max(times.max(), 1e-12))


def overview(runs: Sequence[Run], x: X = "env_steps", band: Band = "min-max") -> "Figure":
    """The whole figure of ``python -m iwes_mpi.plot``: learning curves, times, and ESS and KL if there are K > 0.

    Evaluation medians are shown, or population means where no run has evaluation episodes.
    """
    from matplotlib.figure import Figure

    settings = group_runs(runs)
    evaluated = any(run.iterations["eval_return_median"].notna().any() for run in runs)
    y = "eval_return_median" if evaluated else "return_mean"
    weighted = any(run.config.iw_updates > 0 for run in runs)
    several = any(len(setting.runs) > 1 for setting in settings)
    # A legend for the whole figure, below it, in rows of equal length.
    longest = max(len(_label(*setting)) for setting in settings)
    columns = max(1, int(_WIDTH / (0.075 * longest + 0.8)))
    legend_rows = -(-len(settings) // columns) if several or len(settings) > 1 else 0
    rows = 2 if weighted else 1
    height = 3.6 * rows + 0.4 + 0.2 * legend_rows + 0.1 * max(0, len(settings) - 12)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    parts: Any = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    curves, times = parts[0].subplots(1, 2)
    learning_curves(runs, curves, x, y, band, legend=False)
    time_per_iteration(runs, times)
    if weighted:
        # Every setting keeps its style in every panel, so those with K = 0 are drawn along.
        over_run, ess, kl = parts[1].subplots(1, 3)
        ess_curves(runs, over_run, x, band, legend=False)
        per_update(runs, "ess", ess, legend=False)
        per_update(runs, "kl", kl, legend=False)
    environments = {run.config.env_id for run in runs}
    figure.suptitle(environments.pop() if len(environments) == 1 else f"{len(environments)} environments")
    if legend_rows:
        handles, labels = curves.get_legend_handles_labels()
        explained = "mean of the runs" if several else ""
        ends = [sorted(run.curve(x, y)[0][-1:].tolist() for run in setting.runs) for setting in settings]
        if any(reached[0] != reached[-1] for reached in ends):
            explained += " that have come so far, where more than half have"
        if several and band != "none":
            explained += f"; band: {BANDS[band]}"
        if any(reached[-1] != reached[(len(reached) - 1) // 2] for reached in ends):
            explained += "; thin lines: single runs beyond"
        figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(settings) // legend_rows),
                      frameon=False, title=explained, handlelength=3, fontsize="small")  # fmt: skip
    return figure
