"""The noise table: standard normal float32 numbers, one copy per node in shared memory.

A perturbation epsilon (d,) is a slice of the table, so that a whole population's noise is named by one integer
per pair and never travels (Salimans et al. 2017).
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.mpi.ranks import Nodes
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

DEFAULT_SIZE = 250_000_000  # as the reference ES code
_SMALLEST_DEFAULT, _PER_PARAMETER = 10_000_000, 25_000  # a small policy needs no large table to draw from
FILL_BLOCK = 1 << 16  # numbers per generator: the unit in which ranks share the filling
_SPARE = 0.8  # share of the free shared memory that a default table may take


def free_memory() -> int:
    """Bytes of memory that this node can still give; 2^62 where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 2**62


def available_bytes() -> int:
    """Bytes of shared memory that this node can still give: free space of /dev/shm and free memory."""
    try:
        info = os.statvfs("/dev/shm")
    except OSError:
        return free_memory()
    return min(info.f_bavail * info.f_frsize, free_memory())


def cgroup_bytes(root: Path = Path("/")) -> int:
    """Bytes that the memory limits of this process's control groups leave, such as Slurm's --mem; 2^62 without any.

    A group's limit holds for the groups below it together. Its cache of files gives way to other use.
    """
    free = [2**62]
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        memberships = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            try:
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                taken = int((folder / used).read_text()) - int(statistics[cache])
                free.append(max(0, int((folder / limit).read_text()) - taken))
            except (OSError, ValueError, KeyError):
                continue  # without a limit ("max"), or not to be seen from in here
    return min(free)


def default_size(d: int) -> int:
    """Numbers in the table, unless they are chosen, for a policy of d parameters."""
    return min(DEFAULT_SIZE, max(_SMALLEST_DEFAULT, _PER_PARAMETER * d))


def choose_size(config: Config, world: Nodes, d: int) -> tuple[int, str | None]:
    """The table's size: as configured, or the default, smaller where some node's memory is. Collective.

    Returns
    -------
    size : int
        In numbers; part of the run's results, so it must be recorded.
    notice : str or None
        One sentence if the default had to be cut.

    Raises
    ------
    WrongInput
        If the table would be too small for a policy of `d` parameters, or too large for a node. On every rank.
    """
    available = world.minimum_integer(available_bytes()) or 2**62
    if config.noise_table_size is not None:
        size, notice = config.noise_table_size, None
        if size > available // 4:
            raise WrongInput(
                "noise_table_size", f"{size} numbers need {4 * size / 1e9:.2f} GB of shared memory on every node, "
                f"but a node has {available / 1e9:.2f} GB (/dev/shm and free memory)"
            )  # fmt: skip
    else:
        size, notice = default_size(d), None
        available = min(available, world.minimum_integer(cgroup_bytes()))
        if 4 * size > _SPARE * available:
            size = int(_SPARE * available / 4) // 1_000_000 * 1_000_000
            notice = (
                f"noise table cut from {default_size(d)} to {size} numbers: a node has only {available / 1e9:.2f} GB "
                "of shared memory (/dev/shm, free memory and the job's memory limit); set `noise_table_size` to choose"
            )
    if size < 2 * d:
        raise WrongInput(
            "noise_table_size",
            f"{size} numbers are too few for a policy of {d} parameters: at least {2 * d} are needed",
        )
    return size, notice


class NoiseTable:
    """The table and what is known of it. Creating it is collective.

    Parameters
    ----------
    world : Nodes
    seed : int
        The content depends on it alone.
    size : int
        Numbers in the table.
    with_norms : bool
        Also build the prefix sums of squares that the "precomputed" weight kernel looks norms up in.

    Attributes
    ----------
    values : float32 (size,)
        Shared by the node's ranks, read-only.
    prefix : float64 (size // kernels.BLOCK + 1,)
        Sums of squares of the first 0, 1, 2 … blocks; a single 0 without `with_norms`. Shared, read-only.

    Raises
    ------
    ValueError
        If a number's magnitude reaches `kernels.MAX_ABS_EPSILON`, which the exact sums rely on.
    """

    def __init__(self, world: Nodes, seed: int, size: int, with_norms: bool = False):
        self.values: NDArray[np.float32] = world.node_array(size, np.float32)
        largest = self._fill(world, seed)
        world.publish()
        if not world.maximum(largest) < kernels.MAX_ABS_EPSILON:
            raise ValueError(f"the noise table of seed {seed} has a number beyond ±{kernels.MAX_ABS_EPSILON}")
        blocks = size // kernels.BLOCK if with_norms else 0
        self.prefix: NDArray[np.float64] = world.node_array(blocks + 1, np.float64)
        if blocks:
            mine = world.node.slice(blocks)
            kernels.block_square_sums(self.values, mine.start, self.prefix[mine.start + 1 : mine.stop + 1])
            world.publish()
        if world.node.rank == 0:
            self.prefix[0] = 0.0
            np.cumsum(self.prefix, out=self.prefix)
        world.publish()
        self.values.flags.writeable = False
        self.prefix.flags.writeable = False

    def _fill(self, world: Nodes, seed: int) -> float:
        """Fill this rank's blocks; returns the largest magnitude among them."""
        largest = 0.0
        for block in world.node.slice(-(-self.values.size // FILL_BLOCK)):
            part = self.values[block * FILL_BLOCK : (block + 1) * FILL_BLOCK]
            generator(seed, Stream.NOISE_TABLE, 0, block).standard_normal(out=part, dtype=np.float32)
            largest = max(largest, float(part.max()), -float(part.min()))
        return largest

    def starts(self, seed: int, iteration: int, first_pair: int, n_pairs: int, d: int) -> NDArray[np.int64]:
        """Where the noise of pairs first_pair … first_pair + n_pairs − 1 begins in the table; int64 (n_pairs,)."""
        rng = generator(seed, Stream.NOISE_INDEX, iteration, first_pair)
        return rng.integers(0, self.values.size - d + 1, size=n_pairs, dtype=np.int64)
