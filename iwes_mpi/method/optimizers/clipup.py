"""ClipUp: steps of one length whatever the gradient's, gathered into a velocity with a speed limit.

Toklu, Liskowski and Srivastava (2020): the gradient's direction times the learning rate is added to `momentum` times
the velocity, which is then cut to the greatest speed. That is twice the learning rate here, as they advise: one setting
says how far theta may move at a time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels

MAX_SPEED = 2.0  # in learning rates


class State(NamedTuple):
    """What ClipUp remembers."""

    step: int  # steps made
    velocity: NDArray[np.float64]  # (d,) the last step


def init(d: int) -> State:
    """See `optimizers`."""
    return State(0, np.zeros(d))


def rate(length: float, d: int, n_pairs: int) -> float:
    """See `optimizers`. The first step is the learning rate; later ones are at most twice as long."""
    return length


def update(
    state: State, gradient: NDArray[np.float64], learning_rate: float, momentum: float
) -> tuple[State, NDArray[np.float64]]:
    """See `optimizers`. A gradient of 0 adds nothing."""
    velocity = momentum * state.velocity - _scaled(gradient, learning_rate)
    speed = kernels.norm(velocity)
    if speed > MAX_SPEED * learning_rate:
        velocity *= MAX_SPEED * learning_rate / speed
    return State(state.step + 1, velocity), velocity.copy()


def _scaled(vector: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """The vector (d,) at another length; zeros stay zeros."""
    scaled = np.ldexp(vector, -np.frexp(np.abs(vector).max(initial=0.0))[1])  # exact, and its square cannot overflow
    return scaled * (length / (kernels.norm(scaled) or 1.0))
