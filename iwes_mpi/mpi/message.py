"""Named arrays that travel together: one Allreduce of 64-bit integers, exact whatever the order of the sum.

Two kinds of fields. `counts` are integers that the ranks add up. `slots` are float64 numbers of which each is filled
by one rank at most and left zero by the others: the sum of their bit patterns as integers is that number.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.mpi.ranks import Ranks


class Field(NamedTuple):
    """The shape and kind of an array in a message."""

    shape: tuple[int, ...]
    dtype: type[np.int64] | type[np.float64]


def counts(*shape: int) -> Field:
    """Integers of which all ranks' are summed."""
    return Field(shape, np.int64)


def slots(*shape: int) -> Field:
    """Numbers of which each is filled by one rank at most."""
    return Field(shape, np.float64)


class Message:
    """Arrays by name, all zero at first, in one piece of memory.

    Parameters
    ----------
    **fields : Field
        From `counts` and `slots`.
    """

    def __init__(self, **fields: Field):
        sizes = [prod(field.shape) for field in fields.values()]
        self._memory = np.zeros(sum(sizes), dtype=np.int64)
        self._arrays: dict[str, NDArray[Any]] = {}
        start = 0
        for (name, field), size in zip(fields.items(), sizes, strict=True):
            part = self._memory[start : start + size]
            self._arrays[name] = part.view(field.dtype).reshape(field.shape)
            start += size

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array of a field, to be filled in place."""
        return self._arrays[name]

    def clear(self) -> None:
        """Make everything zero again."""
        self._memory[:] = 0

    def reduce(self, group: Ranks) -> None:
        """Give every rank of a group the sums of the counts and all slots. Collective."""
        group.sum_integers(self._memory)
