"""A long run costs no more per iteration at its end than at its beginning: memory, open files, size of the log."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import launch
import numpy as np
import pytest
from synthetic import numbered_log, numbered_rows

from iwes_mpi.files import log as files_log
from iwes_mpi.files.columns import TABLES
from iwes_mpi.files.log import LOG

pytestmark = pytest.mark.slow

RANKS = int(os.environ.get("IWES_ENDURANCE_RANKS", "4"))  # 16 take minutes on two cores
ITERATIONS, SETTLED, EVERY = 500, 50, 50
GROWTH = 1.02  # of resident memory after the settling

# fmt: off
SETTINGS = [
    "--env-id", "InvertedPendulum-v5", "--max-episode-steps", "50", "--hidden-sizes", "16", "--n-pairs", "8",
    "--min-env-steps", "0", "--n-eval", "4", "--eval-every", "1", "--iw-updates", "1", "--obs-stat-probability", "0.5",
    "--noise-table-size", "20000",  # so small that all of it has been touched, and counted, once settled
    "--checkpoint-every", "5", "--display", "lines", "--iterations", str(ITERATIONS),
]
# fmt: on


class Sample(NamedTuple):
    """What the ranks hold, in the order of their process ids."""

    iteration: int
    resident: list[int]  # kB
    files: list[int]


def resident(pid: int) -> int:
    """Kilobytes of a process's memory that are in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def open_files(pid: int) -> int:
    """Open files of a process; the fewest of three looks, since rank 0 may be writing a checkpoint."""
    counts = []
    for _ in range(3):
        counts.append(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
        time.sleep(0.01)
    return min(counts)


@pytest.mark.timeout(600)
def test_500_iterations_hold_on_to_nothing(tmp_path: Path) -> None:
    samples: list[Sample] = []
    # Ranks that share a core hand it over while they wait for messages, or 500 iterations take many minutes.
    yielding = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    command = ("-m", "iwes_mpi.train", *SETTINGS, "--run-dir", str(tmp_path / "run"))
    with launch.started(RANKS, *command, **yielding) as process:
        assert process.stdout is not None
        ranks: list[int] = []
        for line in process.stdout:
            if not line.startswith("iteration"):
                continue
            iteration = int(line.split()[1])
            if iteration < SETTLED or (iteration % EVERY and iteration != ITERATIONS - 5):
                continue
            ranks = ranks or sorted(launch.ranks_of(process.pid))
            assert len(ranks) == RANKS
            samples.append(Sample(iteration, [resident(rank) for rank in ranks], [open_files(rank) for rank in ranks]))
        assert process.wait(timeout=60) == 0, process.stderr and process.stderr.read()
    assert [samples[0].iteration, samples[-1].iteration] == [SETTLED, ITERATIONS - 5]
    first = samples[0]
    for sample in samples:
        print(sample.iteration, np.divide(sample.resident, first.resident).max(), sample.files)  # seen if it fails
    for sample in samples[1:]:
        assert np.all(np.divide(sample.resident, first.resident) < GROWTH), sample
        assert sample.files == first.files


def test_the_log_grows_by_the_same_with_every_iteration(tmp_path: Path) -> None:
    """Room is made for many rows at once: counted over whole lots of them."""
    lot = files_log._ROWS_PER_CHUNK
    log = numbered_log(tmp_path / LOG, 0)
    sizes = []
    for iteration in range(4 * lot):
        log.append(numbered_rows(iteration))
        if iteration % lot == lot - 1:
            log.sync()
            sizes.append((tmp_path / LOG).stat().st_size)
    log.close()
    growth = np.diff(sizes) / lot  # bytes per iteration
    rows = 8 * (len(TABLES["iterations"]) + 2 * len(TABLES["updates"]))
    assert np.all(growth < 1.1 * rows), growth
    assert np.all(growth > 0.9 * rows), growth
