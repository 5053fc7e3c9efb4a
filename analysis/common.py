"""What the notebooks share: the committed runs, scores of a run, and intervals over seeds."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from iwes_mpi import Run, open_run
from iwes_mpi.shown.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATA = Path(__file__).resolve().parent / "data"
sys.path.insert(0, str(DATA.parent.parent / "benchmarks"))
from model import spans  # noqa: E402

Score = Callable[[Run], float]


def load(table: str, iterations: int | None = None, **settings: Any) -> list[Run]:
    """The committed runs of a table that have these settings; none if they are not there yet.

    Parameters
    ----------
    table : str
        A folder of analysis/data.
    iterations : int or None
        Keep only so many iterations of each; shorter runs are left out.
    **settings
        Values of fields of the runs' configuration.
    """
    runs = [open_run(log.parent) for log in sorted(DATA.glob(f"{table}/*/log.h5"))]
    runs = choose(runs, **settings)
    if iterations is not None:
        runs = [cut(run, iterations) for run in runs if len(run.iterations) >= iterations]
    return runs


def cut(run: Run, iterations: int) -> Run:
    """The first iterations of a run, and the updates that belong to them."""
    other = open_run(run.path)
    other.iterations = run.iterations[:iterations]
    other.updates = run.updates[run.updates["iteration"].isin(other.iterations["iteration"])]
    return other


def choose(runs: Iterable[Run], **settings: Any) -> list[Run]:
    """Those of the runs that have these settings; numbers need to agree to six digits only."""

    def has(run: Run, name: str, value: Any) -> bool:
        found = getattr(run.config, name)
        return math.isclose(found, value, rel_tol=1e-6) if isinstance(value, float) else found == value

    return [run for run in runs if all(has(run, name, value) for name, value in settings.items())]


# -- scores --------------------------------------------------------------------------------------------------


def evaluated(run: Run) -> pd.DataFrame:
    """The run's iterations in which the policy was evaluated."""
    return run.iterations.dropna(subset=["eval_return_median"])


def area(run: Run) -> float:
    """Area under the curve of the evaluation median over environment steps, divided by the steps: a mean return."""
    rows = evaluated(run)
    steps = rows["env_steps"].to_numpy(float)
    return float(np.trapezoid(rows["eval_return_median"], steps) / (steps[-1] - steps[0]))


def last(run: Run) -> float:
    """Mean of the last ten evaluation medians."""
    return float(evaluated(run)["eval_return_median"].tail(10).mean())


def ess(run: Run) -> float:
    """Median effective sample size at the run's last update per population; 1 for ES."""
    updates = run.updates[run.updates["k"] == run.config.iw_updates]
    return float(updates["ess"].median())


def kl(run: Run) -> float:
    """Median KL divergence (nats) between where theta is and the population, at the last update per population."""
    updates = run.updates[run.updates["k"] == run.config.iw_updates]
    return float(updates["kl"].median())


def averages(settings: Mapping[str, Sequence[Run]], scores: Mapping[str, Score]) -> pd.DataFrame:
    """A table of mean scores, one row per setting that has runs."""
    return pd.DataFrame({
        name: {title: np.mean([score(run) for run in runs]) for title, score in scores.items()}
        for name, runs in settings.items()
        if runs
    }).T  # fmt: skip


def evaluation_share(run: Run) -> float:
    """The share of evaluation episodes in all environment steps of a run."""
    last = run.iterations.iloc[-1]
    return float(last["eval_env_steps"] / (last["env_steps"] + last["eval_env_steps"]))


def steps_in_a_row(run: Run, until: float, ranks: int) -> float:
    """A model of the time that a run takes on many ranks: the steps that are made one after the other.

    Each iteration lasts as long as the rank that is done last, by the model of the program's queue on one node
    (`spans` in benchmarks/model.py); episodes of one kind count as equally long. What is not in episodes is left out.

    Parameters
    ----------
    run : Run
        It has ended or not.
    until : float
        Environment steps that are made, of population and evaluation; the iteration that comes to them is the last.
    ranks : int
        At least 1.

    Returns
    -------
    float
        Environment steps.
    """
    made = run.iterations[["env_steps", "eval_env_steps"]].to_numpy(np.float64)
    last = int(np.searchsorted(made.sum(axis=1), until)) + 1
    n_pairs, n_eval = run.config.n_pairs, run.config.n_eval
    total = 0.0
    for population, evaluation in np.diff(made[:last], axis=0, prepend=0.0):
        pairs = np.full((n_pairs, 2), population / (2 * n_pairs))
        evaluations = np.full(n_eval if evaluation else 0, evaluation / max(1, n_eval))
        total += spans(pairs, evaluations, ranks, ranks, "dynamic").max()
    return total


# -- intervals -----------------------------------------------------------------------------------------------


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of the mean; NaN for a single value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def by_seed(runs: Sequence[Run], score: Score) -> dict[int, float]:
    """The score of each run, by its seed."""
    return {run.config.seed: score(run) for run in runs}


def paired(runs: Sequence[Run], baseline: Sequence[Run], score: Score) -> tuple[float, float, int]:
    """Mean difference to the baseline's runs of the same seeds, half its 95 % t interval, and the number of seeds."""
    ours, theirs = by_seed(runs, score), by_seed(baseline, score)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return (float(np.mean(differences)) if differences else np.nan), half_width(differences), len(differences)


def difference(runs: Sequence[Run], baseline: Sequence[Run], score: Score) -> str:
    """The paired difference as text: mean ± half its 95 % t interval, with * if that leaves out zero."""
    mean, half, n = paired(runs, baseline, score)
    if n == 0:
        return "–"
    return f"{mean:+.0f} ± {half:.0f}{' *' if abs(mean) > half else ''}" if n > 1 else f"{mean:+.0f} (one seed)"


def compare(
    settings: Mapping[str, Sequence[Run]], baseline: Sequence[Run], scores: Mapping[str, Score]
) -> pd.DataFrame:
    """A table: for each setting the mean scores, and their differences to a baseline by `difference`."""
    rows = {}
    for name, runs in settings.items():
        row: dict[str, Any] = {"seeds": len(runs)}
        for title, score in scores.items():
            row[title] = f"{np.mean([score(run) for run in runs]):.0f}" if runs else "–"
            row[f"{title}: difference"] = "" if runs is baseline else difference(runs, baseline, score)
        rows[name] = row
    return pd.DataFrame(rows).T


# -- panels --------------------------------------------------------------------------------------------------


def style_of_k(run: Run) -> tuple[int, int]:
    """The style of a run's curve: K has the same look in all figures."""
    return run.config.iw_updates, 6


def dots(ax: "Axes", settings: Mapping[str, Sequence[Run]], score: Score, label: str) -> None:
    """Every run's score as a dot, and beside it the mean with its 95 % t interval, one column per setting."""
    for index, runs in enumerate(settings.values()):
        if not runs:
            continue
        values = [score(run) for run in runs]
        look = style(*style_of_k(runs[0])) | {"linestyle": "", "markersize": 5.5}
        ax.plot(index - 0.12 + np.zeros(len(values)), values, alpha=0.8, **look)
        ax.errorbar(index + 0.18, np.mean(values), yerr=half_width(values), color="black", capsize=4, marker="_",
                    markersize=9)  # fmt: skip
    ax.set_xticks(range(len(settings)), list(settings))
    ax.set_xlim(-0.6, len(settings) - 0.4)
    ax.set_ylabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3, linewidth=0.6, axis="y")
    ax.set_axisbelow(True)
