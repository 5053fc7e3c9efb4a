"""Adam (Kingma and Ba 2015) with beta2 = 0.999, epsilon = 1e-8."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel

BETA2, EPSILON = 0.999, 1e-8


class State(NamedTuple):
    """What Adam remembers."""

    step: int  # steps made
    m: NDArray[np.float64]  # (d,) first moment
    v: NDArray[np.float64]  # (d,) second moment


def init(d: int) -> State:
    """See `optimizers`."""
    return State(0, np.zeros(d), np.zeros(d))


def rate(length: float, d: int, n_pairs: int) -> float:
    """See `optimizers`. Each element's first step is the learning rate; later ones are shorter."""
    return length / math.sqrt(d)


@kernel
def _adam(gradient, rate, beta1, m, v, new_m, new_v, step):
    """One pass over all vectors (d,), where NumPy would make nine; the last three are filled."""
    for j in range(gradient.shape[0]):
        g = gradient[j]
        new_m[j] = beta1 * m[j] + (1 - beta1) * g
        new_v[j] = BETA2 * v[j] + (1 - BETA2) * (g * g)
        step[j] = -rate * new_m[j] / (math.sqrt(new_v[j]) + EPSILON)


def update(
    state: State, gradient: NDArray[np.float64], learning_rate: float, momentum: float
) -> tuple[State, NDArray[np.float64]]:
    """See `optimizers`. The reordered form of section 2 of the paper; `momentum` is its beta1."""
    t = state.step + 1
    rate = learning_rate * math.sqrt(1 - BETA2**t) / (1 - momentum**t)
    m, v, step = np.empty_like(gradient), np.empty_like(gradient), np.empty_like(gradient)
    _adam(gradient, rate, momentum, state.m, state.v, m, v, step)
    return State(t, m, v), step
