"""Groups of runs compared by the environment steps they need to a return: ``python -m iwes_mpi.compare``.

Each environment and return is a comparison of its own. What is computed is in `statistics`; here are the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from iwes_mpi.files.run import Run
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import statistics
from iwes_mpi.shown.figures import NOT_A_SETTING, Setting, group_runs, style, survival_curves
from iwes_mpi.shown.statistics import Estimate, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 3  # runs of a group: of fewer an interval says next to nothing
HEADING = ("", "runs", "reached", "median steps", "interquartile mean", "probability of improvement")
EXPLANATION = (
    "Steps of population and evaluation to the third of three evaluations in a row whose mean is the return or more. "
    "Median: of the Kaplan-Meier curve. Interquartile mean: of the middle half of the runs; one without the return "
    "counts with the limit. Probability of improvement: that a run needs fewer steps than one of the first row's group."
)


class Comparison(NamedTuple):
    """Groups of runs in one environment, and one return."""

    env_id: str
    goal: float  # the return
    limit: float  # steps, after which nothing counts; inf for none
    groups: dict[str, list[Outcome]]  # by label; the first is what the others are compared with


class Summary(NamedTuple):
    """What is said of one group; intervals are bootstrap intervals."""

    label: str
    runs: int
    reached: int
    median: Estimate  # steps
    mean: Estimate  # steps, interquartile
    improvement: Estimate | None  # over the first group; None for the first group itself


# -- comparisons ---------------------------------------------------------------------------------------------


def by_environment(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by their environment, in the order in which environments come."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.config.env_id, []).append(run)
    return found


def choose_limit(runs: Sequence[Run], goal: float) -> float:
    """The steps up to which runs of one environment are compared.

    The smallest ``max_env_steps``, if all have one. Else the steps of the shortest run that did not come to the
    return, and none if all came to it.
    """
    limits = [run.config.max_env_steps for run in runs]
    if None not in limits:
        return float(min(limit for limit in limits if limit is not None))
    short = [found.steps for found in (statistics.outcome(run, goal) for run in runs) if not found.reached]
    return min(short, default=math.inf)


def pooled(setting: Setting, by: Sequence[str]) -> list[str]:
    """Settings that change results and differ within a group, besides those it was made by and the seed."""
    names = [f.name for f in fields(Config) if f.metadata["changes_results"] and f.name not in (*NOT_A_SETTING, *by)]
    first = setting.runs[0].config
    return [
        name for name in names if any(getattr(run.config, name) != getattr(first, name) for run in setting.runs[1:])
    ]


def compare(
    runs: Sequence[Run],
    goal: float,
    by: Sequence[str] = (),
    limit: float | None = None,
    baseline: str | None = None,
) -> Comparison:
    """What came of runs of one environment, by group.

    Parameters
    ----------
    runs : sequence of Run
    goal : float
        The return.
    by : sequence of str
        Settings whose values divide the runs; by default all that change results, except the seed.
    limit : float or None
        Steps after which nothing counts; by default from `choose_limit`.
    baseline : str or None
        The group that comes first: its label, or its values of `by` with commas between; by default the first.

    Raises
    ------
    WrongInput
        If a run tells nothing of the return, two are the same run, or a group has fewer than `FEWEST` runs.
    """
    settings = group_runs(runs, by=by)
    if baseline is not None:
        settings = _first(settings, by, baseline)
    for setting in settings:
        for i, run in enumerate(setting.runs):
            for other in setting.runs[:i]:
                if not run.config.differences(other.config):
                    raise WrongInput("runs", f"{other.path} and {run.path} have the same settings and the same seed")
        if (n := len(setting.runs)) < FEWEST:
            found = f"{n} run{'s' if n > 1 else ''}"
            raise WrongInput("runs", f"{setting.label} has {found}: an interval needs at least {FEWEST}")
    for run in runs:
        if run.iterations["eval_return_mean"].isna().all():
            raise WrongInput("runs", f"{run.path} has no evaluations")
    try:
        limit = choose_limit(runs, goal) if limit is None else limit
        groups = {setting.label: [statistics.outcome(run, goal, limit) for run in setting.runs] for setting in settings}
    except ValueError as error:
        raise WrongInput("return", str(error)) from None
    return Comparison(runs[0].config.env_id, goal, limit, groups)


def _first(settings: Sequence[Setting], by: Sequence[str], baseline: str) -> list[Setting]:
    """The groups with the one that is the baseline in front."""
    for index, (label, members) in enumerate(settings):
        values = ",".join(str(getattr(members[0].config, name)) for name in by)
        if baseline in (label, values):
            return [settings[index], *settings[:index], *settings[index + 1 :]]
    known = "; ".join(setting.label for setting in settings)
    raise WrongInput("baseline", f"there is no group {baseline!r}, only {known}")


def steps_spent(outcomes: Sequence[Outcome], limit: float) -> list[float]:
    """The steps that each run spent to the return; the limit if it did not reach it."""
    return [steps if is_reached else limit for steps, is_reached in outcomes]


def summarize(comparison: Comparison, **options: Any) -> list[Summary]:
    """What is said of each group of a comparison. `options` are those of `statistics.bootstrap`."""
    groups, limit = comparison.groups, comparison.limit
    first = next(iter(groups.values()))
    return [
        Summary(
            label,
            len(found),
            sum(o.reached for o in found),
            statistics.median_interval(found, **options),
            statistics.interquartile_interval([steps_spent(found, limit)], **options),
            None if found is first else statistics.improvement_interval([(found, first)], **options),
        )
        for label, found in groups.items()
    ]


def summarize_all(comparisons: Sequence[Comparison], **options: Any) -> list[Summary]:
    """What is said of each group that is in all environments, over these together, in shares of the limits.

    Of an environment with several returns the highest counts. Empty if there is only one environment, if one has no
    limit, or if the first group is not everywhere the same.
    """
    tasks = {c.env_id: c for c in sorted(comparisons, key=lambda c: c.goal)}
    chosen = list(tasks.values())
    firsts = {next(iter(c.groups)) for c in chosen}
    if len(chosen) < 2 or len(firsts) > 1 or any(math.isinf(c.limit) for c in chosen):
        return []
    (first,) = firsts
    found = []
    for label in comparisons[0].groups:
        if any(label not in c.groups for c in chosen):
            continue
        groups = [c.groups[label] for c in chosen]
        shares = [statistics.share_spent(group, c.limit) for group, c in zip(groups, chosen, strict=True)]
        pairs = [(c.groups[label], c.groups[first]) for c in chosen]
        found.append(
            Summary(
                label,
                sum(map(len, groups)),
                sum(o.reached for group in groups for o in group),
                statistics.bootstrap(lambda *g: _median([x for part in g for x in part]), *shares, **options),
                statistics.interquartile_interval(shares, **options),
                None if label == first else statistics.improvement_interval(pairs, **options),
            )
        )
    return found


def _median(values: Sequence[float]) -> float:
    """The median of some numbers."""
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


# -- tables --------------------------------------------------------------------------------------------------


def steps_text(steps: float) -> str:
    """Environment steps with three digits: 321, 150 k, 2.88 M, never."""
    if math.isinf(steps):
        return "never"
    unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if round(steps) >= s), ("", 1.0))
    digits = steps / size
    text = f"{digits:.3g}" if digits < 999.5 else f"{digits:.0f}"
    return f"{text} {unit}".rstrip()


def _interval(estimate: Estimate, text: Any) -> str:
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def title(comparison: Comparison) -> str:
    """What a comparison's table is of, in one line."""
    within = "" if math.isinf(comparison.limit) else f", within {steps_text(comparison.limit)}"
    return f"{comparison.env_id}: environment steps to a return of {comparison.goal:g}{within}"


