"""Optimizers: how theta follows the gradient, one a file (`--optimizer`).

An optimizer is a module of pure functions over a small state of its own:

``State``
    A NamedTuple; its fields are saved in checkpoints under their own names.
``init(d)``
    The state before the first step, for d parameters.
``rate(length, d, n_pairs)``
    The learning rate at which a first step has about this length, in theta's units.
``update(state, gradient, learning_rate, momentum)``
    One step down a gradient (d,): the new state, and the step (d,) to be added to theta.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.settings.registry import OPTIMIZERS


class OptimizerState(Protocol):
    """What an optimizer remembers between steps: a NamedTuple of integers and float64 arrays (d,)."""

    step: int  # steps made

    def _asdict(self) -> dict[str, Any]: ...


class Optimizer(Protocol):
    """A module of this folder."""

    State: type[Any]

    def init(self, d: int, /) -> Any:
        """See `optimizers`."""
        ...

    def rate(self, length: float, d: int, n_pairs: int, /) -> float:
        """See `optimizers`."""
        ...

    def update(
        self, state: Any, gradient: NDArray[np.float64], learning_rate: float, momentum: float, /
    ) -> tuple[Any, NDArray[np.float64]]:
        """See `optimizers`."""
        ...


def optimizer_named(name: str) -> Optimizer:
    """The optimizer of ``--optimizer``. Raises WrongInput for an unknown name."""
    return OPTIMIZERS.module(name)


def saved(state: OptimizerState) -> dict[str, Any]:
    """The fields of a state, for a checkpoint."""
    return state._asdict()


def restored(name: str, fields: Mapping[str, Any]) -> OptimizerState:
    """The state of the optimizer `name` from the fields that a checkpoint holds.

    Raises
    ------
    ValueError
        If they are not those of this optimizer.
    """
    kind = optimizer_named(name).State
    if set(fields) != set(kind._fields):
        raise ValueError(f"the optimizer's state holds {', '.join(sorted(fields))}, {name} needs {kind._fields}")
    state: OptimizerState = kind(**fields)
    return state
