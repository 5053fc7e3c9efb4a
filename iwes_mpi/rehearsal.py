"""Getting ready for the first iteration: every compiled function that a run calls is compiled, or loaded, before it.

A function compiled in the midst of a population would be compiled by all ranks of a node at once, and the time
would be charged to the rollouts.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from iwes_mpi import compile_cache, jit, kernels, optimizers
from iwes_mpi.config import Config
from iwes_mpi.es import GradientEstimator, Phases
from iwes_mpi.mpi import World, alone
from iwes_mpi.noise import NoiseTable
from iwes_mpi.rollouts import EpisodeRunner, EpisodeTask
from iwes_mpi.seeding import Stream, generator


class _Table(NoiseTable):
    """A small noise table of this process alone."""

    def __init__(self, size: int, with_norms: bool):
        self.values = np.resize(generator(0, Stream.NOISE_TABLE).standard_normal(1000, np.float32), size)
        self.prefix = np.zeros(1 + (size // kernels.BLOCK if with_norms else 0))
        if with_norms:
            kernels.block_square_sums(self.values, 0, self.prefix[1:])
        self.values.flags.writeable = self.prefix.flags.writeable = False


T = TypeVar("T")


def in_turn(world: World, function: Callable[[], T]) -> T:
    """Call a function that compiles on the node's first rank, then on its others. Collective on the node.

    The first rank compiles, and leaves the code on disk; the others load it. Nodes whose cache directory is one and
    the same take turns too, and so do several jobs on a node. If any rank is without a cache directory, all call it
    at once.

    Returns
    -------
    object
        What `function` returned on this rank.
    """
    if world.node.any(jit.CACHE is None):
        return function()
    if world.node.rank > 0:
        world.node.rest_until_all()
        return function()
    with compile_cache.exclusive(jit.CACHE, "compile"):
        result = function()
    world.node.rest_until_all()
    return result


def rehearse(config: Config, runner: EpisodeRunner) -> None:
    """Call once, on small numbers and with no effect, each compiled function of an iteration."""
    obs_size, d = int(runner.network.sizes[0]), runner.network.n_parameters
    theta, theta32 = np.zeros(d), np.zeros(d, dtype=np.float32)
    table = _Table(d + kernels.BLOCK, config.weight_kernel == "precomputed")
    kernels.perturb(theta, config.sigma, table.values[:d], 1.0, theta32)
    normaliser = np.stack([np.zeros(obs_size), np.ones(obs_size)])
    for observe in (False, True):
        runner.rehearse(EpisodeTask(theta32, normaliser, generator(0, Stream.INITIALISATION), 0.01, observe))
    estimator = GradientEstimator(config, alone(), table, Phases())
    starts, utilities = np.zeros(1, dtype=np.int64), np.array([[0.5, -0.5]])
    for delta in (np.zeros(d), np.full(d, 0.1 / np.sqrt(d))):
        estimator.estimate(starts, utilities, delta, kernels.sum_squares(delta))
    optimizers.adam(optimizers.initial_state(d), theta, config.learning_rate)
    kernels.norm(theta)
