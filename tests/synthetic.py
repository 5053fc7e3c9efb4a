"""Logs made up on the spot, for tests of what reads them: as the program writes them, without its work."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from iwes_mpi.files.columns import TABLES, IterationRow, Rows, UpdateRow
from iwes_mpi.files.log import FORMAT, LOG, LogWriter
from iwes_mpi.files.provenance import provenance
from iwes_mpi.settings.config import Config


def rows(config: Config, iteration: int, **changes: float) -> Rows:
    """The log rows of an iteration of a made-up run that learns, faster with a larger K, in 1 s per iteration.

    `changes` are values of the iteration's row that are others.
    """
    rng = np.random.default_rng([config.seed, iteration])
    k_max = config.iw_updates
    score = 1000 * (1 - math.exp(-iteration * (1 + k_max) / 60)) + 40 * rng.standard_normal() + 9 * (config.seed % 7)
    row: dict[str, Any] = dict.fromkeys(TABLES["iterations"], 0)
    row |= {"iteration": iteration, "env_steps": 2000 * (iteration + 1), "episodes": 20 * (iteration + 1)}
    row |= {"wall_time": 2.5 + iteration + 1.0, "sigma": config.sigma, "ranks": 2, "updates": 1 + k_max}
    for statistic in ("mean", "median", "min", "max"):
        row[f"return_{statistic}"] = score - 50
    row |= dict.fromkeys(("eval_return_median", "eval_return_mean"), score if config.n_eval else math.nan)
    row |= {"eval_episodes": config.n_eval, "time_rollouts": 0.7, "time_idle": 0.1, "time_weights": 0.02 * k_max}
    row |= {"time_comm": 0.05, "time_update": 0.01, "time_io": 0.02}
    updates = []
    for k in range(1 + k_max):
        update: dict[str, Any] = dict.fromkeys(TABLES["updates"], 0)
        r2 = (0.3 * k) ** 2 * (1 + 0.1 * rng.random())
        update |= {"iteration": iteration, "k": k, "kl": r2 / 2, "ess": math.exp(-r2), "accepted": 1}
        updates.append(UpdateRow(**update))
    return Rows(IterationRow(**row | changes), updates)


def open_log(run_dir: Path, config: Config) -> LogWriter:
    """A new log without rows."""
    run_dir.mkdir(parents=True)
    attrs: dict[str, Any] = {"format": FORMAT, "config": config.to_json(), "ranks": 2, "nodes": 1}
    return LogWriter(run_dir / LOG, attrs)


def make_run(run_dir: Path, n_rows: int, /, **settings: Any) -> Path:
    """A closed log of `n_rows` iterations; returns the run directory."""
    config = Config(**settings)
    log = open_log(run_dir, config)
    for iteration in range(n_rows):
        log.append(rows(config, iteration))
    log.close()
    return run_dir


# -- rows whose every value follows from the iteration -------------------------------------------------------

NUMBERED = Config(n_pairs=3, seed=2**64 - 1)  # the settings of such logs


def numbered_row(table: str, iteration: int) -> dict[str, Any]:
    """The values of a row."""
    return {name: (iteration * 7 + k) % 200 for k, name in enumerate(TABLES[table])} | {"iteration": iteration}


def numbered_rows(iteration: int, updates: int = 2, **changes: float) -> Rows:
    """The rows of an iteration, its updates all alike; `changes` are other values of the iteration's row."""
    update = UpdateRow(**numbered_row("updates", iteration))
    return Rows(IterationRow(**numbered_row("iterations", iteration) | changes), [update] * updates)


def numbered_log(path: Path, n_rows: int, **options: Any) -> LogWriter:
    """A log with so many iterations, still open."""
    log = LogWriter(path, provenance(NUMBERED, "an MPI", 4, 2, ["python", "-m", "iwes_mpi.train"]), **options)
    for iteration in range(n_rows):
        returns = np.arange(6.0).reshape(3, 2) + iteration
        log.append(numbered_rows(iteration), (returns, returns.astype("i8")))
    return log
