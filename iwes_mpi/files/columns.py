"""The log's rows as declared types: each field is a column, with its unit, its meaning and where its value comes from.

To add a column, add a field: writer, reader, checkpoint, and the table in the documentation follow. Where a file was
written before a column existed, it reads as blank: NaN, −1 for integers, 0 for unsigned ones.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.phases import Phase

if TYPE_CHECKING:  # who reads a log needs neither MPI nor compiled code
    from iwes_mpi.method.report import Report, Update

Tables = dict[str, dict[str, NDArray[Any]]]  # by table and column, arrays (rows,)


class Column(NamedTuple):
    """How a column is stored."""

    dtype: str
    units: str
    long_name: str

    @property
    def blank(self) -> float:
        """What stands where nothing was written."""
        return {"f8": math.nan, "i8": -1}.get(self.dtype, 0)

    def blanks(self, rows: int) -> NDArray[Any]:
        """A column (rows,) in which nothing was written."""
        return np.full(rows, self.blank, dtype=self.dtype)


def _column(units: str, long_name: str, of: Callable[[Any], float], dtype: str = "f8") -> Any:
    """A field of a row: `of` takes its value from what the row tells of."""
    return dataclasses.field(metadata={"column": Column(dtype, units, long_name), "of": of})


def _count(units: str, long_name: str, of: Callable[[Any], float]) -> Any:
    return _column(units, long_name, of, "i8")


class _Row:
    """A row made from what it tells of, field by field."""

    @classmethod
    def of(cls, source: Any) -> Self:
        """The row that tells of a report or an update."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # rows are dataclasses
        return cls(**{f.name: f.metadata["of"](source) for f in fields})


def _statistic(sample: NDArray[Any], of: Callable[[NDArray[np.float64]], Any]) -> float:
    """A statistic of those numbers of a sample that are finite; NaN if none is."""
    finite = sample[np.isfinite(sample)]
    return float(of(finite)) if finite.size else math.nan


def _return(name: str, of: Callable[[NDArray[np.float64]], Any]) -> Any:
    return _column("return", name, lambda report: _statistic(report.returns, of))


def _eval_return(name: str, of: Callable[[NDArray[np.float64]], Any]) -> Any:
    return _column("return", name, lambda report: _statistic(report.population.eval_returns, of))


def _seconds(phase: Phase) -> Any:
    return _column("s", f"{phase.meaning}, in the iteration, mean over ranks", lambda report: report.seconds[phase])


def _invalid(report: "Report") -> int:
    returns = report.population.returns[report.population.ran], report.population.eval_returns
    return sum(int(np.sum(~np.isfinite(sample))) for sample in returns)


@dataclass(frozen=True)
class IterationRow(_Row):
    """One iteration; ``IterationRow.of(report)`` makes it."""

    iteration: int = _count("1", "iteration, from 0", lambda r: r.iteration)
    env_steps: int = _count("steps", "environment steps of population episodes, cumulative", lambda r: r.env_steps)
    episodes: int = _count("episodes", "population episodes, cumulative", lambda r: r.episodes)
    eval_env_steps: int = _count(
        "steps", "environment steps of evaluation episodes, cumulative", lambda r: r.eval_env_steps
    )
    episode_cap: int = _count(
        "steps", "steps after which population episodes were cut; 0 for none", lambda r: r.episode_cap
    )
    kept_samples: float = _column(
        "1", "share of the samples in use that importance mixing has kept from before", lambda r: r.kept_samples
    )
    wall_time: float = _column("s", "wall-clock time, cumulative over restarts", lambda r: r.wall_time)
    return_mean: float = _return("mean return of the population's valid episodes", np.mean)
    return_std: float = _return("standard deviation of the population's returns", np.std)
    return_median: float = _return("median of the population's returns", np.median)
    return_min: float = _return("smallest return of the population", np.min)
    return_max: float = _return("largest return of the population", np.max)
    episode_length_mean: float = _column(
        "steps",
        "mean length of the population's episodes",
        lambda r: _statistic(r.population.lengths[r.population.ran], np.mean),
    )
    eval_return_median: float = _eval_return("median return of theta at the start of the iteration", np.median)
    eval_return_mean: float = _eval_return("mean return of theta at the start of the iteration", np.mean)
    eval_return_std: float = _eval_return("standard deviation of the evaluation returns", np.std)
    eval_episodes: int = _count(
        "episodes", "valid evaluation episodes", lambda r: int(np.isfinite(r.population.eval_returns).sum())
    )
    grad_norm: float = _column(
        "1", "norm of the gradient estimate (sigma times eq. 3) at k = 0",
        lambda r: r.updates[0].grad_norm if r.updates else math.nan,
    )  # fmt: skip
    update_norm: float = _column("1", "distance theta moved in the iteration", lambda r: r.update_norm)
    theta_norm: float = _column("1", "norm of theta after the iteration", lambda r: r.theta_norm)
    sigma: float = _column("1", "standard deviation of the perturbations", lambda r: r.sigma)
    updates: int = _count(
        "updates", "optimizer updates made from this population", lambda r: sum(u.accepted for u in r.updates)
    )
    theta_digest: int = _column(
        "1", "first 8 bytes of BLAKE2b over theta after the iteration", lambda r: r.theta_digest, "u8"
    )
    time_rollouts: float = _seconds(Phase.ROLLOUTS)
    time_idle: float = _seconds(Phase.IDLE)
    time_weights: float = _seconds(Phase.WEIGHTS)
    time_comm: float = _seconds(Phase.COMM)
    time_update: float = _seconds(Phase.UPDATE)
    time_io: float = _seconds(Phase.IO)
    invalid_episodes: int = _count("episodes", "episodes whose return or observations were not finite", _invalid)
    ranks: int = _count("ranks", "MPI ranks that ran the iteration", lambda r: r.ranks)


