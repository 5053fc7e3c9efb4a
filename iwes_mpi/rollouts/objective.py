"""An objective in place of an environment: one evaluation of a function of theta is an episode of one step."""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.rollouts.episode import Episode, EpisodeTask
from iwes_mpi.settings.wrong_input import WrongInput

Objective = Callable[[NDArray[np.float32], np.random.Generator], float]


class StartingPoint:
    """What theta is for an objective: any vector, which begins at `theta0`; nothing is observed.

    Parameters
    ----------
    theta0 : float64 (d,)
    """

    obs_size = 0

    def __init__(self, theta0: NDArray[np.float64]):
        self._theta0 = theta0

    @property
    def n_parameters(self) -> int:
        """See `Parameters`."""
        return self._theta0.size

    def initial_parameters(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See `Parameters`; nothing is drawn."""
        return self._theta0.copy()


class ObjectiveRunner:
    """Evaluates an objective; see `EpisodeRunner`.

    Parameters
    ----------
    objective : callable
        Takes theta, float32 (d,), which it may keep and change, and a generator of its own; returns a number.
    theta0 : float64 (d,)
    description : str
        For people.
    """

    limit = 1

    def __init__(self, objective: Objective, theta0: NDArray[np.float64], description: str):
        self._objective, self.description = objective, description
        self.network = StartingPoint(theta0)

    def run(self, task: EpisodeTask) -> Episode:
        """One evaluation; see `EpisodeRunner`. It is invalid if it comes to NaN or infinity.

        Raises
        ------
        WrongInput
            If the objective returns something else than a number.
        """
        return Episode(number("objective", self._objective(task.theta.copy(), task.rng)), 1, None)

    def rehearse(self, task: EpisodeTask) -> None:
        """Nothing; see `EpisodeRunner`. The user's function is not called for its own sake."""

    def close(self) -> None:
        """Nothing; see `EpisodeRunner`."""


def number(name: str, value: Any) -> float:
    """A return as a float.

    Raises
    ------
    WrongInput
        Naming `name`, if it is not a real number; an array of one number is one.
    """
    found = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    if not isinstance(found, numbers.Real) or isinstance(found, bool):
        raise WrongInput(name, f"returned {repr(value)[:60]} ({type(value).__name__}), not a number")
    return float(found)


def starting_point(theta0: Any) -> NDArray[np.float64]:
    """theta0 as float64 (d,), a copy.

    Raises
    ------
    WrongInput
        If it is not a vector of finite numbers.
    """
    try:
        found = np.asarray(theta0)
    except ValueError as error:  # ragged lists
        raise WrongInput("theta0", f"must be a vector of numbers: {error}") from None
    if found.dtype.kind not in "iuf":
        raise WrongInput("theta0", f"must be a vector of numbers, got {type(theta0).__name__} of {found.dtype}")
    if found.ndim != 1 or not found.size:
        raise WrongInput("theta0", f"must have the shape (d,) with d at least 1, got {found.shape}")
    vector = np.array(found, dtype=np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(vector.astype(np.float32))
    if not finite.all():
        first = int(np.argmin(finite))
        raise WrongInput("theta0", f"must be finite, in float32 too, got {vector[first]} at index {first}")
    return vector
