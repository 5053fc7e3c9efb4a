"""gradient steps with dampened momentum, as in the reference ES code."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class State(NamedTuple):
    """What gradient descent remembers."""

    step: int  # steps made
    velocity: NDArray[np.float64]  # (d,) mean of the gradients, the newest counting most


def init(d: int) -> State:
    """See `optimizers`."""
    return State(0, np.zeros(d))


def rate(length: float, d: int, n_pairs: int) -> float:
    """See `optimizers`. The gradient of centered ranks that tell nothing has the length √(d / 24·n_pairs)."""
    return length / math.sqrt(d / (24 * n_pairs))


def update(
    state: State, gradient: NDArray[np.float64], learning_rate: float, momentum: float
) -> tuple[State, NDArray[np.float64]]:
    """See `optimizers`."""
    velocity = momentum * state.velocity + (1 - momentum) * gradient
    return State(state.step + 1, velocity), -learning_rate * velocity