def cells(summaries: Sequence[Summary], shares: bool = False) -> list[list[str]]:
    """The rows of a table below `HEADING`; with `shares`, numbers of steps are shares of a limit."""

    def share(value: float) -> str:
        return f"{value:.2f}"

    steps = share if shares else steps_text
    return [
        [
            s.label,
            str(s.runs),
            str(s.reached),
            _interval(s.median, steps),
            _interval(s.mean, steps),
            "-" if s.improvement is None else _interval(s.improvement, share),
        ]
        for s in summaries
    ]


def text_table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    lines = [HEADING, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADING))]
    shown = [
        "  ".join(
            cell.rjust(width) if i in (1, 2) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([heading, *shown])


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """A text as LaTeX shows it, character by character."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex_table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    """A table in LaTeX; it needs the package booktabs."""

    def line(values: Sequence[str]) -> str:
        return "    " + " & ".join(map(latex_text, values)) + r" \\"

    return "\n".join([
        r"\begin{table}",
        rf"  \caption{{{latex_text(heading)}}}",
        r"  \centering",
        r"  \begin{tabular}{lrrlll}",
        r"    \toprule",
        line(HEADING),
        r"    \midrule",
        *map(line, rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ])  # fmt: skip


# -- figure --------------------------------------------------------------------------------------------------


def figure(comparisons: Sequence[Comparison]) -> "Figure":
    """Survival curves: a panel for each comparison, a legend for all of them."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for c in comparisons for label in c.groups))
    looks: Mapping[str, dict[str, Any]] = {label: style(i, len(labels)) for i, label in enumerate(labels)}
    columns = min(3, len(comparisons))
    rows = -(-len(comparisons) // columns)
    drawn = Figure(figsize=(max(5.0, 4.0 * columns), 3.0 * rows + 0.5), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for ax, comparison in zip(axes.flat, comparisons, strict=False):
        survival_curves(comparison.groups, ax, legend=False, style_of=looks.__getitem__)
        ax.set_title(f"{comparison.env_id}: {comparison.goal:g}", fontsize="medium")
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for ax in axes.flat[len(comparisons) :]:
        ax.set_visible(False)
    shown = [handles[label] for label in labels]
    drawn.legend(shown, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, handlelength=3)
    return drawn
