"""What all tests share: one thread per process, the world of one rank, and a noise table."""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy loads

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def world():
    """MPI's world as a plain process sees it: one rank."""
    from iwes_mpi.mpi.world import World

    return World()


@pytest.fixture(scope="session")
def noise(world):
    """A noise table large enough for the largest policy of the paper, with its squared norms."""
    from iwes_mpi.method.noise import NoiseTable

    return NoiseTable(world, seed=11, size=3_000_017, with_norms=True)