def _of_estimate(units: str, long_name: str, name: str) -> Any:
    """A column that an estimate tells; NaN where there was none."""
    return _column(units, long_name, lambda u: math.nan if u.estimate is None else getattr(u.estimate, name))


@dataclass(frozen=True)
class UpdateRow(_Row):
    """One optimizer update that was made or tried; ``UpdateRow.of(update)`` makes it."""

    iteration: int = _count("1", "iteration the update belongs to", lambda u: u.iteration)
    k: int = _count("1", "0 for the plain ES update, then 1, 2 … for importance-weighted ones", lambda u: u.k)
    ess: float = _of_estimate("1", "effective sample size as a share of the population, (Σc)²/(2n Σc²)", "ess")
    kl: float = _column(
        "nats", "KL divergence of theta's search distribution from the population's, r²/2", lambda u: u.kl
    )
    mean_weight: float = _of_estimate("1", "mean importance weight, Σc/2n", "mean_weight")
    max_weight: float = _of_estimate("1", "largest importance weight after clipping", "max_weight")
    clipped_share: float = _of_estimate("1", "share of the samples with weights at the clip or above", "clipped_share")
    grad_norm: float = _column("1", "norm of the gradient estimate", lambda u: u.grad_norm)
    update_norm: float = _column("1", "length of the optimizer's step", lambda u: u.update_norm)
    accepted: int = _column(
        "1", "1 if the update was made, 0 if a stop rule or lost overlap prevented it", lambda u: int(u.accepted), "u1"
    )
    stop: int = _column(
        "1",
        "why it was the last of its population: 0 it was not, 1 all were made, 2 the ESS, 3 the trust region, "
        "4 lost overlap",
        lambda u: int(u.stop),
        "u1",
    )


def _columns(row: type) -> dict[str, Column]:
    return {field.name: field.metadata["column"] for field in dataclasses.fields(row)}


TABLES: dict[str, dict[str, Column]] = {"iterations": _columns(IterationRow), "updates": _columns(UpdateRow)}
POPULATION = {
    "returns": Column("f8", "return", "return of each episode; NaN where there was none"),
    "lengths": Column("i8", "steps", "length of each episode; -1 where there was none"),
}


class Rows(NamedTuple):
    """The rows of one iteration."""

    iteration: IterationRow
    updates: list[UpdateRow]

    @property
    def smallest_ess(self) -> float:
        """The smallest effective sample size of the iteration's updates; NaN if there was none."""
        return min((row.ess for row in self.updates if not math.isnan(row.ess)), default=math.nan)


def rows_of(report: "Report") -> Rows:
    """The rows that tell of an iteration."""
    updates: list[Update] = report.updates
    return Rows(IterationRow.of(report), [UpdateRow.of(update) for update in updates])


def population_of(report: "Report") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The columns of ``/population`` in the order of `POPULATION`, (n_pairs, 2) each."""
    population = report.population
    blank = POPULATION["lengths"].blank
    return population.returns, np.where(population.ran, population.lengths, int(blank))
