"""What the method asks of ranks that compute together, and one process that is all of them, without MPI."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


def split(n: int, parts: int, index: int) -> range:
    """Slice `index` of n items cut into `parts` contiguous slices whose lengths differ by at most one."""
    return range(n * index // parts, n * (index + 1) // parts)


class Ranks(Protocol):
    """Ranks that share samples; each method is collective."""

    rank: int
    size: int

    def slice(self, n: int) -> range:
        """This rank's share of n items."""
        ...

    def sum_integers(self, values: NDArray[np.int64]) -> None:
        """Sum int64 arrays over the ranks, in place, exactly."""
        ...

    def maximum(self, value: float) -> float:
        """The largest of the ranks' values."""
        ...


class Nodes(Ranks, Protocol):
    """Ranks on nodes whose memory they share."""

    @property
    def node(self) -> Ranks:
        """The ranks of this rank's node."""
        ...

    def minimum_integer(self, value: int) -> int:
        """The smallest of the ranks' integers."""
        ...

    def node_array(self, size: int, dtype: Any) -> NDArray[Any]:
        """One array per node, in memory that all its ranks share."""
        ...

    def publish(self) -> None:
        """Make what any rank of the node wrote to node arrays visible to the others."""
        ...


class Solo:
    """One process by itself: the only rank of the only node. Knows nothing of MPI."""

    rank, size = 0, 1

    @property
    def node(self) -> "Solo":
        """Itself; see `Nodes`."""
        return self

    def slice(self, n: int) -> range:
        """All of n items; see `Ranks`."""
        return range(n)

    def sum_integers(self, values: NDArray[np.int64]) -> None:
        """Nothing to add; see `Ranks`."""

    def maximum(self, value: float) -> float:
        """The value itself; see `Ranks`."""
        return float(value)

    def minimum_integer(self, value: int) -> int:
        """The value itself; see `Nodes`."""
        return value

    def node_array(self, size: int, dtype: Any) -> NDArray[Any]:
        """An array in this process's own memory; see `Nodes`."""
        return np.zeros(size, dtype=dtype)

    def publish(self) -> None:
        """Nobody else reads; see `Nodes`."""
