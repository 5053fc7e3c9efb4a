"""Copy the logs of runs, without their populations, to where the notebooks read them.

    python analysis/collect.py runs/scaled/* [-o analysis/data] [--population] [--slim] [--unfinished]

The log of runs/TABLE/RUN becomes analysis/data/TABLE/RUN/log.h5, with config.toml beside it: the same attributes and
complete rows, packed. While a run goes on its log has room to grow, about 200 kB whatever it holds; here it has none.
`iwes_mpi.open_run` reads one as it reads the other. Collecting the same log again writes the same bytes.

With --slim only that is kept which tells how evaluations' means grow with steps and time, in every iteration, with
times to 1/64 s: some 15 to 40 kB a run. What is left out reads as blank, and there are no rows of updates.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi import open_run
from iwes_mpi.files.columns import POPULATION, TABLES, Column
from iwes_mpi.files.log import LOG
from iwes_mpi.files.reader import LogError
from iwes_mpi.files.record import CONFIG
from iwes_mpi.files.run import Run

DATA = Path(__file__).resolve().parent / "data"
SLIM = (
    "iteration", "env_steps", "eval_env_steps", "episode_cap", "wall_time", "eval_return_mean", "eval_episodes",
    "updates", "ranks",
)  # fmt: skip


def _put(group: h5py.Group, name: str, column: Column, values: NDArray[np.generic]) -> None:
    options = {"chunks": values.shape, "compression": "gzip", "compression_opts": 9, "shuffle": True}
    dataset = group.create_dataset(name, data=values.astype(column.dtype), **(options if values.size else {}))
    dataset.attrs["units"] = column.units
    dataset.attrs["long_name"] = column.long_name


def pack(run: Run, target: Path, population: bool = False, slim: bool = False) -> None:
    """Write the complete rows and all attributes of a run's log to a new file."""
    draft = target.with_name(target.name + ".new")
    iterations, updates = run.iterations, run.updates
    if slim:
        iterations = iterations.assign(wall_time=np.round(64 * iterations["wall_time"]) / 64)
        updates = updates[:0]
    with h5py.File(draft, "w", libver="latest") as file:
        file.attrs.update(run.attrs)
        for table, frame in (("iterations", iterations), ("updates", updates)):
            for name, column in TABLES[table].items():
                if slim and name not in (SLIM if table == "iterations" else ("iteration",)):
                    continue
                _put(file.require_group(table), name, column, frame[name].to_numpy())
        if population and run.population is not None:
            for name, column in POPULATION.items():
                _put(file.require_group("population"), name, column, run.population[name])
    os.replace(draft, target)


def collect(path: Path, output: Path, population: bool = False, slim: bool = False) -> Path:
    """Copy one run; returns its new directory."""
    source = path.resolve()
    target = output / source.parent.name / source.name
    target.mkdir(parents=True, exist_ok=True)
    pack(open_run(source), target / LOG, population, slim)
    if (source / CONFIG).exists():
        shutil.copyfile(source / CONFIG, target / CONFIG)
    return target


def main() -> int:
    """Copy the runs named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=DATA, help="[default analysis/data]")
    parser.add_argument("--population", action="store_true", help="with each episode's return and length, if logged")
    parser.add_argument("--slim", action="store_true", help="only what tells how evaluations grow with steps")
    parser.add_argument("--unfinished", action="store_true", help="also runs that have not come to their limits yet")
    options = parser.parse_args()
    copied = 0
    for path in options.runs:
        try:
            if not options.unfinished and not open_run(path).finished:
                print(f"{path} has not come to its end; left out", file=sys.stderr)
                continue
            collect(path, options.output, options.population, options.slim)
        except LogError as error:
            print(f"{error}; left out", file=sys.stderr)
            continue
        copied += 1
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{copied} runs copied; {options.output} holds {size / 1e6:.1f} MB")
    return 0 if copied else 1


if __name__ == "__main__":
    sys.exit(main())
