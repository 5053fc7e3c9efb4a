"""What theta is, as far as those need to know who move it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Parameters(Protocol):
    """A vector of parameters and where it begins."""

    @property
    def n_parameters(self) -> int:
        """Length d of the vector."""
        ...

    @property
    def obs_size(self) -> int:
        """Numbers in an observation; 0 where nothing is observed."""
        ...

    def initial_parameters(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """The parameters (d,) that a new run starts from."""
        ...
