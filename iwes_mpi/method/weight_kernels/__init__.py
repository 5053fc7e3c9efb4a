"""Weight kernels: ways to compute eq. 4, one a file (`--weight-kernel`). All agree to rounding.

A kernel is a module with a NamedTuple ``Weights`` of all that the weight of a sample depends on. Its method
``log_weights(start)`` is compiled; it returns log c of the two members of the pair whose noise starts there. Its class
method ``of(noise, delta, r2)`` makes it, where delta (d,) is the distance that theta has moved in units of sigma, and
r2 its square. ``NEEDS_NORMS`` tells whether it looks up norms of the noise.
"""

from typing import Any, Protocol

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from iwes_mpi.settings.registry import WEIGHT_KERNELS


class Noise(Protocol):
    """What a kernel may use of the noise table (`noise.NoiseTable`)."""

    values: NDArray[np.float32]  # (size,)
    prefix: NDArray[np.float64]  # (size // kernels.BLOCK + 1,) sums of squares of the first blocks


class Weights(Protocol):
    """What a weight kernel offers."""

    @classmethod
    def of(cls, noise: Noise, delta: NDArray[np.float64], r2: float) -> "Weights":
        """The weights of a population at the distance delta (d,) from its center."""
        ...

    def log_weights(self, start: int) -> tuple[float, float]:
        """log c_{i+} and log c_{i−}, eq. 4."""
        ...


def kernel_named(name: str) -> type[Weights]:
    """The kernel of ``--weight-kernel``. Raises WrongInput for an unknown name."""
    return WEIGHT_KERNELS.module(name).Weights


def needs_norms(name: str) -> bool:
    """Whether a kernel needs the noise table's sums of squares. Raises WrongInput for an unknown name."""
    return bool(WEIGHT_KERNELS.module(name).NEEDS_NORMS)


def log_weights(self: Any, start: Any) -> tuple[float, float]:
    """A kernel's method, for compiled code."""
    return self.log_weights(start)


@overload(log_weights)
def _compile_log_weights(self, start):
    kind = getattr(self, "instance_class", None)  # the NamedTuple that Numba's type stands for
    return getattr(kind, "log_weights", None)
