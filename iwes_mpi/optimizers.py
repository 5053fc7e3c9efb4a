"""SGD with momentum and Adam, as in the reference ES code: pure steps over a small state."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.jit import kernel

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class OptimizerState(NamedTuple):
    """What an optimiser remembers between steps; both kinds use the same fields."""

    step: int  # steps made
    m: NDArray[np.float64]  # (d,) first moment (adam) or velocity (sgd)
    v: NDArray[np.float64]  # (d,) second moment (adam); zero for sgd


def initial_state(d: int) -> OptimizerState:
    """The state before the first step, for `d` parameters."""
    return OptimizerState(0, np.zeros(d), np.zeros(d))


@kernel
def _adam(gradient, rate, m, v, new_m, new_v, step):
    """One pass over all vectors (d,), where NumPy would make nine; the last three are filled."""
    for j in range(gradient.shape[0]):
        g = gradient[j]
        new_m[j] = BETA1 * m[j] + (1 - BETA1) * g
        new_v[j] = BETA2 * v[j] + (1 - BETA2) * (g * g)
        step[j] = -rate * new_m[j] / (math.sqrt(new_v[j]) + EPSILON)


def adam(
    state: OptimizerState, gradient: NDArray[np.float64], learning_rate: float
) -> tuple[OptimizerState, NDArray[np.float64]]:
    """One step of Adam (Kingma and Ba 2015, section 2, the reordered form) down `gradient` (d,).

    Returns
    -------
    state : OptimizerState
    step : float64 (d,)
        To be added to theta.
    """
    t = state.step + 1
    rate = learning_rate * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    m, v, step = np.empty_like(gradient), np.empty_like(gradient), np.empty_like(gradient)
    _adam(gradient, rate, state.m, state.v, m, v, step)
    return OptimizerState(t, m, v), step


def sgd(
    state: OptimizerState, gradient: NDArray[np.float64], learning_rate: float, momentum: float
) -> tuple[OptimizerState, NDArray[np.float64]]:
    """One step of gradient descent with (dampened) momentum down `gradient` (d,); returns as `adam` does."""
    m = momentum * state.m + (1 - momentum) * gradient
    return OptimizerState(state.step + 1, m, state.v), -learning_rate * m
