"""What all tests share: one thread per process, the world of one rank, and a noise table."""

from iwes_mpi.mpi import process  # isort: skip  # noqa: F401 - before NumPy: it settles the number of threads

import pytest


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
