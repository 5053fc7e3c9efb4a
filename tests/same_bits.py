"""What two runs of one configuration have in common, however they were carried out: everything but times."""

from pathlib import Path

import pandas as pd

from iwes_mpi import open_run

_VARYING = ["wall_time", "ranks"]  # and the columns time_…: how long things took, and on how many ranks


def results(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All of a log that must not depend on how the run was carried out."""
    run = open_run(run_dir)
    varying = [name for name in run.iterations if name in _VARYING or name.startswith("time_")]
    return run.iterations.drop(columns=varying), run.updates


def assert_same_bits(run_dir: Path, reference: Path) -> None:
    """Every result in the two logs is equal, to the last bit."""
    for found, expected in zip(results(run_dir), results(reference), strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
